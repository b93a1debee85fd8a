"""Progress of long work: one line that is rewritten on a terminal, occasional plain lines elsewhere."""

import contextlib
import sys
import time

from gpt2c.support.machine import in_units
from gpt2c.support.streams import bare, say


def duration(seconds):
    """Seconds for people, as 1h05m, 3m07s or 42s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def on_terminal():
    """Whether a person sees standard error at once."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress:
    """Bytes done of a total, with the speed and the time left, on standard error; of what takes less than a second, nothing.
    `done`: those that were there before."""

    def __init__(self, what, total, done=0):
        self.what, self.total, self._before = what, total, done
        self._terminal = on_terminal()
        self._began = time.monotonic()
        self._every = 0.2 if self._terminal else 5.0
        self._shown = self._began + max(0, 1 - self._every)
        self._drawn = False

    def update(self, done):
        now = time.monotonic()
        if now - self._shown < self._every or done <= self._before:
            return
        self._shown, speed = now, (done - self._before) / (now - self._began)
        line = (
            f"{self.what}: {in_units(done)} of {in_units(self.total)} ({100 * done / self.total:.0f}%) | "
            f"{in_units(speed)}/s | eta {duration((self.total - done) / speed)}"
        )
        self._draw(line) if self._terminal else say(line, "stderr")

    def end(self):
        if self._drawn:
            self._draw("")

    def _draw(self, line):
        self._drawn = True
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
            print(f"\r{line}\033[K", end="", file=bare(sys.stderr), flush=True)


@contextlib.contextmanager
def watched(file, name, size):
    """Yields the file, to write bytes to; a terminal shows how many of `size`, if that is known, are written."""
    if size is None or not on_terminal():
        yield file
        return
    progress = Progress(f"writing {name}", size)
    try:
        yield _Watched(file, progress)
    finally:
        progress.end()


class _Watched:
    def __init__(self, file, progress):
        self._file, self._progress = file, progress

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        count = self._file.write(data)
        self._progress.update(self._file.tell())
        return count
