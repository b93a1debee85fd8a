"""What all programs share: how an error ends them."""
import sys
from collections.abc import Callable

from gpt2c.errors import Gpt2cError
from gpt2c.world import joined


def run_program(name, main: Callable[[list[str]], int | None]):
    """Calls main with the command line and exits with its code; an error for the user is one line on stderr. Where there are
    several ranks, what ends one before its time ends all."""
    try:
        code = main(sys.argv[1:]) or 0
    except Gpt2cError as error:
        joined().fail(f"{name}: {error}", error.exit_code)
    except MemoryError as error:
        joined().fail(f"{name}: out of memory{f': {error}' if str(error) else ''}", 5)
    except KeyboardInterrupt:
        joined().fail("", 130)
    except SystemExit as early:  # help, or a signal before there is anything to save
        if early.code:
            joined().fail("", early.code)
        raise
    sys.exit(code)
