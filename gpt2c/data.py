"""Token files: reading and writing shards, serving batches from them, finding data sets below a folder.

Every format is described in data/README.md. A shard is memory mapped, so its size is bounded by the disk; the
batches and their order, shuffled or not, on one rank or many, are llm.c's.
"""

import difflib
import fnmatch
import glob
import os
from collections import Counter
from typing import NamedTuple

import numpy as np

from gpt2c.errors import InputError, UsageError
from gpt2c.files import atomic_write, open_input
from gpt2c.llmc import KINDS
from gpt2c.rng import Mt19937

HEADER_BYTES = 1024  # 256 int32: magic, version, number of tokens, zeros
SHARD_FORMATS = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}  # magic: (version, id type)
GPT2_VOCAB = 50257
MAX_IDS = 2**31  # ids are served as int32, and a header counts tokens in one
SCAN = 1 << 22  # tokens looked at together when ids are checked
TRAIN = "_train.bin"


# ---- shards


class Shard(NamedTuple):
    path: str
    magic: int | None  # None: a headerless int32 file
    tokens: np.memmap  # (n,) uint16, uint32 or int32, read-only


def read_shard(path, vocab_size=None):
    """Open a token file of any of the three formats and check all of it, ids included."""
    shard = _map_shard(path)
    _check_ids(shard, vocab_size or (GPT2_VOCAB if shard.magic is None else MAX_IDS))
    return shard


def _map_shard(path):
    """The shard with its header and size checked, its ids not yet."""
    with open_input(path) as file:
        head = file.read(64)
        size = os.fstat(file.fileno()).st_size
        magic, version, count = np.frombuffer(head[:12].ljust(12, b"\0"), "<i4").tolist()
        if magic in SHARD_FORMATS:
            expected_version, dtype = SHARD_FORMATS[magic]
            expected_size = HEADER_BYTES + count * dtype.itemsize
            if version != expected_version:
                raise InputError(f"{path} is a token shard of version {version}, expected "
                                 f"{expected_version}; make it again")
            if count < 1:
                raise InputError(f"{path} declares {count} tokens, expected at least 1; make it again")
            if size != expected_size:
                raise InputError(f"{path} has {size} bytes, but its header declares {count} tokens, which "
                                 f"take {expected_size}; copy or make it again")
            return Shard(path, magic, np.memmap(file, dtype, "r", HEADER_BYTES, (count,)))
        if magic in KINDS:
            raise InputError(f"{path} is {KINDS[magic]} (magic {magic}), not a token file; "
                             "give a file of tokens (data/README.md)")
        if b"\0" not in head:  # any id below 2**24 has a zero byte
            raise InputError(f"{path} is not a token file: its {size} bytes begin with {head[:24]}, where "
                             "token ids should be (data/README.md); if that is a web page, the download failed")
        if size % 4:
            raise InputError(f"{path} is not a token file: it begins with {magic}, not with 20240520 or "
                             f"20240801 as a shard does, and its {size} bytes are not whole int32 ids")
        return Shard(path, None, np.memmap(file, "<i4", "r", 0, (size // 4,)))


def _check_ids(shard, limit):
    """Refuse a shard with an id outside [0, limit), looking at a bounded piece at a time."""
    if shard.tokens.dtype.kind == "u" and np.iinfo(shard.tokens.dtype).max < limit:
        return
    for start in range(0, len(shard.tokens), SCAN):
        piece = shard.tokens[start : start + SCAN]
        if piece.min() < 0 or piece.max() >= limit:
            at = int(np.flatnonzero((piece < 0) | (piece >= limit))[0])
            kind = "headerless int32" if shard.magic is None else piece.dtype.name
            raise InputError(f"{shard.path} ({kind}) has id {piece[at]} at position {start + at}, expected "
                             f"ids from 0 to {limit - 1}; use the vocabulary the file was made with")


def write_shard(path, tokens, dtype=None):
    """Write ids as a shard with header: uint16, or uint32 where an id needs it or `dtype` asks for it."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not 0 < tokens.size < MAX_IDS:
        raise UsageError(f"a shard is one row of 1 to {MAX_IDS - 1} integer ids, got shape {tokens.shape} of "
                         f"{tokens.dtype}; split longer data into several shards")
    low, high = int(tokens.min()), int(tokens.max())
    dtype = np.dtype(dtype or (np.uint16 if high < 2**16 else np.uint32))
    magic = {np.dtype("u2"): 20240520, np.dtype("u4"): 20240801}.get(dtype)
    if magic is None:
        raise UsageError(f"a shard holds uint16 or uint32 ids, not {dtype}")
    version, stored = SHARD_FORMATS[magic]
    limit = min(np.iinfo(dtype).max + 1, MAX_IDS)
    if low < 0 or high >= limit:
        raise UsageError(f"the ids run from {low} to {high}, but a {dtype} shard holds 0 to {limit - 1}")
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, tokens.size
    with atomic_write(path, HEADER_BYTES + tokens.size * stored.itemsize) as file:
        file.write(header)
        file.write(tokens.astype(stored))


# ---- batches


class DataLoader:
    """Batches of B x T tokens from one or many shards, in llm.c's order.

    A shard of n tokens is cut into (n - 1) // (world * B * T) windows; each rank reads its own B * T tokens
    of a window, and one more for the targets. With `shuffle` each epoch has a new order of shards, and of
    windows inside each shard. `files` is a path, a glob pattern or a list of paths; `part` is the range of each
    shard that is served, as fractions.
    """

    SETTINGS = ("B", "T", "rank", "world", "shuffle", "num_tokens")  # what a saved position depends on

    def __init__(self, files, B, T, rank=0, world=1, shuffle=False, vocab_size=None, part=(0, 1)):
        if min(B, T, world) < 1 or not 0 <= rank < world:
            raise UsageError(f"B = {B}, T = {T}, world = {world}, rank = {rank}: the first three must be at "
                             "least 1, and the rank from 0 to world - 1")
        self.B, self.T, self.rank, self.world, self.shuffle = B, T, rank, world, bool(shuffle)
        self.paths = _expand(files)
        self._window = world * B * T  # tokens all ranks advance together
        self._part = part
        self._counts = [len(self._served(read_shard(path, vocab_size).tokens)) for path in self.paths]
        for path, count in zip(self.paths, self._counts):
            if count <= self._window:
                raise InputError(f"{path} has {count} tokens, but a batch takes world * B * T + 1 = "
                                 f"{self._window + 1}; choose B * T of at most {(count - 1) // world} "
                                 "or use a longer file")
        self.num_tokens = sum(self._counts)
        self.num_batches = sum((count - 1) // self._window for count in self._counts)  # per rank and epoch
        self._rng = Mt19937(42 + rank)
        self._shard_order = np.arange(len(self.paths), dtype=np.int32)
        self.reset()

    def reset(self):
        """Begin an epoch; a shuffled loader draws the next order, it does not return to the first."""
        self._shard = self._sample = 0
        if self.shuffle:
            self._shard_order = self._shard_order[self._rng.random_permutation(len(self.paths))]
        self._open_shard()

    def next_batch(self):
        """Inputs and targets, new (B, T) int32 arrays; after the last batch of an epoch the next begins."""
        if self._sample == len(self._order):
            if self._shard + 1 == len(self.paths):
                self.reset()
            else:
                self._shard, self._sample = self._shard + 1, 0
                self._open_shard()
        size = self.B * self.T
        start = int(self._order[self._sample]) * self._window + self.rank * size
        self._sample += 1
        x, y = (np.array(self._tokens[at : at + size], np.int32) for at in (start, start + 1))
        return x.reshape(self.B, self.T), y.reshape(self.B, self.T)

    def state(self):
        """The position as a dict of ints and arrays; `restore` continues from it with the same batches."""
        settings = {name: int(getattr(self, name)) for name in self.SETTINGS}
        return settings | {"shard": self._shard, "sample": self._sample,
                           "shard_order": self._shard_order.copy(), "rng": self._rng_at_open}

    def restore(self, state):
        """Go to a position saved by `state` of a loader over the same data with the same settings."""
        for name in self.SETTINGS:
            if int(state[name]) != getattr(self, name):
                raise UsageError(f"the saved data position has {name} = {int(state[name])}, this run has "
                                 f"{int(getattr(self, name))}; resume with the same data and batch settings")
        shard, sample = int(state["shard"]), int(state["sample"])
        order = np.array(state["shard_order"], np.int32)
        if not 0 <= shard < len(self.paths) or sorted(order.tolist()) != list(range(len(self.paths))):
            raise InputError(f"the saved data position is damaged: shard {shard} of {order.tolist()}, "
                             f"expected an order of {len(self.paths)} shards")
        windows = (self._counts[order[shard]] - 1) // self._window
        if not 0 <= sample <= windows:
            raise InputError(f"the saved data position is damaged: batch {sample} of a shard with {windows}")
        self._rng.state = state["rng"]
        self._shard, self._sample, self._shard_order = shard, sample, order
        self._open_shard()

    def _served(self, tokens):
        """The part of a shard's tokens that this loader serves."""
        first, last = (int(fraction * len(tokens)) for fraction in self._part)
        return tokens[first:last]

    def _open_shard(self):
        """Map the current shard, one at a time so that thousands do not use up the file handles."""
        index = self._shard_order[self._shard]
        self._tokens = self._served(_map_shard(self.paths[index]).tokens)
        if len(self._tokens) != self._counts[index]:
            raise InputError(f"{self.paths[index]} changed during the run from {self._counts[index]} to "
                             f"{len(self._tokens)} tokens; start again with the new file")
        windows = (len(self._tokens) - 1) // self._window
        self._rng_at_open = self._rng.state  # enough to draw this shard's order again
        self._order = self._rng.random_permutation(windows) if self.shuffle else range(windows)


def _expand(files):
    """A path, a glob pattern or a list of paths as a list of paths."""
    if not isinstance(files, (str, os.PathLike)):
        paths = [os.fspath(path) for path in files]
    elif os.path.exists(files):
        paths = [os.fspath(files)]
    else:
        paths = sorted(glob.glob(os.fspath(files)))
    if not paths:
        raise InputError(f"no file matches {str(files)!r}; give a token file, a glob pattern or a list")
    return paths


# ---- discovery


class Dataset(NamedTuple):
    name: str
    train: str
    val: str | None
    tokenizer: str | None


def find_datasets(root):
    """Every NAME_train.bin below the folder, by name, then path; a name used twice becomes FOLDER/NAME."""
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder already visited
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        paths = [os.path.join(folder, file) for file in fnmatch.filter(files, f"?*{TRAIN}")]
        found += [_dataset(path, root) for path in paths if os.path.isfile(path)]
    found.sort(key=lambda dataset: (dataset.name, dataset.train))
    uses = Counter(dataset.name for dataset in found)
    return [dataset if uses[dataset.name] == 1
            else dataset._replace(name=os.path.relpath(dataset.train, root).removesuffix(TRAIN))
            for dataset in found]


def _dataset(train, root):
    """The data set of one training file: what lies beside it, or for GPT-2 ids GPT-2's tokenizer near by."""
    stem = train.removesuffix(TRAIN)
    tokenizer, val = f"{stem}_tokenizer.bin", f"{stem}_val.bin"
    if not os.path.isfile(tokenizer):
        folder = os.path.dirname(train)
        tokenizer = find_gpt2_tokenizer(folder, root, os.path.join(root, os.pardir)) if _may_hold_gpt2_ids(train) else None
    return Dataset(os.path.basename(stem), train, val if train.endswith(TRAIN) and os.path.isfile(val) else None, tokenizer)


def dataset_of(files):
    """The data set of a training file, or of those that match a pattern."""
    first = _dataset(_expand(files)[0], os.path.dirname(files))
    val = files.removesuffix(TRAIN) + "_val.bin"
    return first._replace(train=files, val=val if files.endswith(TRAIN) and glob.glob(val) else None)


def find_gpt2_tokenizer(*folders):
    """gpt2_tokenizer.bin in one of these folders, here, or in data/; None if it is in none of them."""
    places = [os.path.normpath(os.path.join(folder, "gpt2_tokenizer.bin")) for folder in (*folders, "", "data")]
    return next(filter(os.path.isfile, places), None)


def _may_hold_gpt2_ids(path):
    """By its first int32: a uint16 shard, or a headerless file that begins with a GPT-2 id."""
    try:
        first = np.fromfile(path, "<i4", 1)
    except OSError:  # listing data sets must not stop at an unreadable one
        return False
    return first.size == 1 and (first[0] == 20240520 or 0 <= first[0] < GPT2_VOCAB)


def choose_dataset(datasets, choice):
    """The data set with this name, this number in `list_datasets`, or this training file."""
    for dataset in datasets:
        if choice == dataset.name:
            return dataset
    if choice.isdecimal() and int(choice) < len(datasets):
        return datasets[int(choice)]
    if os.path.isfile(choice):
        return next((dataset for dataset in datasets if os.path.samefile(choice, dataset.train)), dataset_of(choice))
    names = [dataset.name for dataset in datasets]
    near = difflib.get_close_matches(choice, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names) or 'none'}"
    raise UsageError(f"there is no data set {choice!r}; {hint}")


def list_datasets(datasets):
    """What was found, as text; the numbers are those that `choose_dataset` takes."""
    lines = ["Available datasets:"]
    for i, dataset in enumerate(datasets):
        lines += [f"  {i}: {dataset.name}",
                  f"    Train: {dataset.train}",
                  f"    Val:   {dataset.val or 'none'}"]
    return "\n".join(lines)
