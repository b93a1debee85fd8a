"""Standard output and standard error, as all programs use them.

What is only said never ends a program, whatever has become of a terminal, of the program that reads, or of a disk: that is all of
standard error, and on standard output what say() prints. What was asked for does, as an error of one sentence. Text of files
and models reaches a terminal as text, its control characters by name.
"""

import contextlib
import os
import re
import sys

from gpt2c.errors import ResourceError

# What a terminal obeys: C0 without tab and line feed, DEL, C1, and what turns the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text):
    """Text with its control characters written out, as \\x1b for escape."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class ReaderGone(BrokenPipeError):
    """The program that read standard output needs no more of it, as head does."""


class Output:
    """A stream that shows control characters, and leads nowhere once it cannot be written to; where it is `needed`, each write
    is then an error."""

    def __init__(self, stream, needed=False, show=shown, error=None):
        self.stream, self.needed, self._show, self._error = stream, needed, show, error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def bare(self):
        """The same stream for text as it is: the product of a program that no terminal reads, and lines that are redrawn."""
        return Output(self.stream, self.needed, str, self._error)

    def write(self, text):
        self._check()
        self._try(self.stream.write, self._show(text))
        return len(text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, act, *args):
        try:
            act(*args)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._error = error
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # for what is still in its buffer
                os.close(nowhere)
            self._check()

    def _check(self):
        if self.needed and isinstance(self._error, BrokenPipeError):
            raise ReaderGone
        if self.needed and self._error:
            why = getattr(self._error, "strerror", None) or self._error
            raise ResourceError(f"standard output cannot be written to: {why}; send it where there is room for it")


def guard():
    """Makes the standard streams of this process what this module says they are. One that is closed takes its number again,
    which else the next file would get that is opened."""
    for name, mode, access in ("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, closefd=False))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, stream if isinstance(stream, Output) else Output(stream, needed=name == "stdout"))


def bare(stream):
    """Output.bare() of a standard stream, guarded or not."""
    return stream.bare() if isinstance(stream, Output) else stream


def say(text, stream="stdout"):
    """Prints what is only said, if there is such a stream (print would take another)."""
    out = getattr(sys, stream)
    with contextlib.suppress(OSError, ValueError, RuntimeError, ResourceError):  # RuntimeError: from a signal during a print
        if out is not None:
            print(text, file=out, flush=True)
