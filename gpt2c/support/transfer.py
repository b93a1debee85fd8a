"""Fetching a file whose size and digest are known: continued where it stopped, and whole once it has its name.

What has come lies in NAME.part. It goes on from there after a lost connection, an interrupt or a crash; when it is whole and
has the digest, it is renamed. Addresses are https://, and so is wherever they lead; a mirror may be file://, or http:// of
this machine.
"""

import hashlib
import os
import re
import shutil
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from gpt2c.errors import InputError, ResourceError, TransferError, UsageError
from gpt2c.support.files import Lock, open_input, require_place, sync_folder
from gpt2c.support.machine import in_units
from gpt2c.support.progress import Progress
from gpt2c.support.streams import say
from gpt2c.support.version import __version__

TRIES = 20  # connections, as long as each of them brings something
PAUSE = 1  # seconds between them
TIMEOUT = 30  # seconds without a byte
BLOCK = 2**18  # bytes
HERE = "127.0.0.1", "localhost", "::1"
ANEW = 416  # HTTP: nothing at that offset


def fetch(address, path, size, sha256, overwrite=False):
    """The file of this size and digest at `address` becomes `path`. False if it was there already."""
    require_place(path)
    _require_safe(address)
    path = Path(os.path.realpath(path))
    lock = Lock(path)
    try:
        if not lock.take():
            raise UsageError(f"{path} is being fetched by another process: wait for it")
        if path.exists():
            if _has(path, size, sha256):
                return False
            if not overwrite:
                raise InputError(f"{path} is another file than the one to fetch: move it away, or add --overwrite")
        _fetch_part(address, path, size, sha256)
        os.replace(part_of(path), path)
        sync_folder(path.parent)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        del lock  # which the traceback of an error would keep
    return True


def part_of(path):
    """The path of what has come of a file so far."""
    path = Path(os.path.realpath(path))
    return path.with_name(f"{path.name}.part")


def _fetch_part(address, path, size, sha256):
    """Completes what has come of the file at `path`, checks it, and puts it on the disk. A part without a byte goes."""
    name = part_of(path)
    with open(name, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o644)) as file:
        part = _Part(file, size)
        try:
            _require_room(path, size - part.done)
            _receive(address, part)
            if (found := part.digest.hexdigest()) != sha256:
                part.begin_anew()
                raise InputError(f"what came from {address} has the sha256 {found} instead of {sha256}; it was deleted")
            os.fsync(file.fileno())
        finally:
            if not part.done:
                name.unlink()


class _Part:
    """What has come of a file of `size` bytes: it is written to `file`, counted, and its digest taken."""

    def __init__(self, file, size):
        self._file, self.size = file, size
        self.done, self.digest = 0, hashlib.sha256()
        if os.fstat(file.fileno()).st_size > size:  # no beginning of this file
            self.begin_anew()
        while block := file.read(BLOCK):
            self._count(block)

    def begin_anew(self):
        self._file.seek(0)
        self._file.truncate()
        self.done, self.digest = 0, hashlib.sha256()

    def add(self, block):
        """Unbuffered, so that it stays whatever happens next."""
        self._file.write(block)
        self._file.flush()
        self._count(block)

    def _count(self, block):
        self.done += len(block)
        self.digest.update(block)


class _LostError(Exception):
    """A connection that ended early, or was never made."""


def _receive(address, part):
    """Fetches what is missing of a part, with as many connections as it takes."""
    for number in range(TRIES):
        if part.done == part.size:
            return
        before, why = part.done, "the connection was closed early"
        try:
            _connect(address, part)
        except _LostError as lost:
            why = str(lost)
        if part.done == before or number == TRIES - 1 and part.done < part.size:
            raise TransferError(f"cannot fetch {address}: {why}")
        if part.done < part.size:
            time.sleep(PAUSE)


def _connect(address, part):
    """Adds to a part what one connection brings."""
    headers = {"User-Agent": f"gpt2c/{__version__}", "Accept-Encoding": "identity"}
    if part.done:
        headers["Range"] = f"bytes={part.done}-"
    opener = build_opener(_Redirects)
    try:
        with opener.open(Request(address, headers=headers), timeout=TIMEOUT) as response:
            _place(address, response, part)
            progress = Progress("fetching", part.size, part.done)
            try:
                while block := _read(response):
                    if part.done + len(block) > part.size:
                        raise TransferError(f"{address} sends more than the {part.size:,} bytes that the file has")
                    part.add(block)
                    progress.update(part.done)
            finally:
                progress.end()
    except HTTPError as error:
        if error.code != ANEW or not part.done:
            raise TransferError(f"cannot fetch {address}: it answers HTTP {error.code}") from error
        part.begin_anew()
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _LostError(_why(error)) from error


def _read(response):
    try:
        return response.read(BLOCK)
    except (OSError, HTTPException) as error:
        raise _LostError(_why(error)) from error


def _why(error):
    """The system's words for it, where there are any."""
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _place(address, response, part):
    """Makes sure that what follows is the rest of this file, or all of it."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch("[0-9]{1,18}", length) else part.size
    continued = getattr(response, "status", None) == 206  # a file has none
    if continued:
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != part.done:
            raise TransferError(f"{address} answers with another part of the file than it was asked for")
        total = int(found[2])
    if total != part.size:
        raise TransferError(f"{address} has {total:,} bytes, expected {part.size:,}: it is another file")
    if part.done and not continued:
        say(f"{address} cannot continue a file: it is fetched from its beginning", "stderr")
        part.begin_anew()


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, address):
        """To https:// alone, or to where it came from."""
        if _origin(address) != _origin(request.full_url) and urlsplit(address).scheme != "https":
            raise TransferError(f"{request.full_url} leads to {address}, which is not https://: it is not followed")
        return super().redirect_request(request, response, code, message, headers, address)


def _origin(address):
    return urlsplit(address)[:2]


def _require_safe(address):
    parts = urlsplit(address)
    if parts.scheme not in ("https", "file") and not (parts.scheme == "http" and parts.hostname in HERE):
        raise UsageError(f"{address} is not https://, nor file://: files are fetched over encrypted connections alone")


def _require_room(path, missing):
    if (free := shutil.disk_usage(path.parent).free) < missing:
        raise ResourceError(f"cannot fetch {path}: {in_units(missing)} are needed, {in_units(free)} available; free some")


def _has(path, size, sha256):
    """Whether the file of this name is the one of this size and digest."""
    with open_input(path) as file:
        return os.fstat(file.fileno()).st_size == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256
