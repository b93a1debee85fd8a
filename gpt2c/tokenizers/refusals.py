"""What the `tokenizers` library refuses."""

from contextlib import contextmanager

from gpt2c.errors import TokenizationError


@contextmanager
def refusals(what):
    """Makes a refusal a TokenizationError that begins with `what`. The library raises plain Exceptions, nothing more special;
    anything more special is a fault of this program and stays what it is."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise TokenizationError(f"{what}: {error}") from None
