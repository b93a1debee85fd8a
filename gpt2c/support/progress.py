"""Progress of long work: one line that is rewritten on a terminal, occasional plain lines elsewhere."""

import sys
import time

from gpt2c.support.machine import in_units
from gpt2c.support.streams import bare, say


def duration(seconds):
    """Seconds for people, as 1h05m, 3m07s or 42s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Progress:
    """Bytes done of a total, with the speed and the time left, on standard error."""

    def __init__(self, what, total):
        self.what, self.total = what, total
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._shown = time.monotonic()
        self._every = 0.2 if self._terminal else 5.0

    def update(self, done):
        now = time.monotonic()
        if now - self._shown < self._every or not done:
            return
        self._shown, elapsed = now, now - self._began
        left = elapsed * (self.total - done) / done
        line = (
            f"{self.what}: {in_units(done)} of {in_units(self.total)} ({100 * done / self.total:.0f}%) | "
            f"{in_units(done / elapsed)}/s | eta {duration(left)}"
        )
        self._draw(line) if self._terminal else say(line, "stderr")

    def end(self):
        if self._terminal:
            self._draw("")

    def _draw(self, line):
        print(f"\r{line}\033[K", end="", file=bare(sys.stderr), flush=True)
