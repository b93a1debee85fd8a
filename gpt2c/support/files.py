"""Opening the files a user names; replacing a file so that a crash leaves either the old or the new one."""

import os
import re
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path

from gpt2c.errors import InputError, ResourceError, UsageError

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

    If anything goes wrong before, `path` stays as it was and nothing is left behind. `size` is the number of
    bytes to come, where it is known: a disk without that much room is refused at once.
    """
    require_place(path)
    path = Path(os.path.realpath(path))  # through symbolic links, so that the link stays a link
    folder = path.parent
    if size is not None and (free := shutil.disk_usage(folder).free) < size:
        raise ResourceError(f"cannot write {path}: {size:,} bytes are needed, {free:,} available; free some")

    temporary = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except BaseException as error:  # an interrupt as well: the temporary file never stays
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error
        raise


def shipped_data():
    """The folder of the data that come with gpt2c: data/ of the source tree, or its copy in a wheel."""
    package = Path(__file__).parents[1]
    source = package.parent / "data"
    return source if (source / "make_stories.py").exists() else package / "shipped"


def second_name(path, name):
    """Gives a file another name in its folder as well, which takes no room; a copy where the file system has no links."""
    path = Path(path)
    other = path.with_name(name)
    if other.exists() and other.samefile(path):
        return
    temporary = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(path, temporary)
        os.replace(temporary, other)
    except OSError:
        temporary.unlink(missing_ok=True)
        with open_input(path) as old, atomic_write(other, path.stat().st_size) as new:
            shutil.copyfileobj(old, new)


def _sync_folder(folder):
    """Put the folder's entries on the disk: without this a rename may be lost when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder, beginning=""):
    """Delete the temporary files that a killed `atomic_write` has left of files whose names begin so."""
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(rf"\.{re.escape(beginning)}.*\.[0-9a-f]{{8}}\.tmp", path.name):
            path.unlink(missing_ok=True)
