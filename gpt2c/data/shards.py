"""Token files: three formats, described in data/README.md. A shard is memory mapped, so the disk bounds its size."""

import glob
import mmap
import os
from typing import NamedTuple

import numpy as np

from gpt2c.errors import DataError, UsageError
from gpt2c.formats.llmc import KINDS
from gpt2c.support.files import atomic_write, open_input

HEADER_BYTES = 1024  # 256 int32: magic, version, number of tokens, zeros
SHARD_FORMATS = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}  # magic: (version, id type)
GPT2_VOCAB = 50257
MAX_IDS = 2**31  # ids are served as int32, and a header counts tokens in one
SCAN = 1 << 22  # tokens looked at together when ids are checked


class Shard(NamedTuple):
    path: str
    magic: int | None  # None: a headerless int32 file
    tokens: np.memmap  # (n,) uint16, uint32 or int32, read-only


def read_shard(path, vocab_size=None):
    """Open a token file of any of the three formats and check all of it, ids included."""
    shard = map_shard(path)
    _check_ids(shard, vocab_size or (GPT2_VOCAB if shard.magic is None else MAX_IDS))
    return shard


def is_token_file(path):
    """Whether a file is meant to hold tokens: by its name, or because it begins with numbers rather than text."""
    if os.fspath(path).endswith(".bin"):
        return True
    with open_input(path) as file:
        return b"\0" in file.read(64)


def map_shard(path):
    """The shard with its header and size checked, its ids not yet."""
    with open_input(path) as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
        magic, version, count = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
        if magic in SHARD_FORMATS:
            expected_version, dtype = SHARD_FORMATS[magic]
            expected_size = HEADER_BYTES + count * dtype.itemsize
            if version != expected_version:
                raise DataError(f"{path} is a token shard of version {version}, expected {expected_version}; make it again")
            if count < 1:
                raise DataError(f"{path} declares {count} tokens, expected at least 1; make it again")
            if size != expected_size:
                raise DataError(
                    f"{path} has {size} bytes, but its header declares {count} tokens, which "
                    f"take {expected_size}; copy or make it again"
                )
            return Shard(path, magic, np.memmap(file, dtype, "r", HEADER_BYTES, (count,)))
        if magic in KINDS:
            raise DataError(f"{path} is {KINDS[magic]} (magic {magic}), not a token file; give a file of tokens (data/README.md)")
        if b"\0" not in head:  # any id below 2**24 has a zero byte
            raise DataError(
                f"{path} is not a token file: its {size} bytes begin with {head[:24]}, where "
                "token ids should be (data/README.md); if that is a web page, the download failed"
            )
        if size % 4:
            raise DataError(
                f"{path} is not a token file: it begins with {magic}, not with 20240520 or "
                f"20240801 as a shard does, and its {size} bytes are not whole int32 ids"
            )
        return Shard(path, None, np.memmap(file, "<i4", "r", 0, (size // 4,)))


def copied(tokens):
    """A piece of a shard's tokens as an array of int32.

    Where the file has been cut since it was mapped, its end is no longer there, and the system ends who touches it.
    """
    base = tokens
    while not isinstance(base, mmap.mmap):
        base = base.base
    if base.size() < len(base):
        raise DataError(
            f"{tokens.filename} has {base.size()} bytes, but had {len(base)} when it was opened; make it again, and "
            "let nothing write to it during a run"
        )
    return np.array(tokens, np.int32)


def _check_ids(shard, limit):
    """Refuse a shard with an id outside [0, limit), looking at a bounded piece at a time."""
    if shard.tokens.dtype.kind == "u" and np.iinfo(shard.tokens.dtype).max < limit:
        return
    for start in range(0, len(shard.tokens), SCAN):
        piece = shard.tokens[start : start + SCAN]
        if piece.min() < 0 or piece.max() >= limit:
            at = int(np.flatnonzero((piece < 0) | (piece >= limit))[0])
            kind = "headerless int32" if shard.magic is None else piece.dtype.name
            raise DataError(
                f"{shard.path} ({kind}) has id {piece[at]} at position {start + at}, expected "
                f"ids from 0 to {limit - 1}; use the vocabulary the file was made with"
            )


def write_shard(path, tokens, dtype=None):
    """Write ids as a shard with header: uint16, or uint32 where an id needs it or `dtype` asks for it."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not 0 < tokens.size < MAX_IDS:
        raise UsageError(
            f"a shard is one row of 1 to {MAX_IDS - 1} integer ids, got shape {tokens.shape} of "
            f"{tokens.dtype}; split longer data into several shards"
        )
    low, high = int(tokens.min()), int(tokens.max())
    dtype = np.dtype(dtype or (np.uint16 if high < 2**16 else np.uint32))
    magic = {np.dtype("u2"): 20240520, np.dtype("u4"): 20240801}.get(dtype)
    if magic is None:
        raise UsageError(f"a shard holds uint16 or uint32 ids, not {dtype}")
    stored = SHARD_FORMATS[magic][1]
    limit = min(np.iinfo(dtype).max + 1, MAX_IDS)
    if low < 0 or high >= limit:
        raise UsageError(f"the ids run from {low} to {high}, but a {dtype} shard holds 0 to {limit - 1}")
    with atomic_write(path, HEADER_BYTES + tokens.size * stored.itemsize) as file:
        file.write(_header(magic, tokens.size))
        file.write(tokens.astype(stored))


def _header(magic, count):
    header = np.zeros(256, "<i4")
    header[:3] = magic, SHARD_FORMATS[magic][0], count
    return header


class ShardWriter:
    """A shard that grows: `write` ids, then `finish`. Until then its header declares no token, and no reader takes it."""

    def __init__(self, path, vocab_size):
        self.path, self.count = path, 0
        self._magic = 20240520 if vocab_size <= 2**16 else 20240801
        self._dtype = SHARD_FORMATS[self._magic][1]
        self._file = open(path, "xb")
        self._file.write(_header(self._magic, 0))

    def write(self, ids):
        self._file.write(np.asarray(ids).astype(self._dtype))
        self.count += len(ids)

    def finish(self):
        self._file.seek(0)
        self._file.write(_header(self._magic, self.count))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self):
        self._file.close()


def expand(files):
    """A path, a glob pattern or a list of paths as a list of paths."""
    if not isinstance(files, (str, os.PathLike)):
        paths = [os.fspath(path) for path in files]
    elif os.path.exists(files):
        paths = [os.fspath(files)]
    else:
        paths = sorted(glob.glob(os.fspath(files)))
    if not paths:
        raise DataError(f"no file matches {str(files)!r}; name a file or a pattern")
    return paths
