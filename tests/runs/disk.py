"""A disk that fails when it is told to, or that remembers every operation so that a power loss can be played.

Both stand between `gpt2c.support.files` and the system: opening, writing, syncing, renaming and deleting.
"""

import errno
import io
import os
from contextlib import contextmanager
from pathlib import Path

import gpt2c.runs.folder
import gpt2c.support.files


class Watched(io.RawIOBase):
    """A file open for writing whose writes and errors go through a disk."""

    def __init__(self, disk, path, descriptor):
        self.disk, self.path, self.descriptor = disk, path, descriptor

    def writable(self):
        return True

    def fileno(self):
        return self.descriptor

    def write(self, data):
        return self.disk.write(self, bytes(data))

    def close(self):
        if not self.closed:
            os.close(self.descriptor)
            super().close()


class Disk:
    """Does what it is asked; a subclass may fail or take notes in `on`."""

    def __init__(self):
        self.paths = {}  # of descriptors
        self.real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "unlink")}

    @contextmanager
    def mounted(self, monkeypatch):
        with monkeypatch.context() as patch:
            for name in self.real:
                patch.setattr(os, name, getattr(self, name))
            patch.setattr(gpt2c.support.files, "open", self.opened, raising=False)
            yield self

    def on(self, operation, *details):
        """Called before each operation."""

    def opened(self, path, mode="r", opener=None, **how):
        if "r" in mode:
            return open(path, mode, opener=opener, **how)
        return io.BufferedWriter(Watched(self, str(path), opener(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)), 512)

    def open(self, path, flags, mode=0o777, **how):
        writing = bool(flags & os.O_CREAT)
        if writing:
            self.on("open", str(path))
        descriptor = self.real["open"](path, flags, mode, **how)
        self.paths[descriptor] = str(path)
        return descriptor

    def write(self, file, data):
        self.on("write", file.path, data)
        return os.write(file.descriptor, data)

    def fsync(self, descriptor):
        self.on("fsync", self.paths[descriptor])
        return self.real["fsync"](descriptor)

    def replace(self, old, new):
        self.on("replace", str(old), str(new))
        return self.real["replace"](old, new)

    def unlink(self, path, **how):
        self.on("unlink", str(path))
        return self.real["unlink"](path, **how)


class FailingDisk(Disk):
    """The k-th operation of a kind fails with an error number; with `short`, half of what is written arrives before."""

    def __init__(self, operation, k, number, short=False):
        super().__init__()
        self.operation, self.left, self.number, self.short = operation, k, number, short
        self.failed = False

    def on(self, operation, *details):
        if operation == self.operation and not self.failed:
            self.left -= 1
            if self.left < 0:
                self.failed = True
                raise OSError(self.number, os.strerror(self.number))

    def write(self, file, data):
        try:
            return super().write(file, data)
        except OSError:
            if not self.short or len(data) < 2:
                raise
            self.short, self.failed = False, False  # this one is short, and the next one fails
            self.left = 0
            return os.write(file.descriptor, data[: len(data) // 2])


class ReadOnlyDisk(Disk):
    """Allows no change, or none of these, while it is `read_only`."""

    def __init__(self, *operations):
        super().__init__()
        self.operations, self.read_only = operations, False

    def on(self, operation, *details):
        if self.read_only and operation in (self.operations or (operation,)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    @contextmanager
    def mounted(self, monkeypatch):
        with super().mounted(monkeypatch), monkeypatch.context() as patch:
            patch.setattr(gpt2c.runs.folder, "open", self.added_to, raising=False)
            yield self

    def added_to(self, path, mode="r", **how):
        self.on("open", str(path))
        return open(path, mode, **how)


class RecordingDisk(Disk):
    """Notes every operation. `after_power_loss` makes the folders that a loss of power can leave behind."""

    def __init__(self):
        super().__init__()
        self.log = []

    def on(self, operation, *details):
        self.log.append((operation, *details))

    def note(self, what):
        """A point in time, among the operations."""
        self.log.append(("note", what))

    def states(self, folder):
        """For each moment: (the notes so far, [the folders {name: bytes} that can then be found]).

        What was fsynced is there. Of the rest of a file nothing, half, zeros of its length, or all may have arrived; of
        the changes to the folder since it was last synced any first part may have.
        """
        files, entries, pending, notes = [], {}, [], []  # files: [written, durable]; entries: {name: index of a file}
        current = {}
        for operation, *details in self.log:
            if operation == "note":
                notes.append(details[0])
            elif operation == "open":
                files.append([b"", b""])
                current[details[0]] = len(files) - 1
                pending.append(("set", details[0], len(files) - 1))
            elif operation == "write":
                files[current[details[0]]][0] += details[1]
            elif operation == "fsync" and Path(details[0]) == Path(folder):
                _apply(entries, pending)
                pending = []
            elif operation == "fsync":
                file = files[current[details[0]]]
                file[1] = file[0]
            elif operation == "replace":
                old, new = details
                current[new] = current.pop(old)
                pending.append(("move", old, new))
            elif operation == "unlink":
                current.pop(details[0], None)
                pending.append(("drop", details[0], None))
            yield list(notes), list(_folders(files, entries, pending))


def _apply(entries, changes):
    for kind, name, other in changes:
        if kind == "set":
            entries[name] = other
        elif kind == "move":
            entries[other] = entries.pop(name)
        else:
            entries.pop(name, None)


def _folders(files, entries, pending):
    for applied in range(len(pending) + 1):
        names = dict(entries)
        _apply(names, pending[:applied])
        for arrived in (_nothing, _half, _zeros, _all):
            yield {name: arrived(*files[index]) for name, index in names.items()}


# What there is after a loss of power of a file of which some was written and some of that is durable.


def _nothing(written, durable):
    return durable


def _half(written, durable):
    return written[: (len(durable) + len(written)) // 2]


def _zeros(written, durable):
    return durable.ljust(len(written), b"\0")


def _all(written, durable):
    return written
