"""What all programs share: how an error ends them."""
import sys
from collections.abc import Callable

from gpt2c.errors import Gpt2cError


def run_program(name, main: Callable[[list[str]], int | None]):
    """Calls main with the command line and exits with its code; an error for the user is one line on stderr."""
    try:
        code = main(sys.argv[1:]) or 0
    except Gpt2cError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = error.exit_code
    except MemoryError as error:
        print(f"{name}: out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        code = 5
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
