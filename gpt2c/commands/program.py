"""What all programs share: how an error ends them."""

import os
import select
import sys
from collections.abc import Callable

from gpt2c.errors import Gpt2cError
from gpt2c.training.ranks import joined


def run_program(name, main: Callable[[list[str]], int | None], argv):
    """Calls main with the command line and exits with its code; an error for the user is one line on stderr. Where there are
    several ranks, what ends one before its time ends all."""
    try:
        code = run_and_print(main, argv)
    except Gpt2cError as error:
        joined().fail(f"{name}: {error}", error.exit_code)
    except MemoryError as error:
        joined().fail(f"{name}: out of memory{f': {error}' if str(error) else ''}", 5)
    except KeyboardInterrupt:
        joined().fail("", 130)
    except BrokenPipeError:
        if not output_is_lost():
            raise
        code = 0
    sys.exit(code)


def run_and_print(main, argv):
    try:
        code = main(argv) or 0
    except SystemExit as early:  # help, or a signal before there is anything to save
        if early.code:
            joined().fail("", early.code)
        code = 0
    if sys.stdout:  # there is none after >&-
        sys.stdout.flush()
    return code


def output_is_lost():
    """Whether who reads the standard output has gone, as head does after some lines. What is left of it is dropped then."""
    output = select.poll()
    output.register(1, 0)
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True
