"""Opening the files a user names; replacing a file so that a crash leaves either the old or the new one; locks."""

import fcntl
import os
import re
import shutil
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2c.errors import InputError, ResourceError, UsageError
from gpt2c.support.progress import watched

StrPath = str | os.PathLike[str]


@contextmanager
def open_input(path):
    """Yield the regular file `path`, open for reading bytes."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a pipe: open() would wait for it
            raise InputError(f"{path} is not a regular file: name the file itself")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def find_file(name, *folders):
    """The path of the file of this name in one of these folders, here, or in data/; None if it is in none of them."""
    places = [os.path.normpath(os.path.join(folder, name)) for folder in (*folders, "", "data")]
    return next(filter(os.path.isfile, places), None)


def require_place(path):
    """An error if no file can be written at `path`: to know before the work for it begins."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write {path}: it exists and is not a regular file; choose another name")


@contextmanager
def atomic_write(path, size=None):
    """Yield a temporary file to write bytes to, which is fsynced and renamed to `path` once it is complete.

    If anything goes wrong before, `path` stays as it was and nothing is left behind, unless the disk allows no change any more.
    `size` is the number of bytes to come, where it is known: a disk without that much room is refused at once.
    """
    require_place(path)
    path = Path(os.path.realpath(path))  # through symbolic links, so that the link stays a link
    folder = path.parent
    temporary = temporary_beside(path)
    try:
        if size is not None and (free := shutil.disk_usage(folder).free) < size:
            raise ResourceError(f"cannot write {path}: {size:,} bytes are needed, {free:,} available; free some")
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
            with watched(file, path.name, size) as shown:
                yield shown
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException as error:  # an interrupt as well: the temporary file never stays
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        raise


@contextmanager
def atomic_folder(path, may_go=None):
    """Yield a temporary folder to write files to, which takes the name `path` once it is complete.

    If anything goes wrong before, `path` stays as it was and nothing is left behind. An existing folder must be empty, or
    may_go(name) true of all that is in it: then it is removed afterwards. A crash between the two renames of that leaves the
    old one and the new one under names of their own beside it.
    """
    path = Path(os.path.realpath(path))
    require_folder_place(path, may_go)
    temporary, old = temporary_beside(path), temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        if path.is_dir() and any(path.iterdir()):
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync_folder(path.parent)
    except BaseException as error:  # an interrupt as well: the temporary folder never stays
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_folder_place(path, may_go=None):
    """An error if no folder can be written at `path` (atomic_folder)."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"cannot write {path}: it is a file; choose another name")
    names = sorted(entry.name for entry in path.iterdir())
    if names and not may_go:
        raise UsageError(f"cannot write {path}: it is not empty; choose another folder, or overwrite it")
    if others := [name for name in names if not may_go(name) or not (path / name).is_file()]:
        raise UsageError(f"cannot overwrite {path}: {others[0]!r} in it is no part of a model; choose another folder")


def temporary_beside(path):
    """A new name for what becomes this file; `remove_leftovers` knows it again."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def shipped_data():
    """The folder of the data that come with gpt2c: data/ of the source tree, or its copy in a wheel."""
    package = Path(__file__).parents[1]
    source = package.parent / "data"
    return source if (source / "make_stories.py").exists() else package / "shipped"


def second_name(path, name):
    """Gives a file another name in its folder as well, which takes no room; a copy where the file system has no links."""
    path = Path(path)
    other = path.with_name(name)
    temporary = temporary_beside(other)
    try:
        if other.exists() and other.samefile(path):
            return
        os.link(path, temporary)
        os.replace(temporary, other)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        with open_input(path) as old, atomic_write(other, os.fstat(old.fileno()).st_size) as new:
            shutil.copyfileobj(old, new)


def sync_folder(folder):
    """Put the folder's entries on the disk: without this a rename may be lost when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder, is_ours):
    """Delete the temporary files that a killed `atomic_write` has left of files whose names are ours."""
    for path in Path(folder).glob(".*.tmp"):
        found = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", path.name)
        if found and is_ours(found[1]):
            with suppress(OSError):  # it is only litter
                path.unlink()


class Lock:
    """What one process at a time has: a folder, or a file, for which an empty .NAME.lock lies beside it meanwhile.

    It is held as long as this object lives, and ends with the process however that ends. On a file system without locks
    everybody has it.
    """

    def __init__(self, path):
        self._is_folder = os.path.isdir(path)
        path = Path(path if self._is_folder else os.path.realpath(path))
        self._path = path if self._is_folder else path.with_name(f".{path.name}.lock")
        self.folder = path if self._is_folder else path.parent
        self._descriptor = None

    @property
    def held(self):
        """Whether it is, and what it locks is still there."""
        return self._descriptor is not None and _is_at(self._descriptor, self._path)

    def take(self):
        """False if another process has it."""
        flags = os.O_RDONLY if self._is_folder else os.O_RDWR | os.O_CREAT
        while not self.held:  # its holder may let it go, and remove it, between these two steps
            if self._descriptor is not None:
                self._let_go()
            self._descriptor = os.open(self._path, flags, 0o644)
            self._let_go = weakref.finalize(self, _let_go, self._descriptor, None if self._is_folder else self._path)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._let_go.detach()
                os.close(self._descriptor)
                self._descriptor = None
                return False
            except OSError:  # a file system without locks
                return True
        return True


def _let_go(descriptor, path):
    """Ends a lock, and removes its file first: whoever has opened it sees then that it is another one."""
    with suppress(OSError):
        if path and _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _is_at(descriptor, path):
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
