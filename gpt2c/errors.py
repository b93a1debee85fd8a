"""Every error gpt2c raises on purpose. The command line prints the message alone and exits with `exit_code`.

A message is one sentence that says what was found, what was expected and what to do.
"""


class Gpt2cError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class UsageError(Gpt2cError, ValueError):
    """A flag, argument or configuration that cannot work."""

    exit_code = 2


class InferenceError(UsageError):
    """A prompt or sampling settings with which nothing can be generated."""


class DivergedError(Gpt2cError, ArithmeticError):
    """The loss or the gradients are no longer finite."""

    exit_code = 3


class GradientError(DivergedError):
    """A gradient is larger than it may be."""


class InputError(Gpt2cError, ValueError):
    """A file is missing, or its content is invalid."""

    exit_code = 4


class SerializationError(InputError):
    """A model file is damaged, or not a model file."""


class TokenizationError(InputError):
    """An invalid tokenizer file, or text that its vocabulary cannot encode."""


class DataError(InputError):
    """Data to train or evaluate on that cannot be used."""


class VersionError(SerializationError):
    """A valid file of a newer version than this gpt2c can read."""


class TransferError(Gpt2cError):
    """A file that could not be fetched from the network."""


class ResourceError(Gpt2cError, MemoryError):
    """The machine has too little memory or disk for what was asked."""

    exit_code = 5
