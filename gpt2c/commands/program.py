"""What all programs share: exit codes and error messages."""

import sys
from collections.abc import Callable

from gpt2c.errors import Gpt2cError
from gpt2c.support import streams


def run_program(name, main: Callable[[list[str]], int | None], argv):
    """Calls main with the command line and exits with its code; an error for the user is one line on stderr. An error on one of
    several ranks ends all of them."""
    streams.guard()
    try:
        code = run_and_print(main, argv)
    except Gpt2cError as error:
        fail(f"{name}: {error}", error.exit_code)
    except MemoryError as error:
        fail(f"{name}: out of memory{f': {error}' if str(error) else ''}", 5)
    except KeyboardInterrupt:
        fail("", 130)
    except streams.ReaderGone:
        code = 0
    sys.exit(code)


def fail(text, code):
    """Prints an error message, if there is one, and ends this process, or all ranks if it is one of several."""
    if ranks := sys.modules.get("gpt2c.training.ranks"):  # else it is alone: help and version load nothing of training
        ranks.joined().fail(streams.shown(text), code)
    if text:
        print(text, file=sys.stderr)
    sys.exit(code)


def run_and_print(main, argv):
    try:
        code = main(argv) or 0
    except SystemExit as early:  # help, or a signal before there is anything to save
        if early.code:
            fail("", early.code)
        code = 0
    sys.stdout.flush()
    return code
