"""Every error gpt2c raises on purpose. The command line prints the message alone and exits with `exit_code`.

A message is one sentence that says what was found, what was expected and what to do.
"""


class Gpt2cError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class UsageError(Gpt2cError, ValueError):
    """A flag, argument or configuration that cannot work."""

    exit_code = 2


class DivergedError(Gpt2cError, ArithmeticError):
    """The loss or the gradients are no longer finite."""

    exit_code = 3


class InputError(Gpt2cError, ValueError):
    """A file is missing, or what is in it is not what it should be."""

    exit_code = 4


class VersionError(InputError):
    """A file of a newer version than this gpt2c knows: sound, but not to be read."""


class ResourceError(Gpt2cError, MemoryError):
    """The machine has too little memory or disk for what was asked."""

    exit_code = 5
