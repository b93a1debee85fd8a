"""What a program tells on the way: plain lines, or on a terminal one line of progress below them.

GPT2C_LOG=debug|info|warning|error says how much, or RUST_LOG where that is not set.
"""

import os
import sys

from gpt2c.errors import UsageError
from gpt2c.support.streams import bare, say

LEVELS = ("debug", "info", "warning", "error")


def log_level(environment):
    """What GPT2C_LOG says, else RUST_LOG, which may be meant for other programs: what of it is no level is passed over."""
    short = {"warn": "warning", "trace": "debug", "off": "error"}
    if level := environment.get("GPT2C_LOG", "").lower():
        if short.get(level, level) not in LEVELS:
            raise UsageError(f"GPT2C_LOG is {level!r}, expected one of {', '.join(LEVELS)}")
        return short.get(level, level)
    words = [short.get(word.strip(), word.strip()) for word in environment.get("RUST_LOG", "").lower().split(",")]
    return next((word for word in words if word in LEVELS), "info")


class Console:
    def __init__(self):
        self._level = LEVELS.index(log_level(os.environ))
        self._bar = None

    def debug(self, text):
        self._say("debug", text, "stdout")

    def info(self, text):
        self._say("info", text, "stdout")

    def warning(self, text):
        self._say("warning", text, "stderr")

    def _say(self, level, text, stream):
        if LEVELS.index(level) < self._level:
            return
        if self._bar is not None:
            self._bar.clear()
        say(text, stream)
        if self._bar is not None:
            self._bar.refresh()

    @property
    def has_bar(self):
        return self._bar is not None

    def start_bar(self, total, done):
        """A line of progress with the time left, if someone looks at a terminal."""
        if sys.stderr.isatty() and sys.stdout.isatty() and self._level <= LEVELS.index("info"):
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, leave=False, file=bare(sys.stderr))

    def advance(self, done, text):
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(text)

    def end_bar(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
