"""What all programs share: how an error ends them."""

import os
import select
import sys
from collections.abc import Callable

from gpt2c.errors import Gpt2cError


def run_program(name, main: Callable[[list[str]], int | None], argv):
    """Calls main with the command line and exits with its code; an error for the user is one line on stderr. Where there are
    several ranks, what ends one before its time ends all."""
    try:
        code = run_and_print(main, argv)
    except Gpt2cError as error:
        fail(f"{name}: {error}", error.exit_code)
    except MemoryError as error:
        fail(f"{name}: out of memory{f': {error}' if str(error) else ''}", 5)
    except KeyboardInterrupt:
        fail("", 130)
    except BrokenPipeError:
        if not output_is_lost():
            raise
        code = 0
    sys.exit(code)


def fail(text, code):
    """Tells of an error, if there are words for it, and ends this process, or all ranks where it is one of several."""
    if ranks := sys.modules.get("gpt2c.training.ranks"):  # else it is alone: help and version load nothing of training
        ranks.joined().fail(text, code)
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
