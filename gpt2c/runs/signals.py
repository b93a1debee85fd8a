"""Signals: stopping a run with a checkpoint, and saving one on request."""

import os
import signal
import threading
import time

from gpt2c.support.streams import say

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TWICE = 0.3  # seconds within which a second signal is the same one: a launcher may pass on what the terminal sent to all


class Stop:
    """Handles signals inside its `with` block.

    The first SIGINT, SIGTERM or SIGHUP sets `signal`; the training loop checks it between steps, saves and exits. Before
    `training` is set there is nothing to save, and the program exits at once, as it does on a second one at any time: a
    thread watches for that, because Python's own handlers wait until a kernel returns. SIGUSR1 sets `save`.
    """

    def __init__(self):
        self.signal = None
        self.save = self.training = False

    def __enter__(self):
        self._reading, writing = os.pipe()
        self._writing = writing
        os.set_blocking(writing, False)
        self._wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._handlers = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, self._ask_to_save)}
        for number in ENDING:
            before = signal.signal(number, self._ask_to_end)
            if number == signal.SIGHUP and before == signal.SIG_IGN:  # under nohup
                signal.signal(number, before)
            self._handlers[number] = before
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)  # the thread reads the end of the pipe and closes its own

    def __bool__(self):
        return self.signal is not None

    def agreed(self, ranks):
        """(whether to stop, whether to save), over all ranks: a signal to one of them counts for all."""
        leave, save = ranks.all_reduce_max(self.signal or 0, self.save)
        if leave:
            self.signal = self.signal or int(leave)
        return bool(leave), bool(save)

    @property
    def exit_code(self):
        return 128 + self.signal if self.signal else 0

    def _ask_to_save(self, number, frame):
        self.save = True

    def _ask_to_end(self, number, frame):
        if self.signal:
            return
        self.signal = number
        name = signal.Signals(number).name
        if not self.training:
            say(f"{name}: nothing has been trained yet", "stderr")
            raise SystemExit(self.exit_code)
        say(f"\n{name}: saving after this step; once more to leave at once", "stderr")

    def _watch(self):
        first = None
        while arrived := os.read(self._reading, 1):
            if arrived[0] in ENDING:
                first = first or time.monotonic()
                if time.monotonic() - first > TWICE:
                    os._exit(128 + arrived[0])
        os.close(self._reading)
