"""Batches of windows at random places, in any text or inside documents.

Batch number k depends on the seed and on k alone: a position is one number, and a resumed run sees the same batches.
"""

import functools

import numpy as np

from gpt2c.data.identity import Identified
from gpt2c.data.shards import copied, expand, map_shard, read_shard
from gpt2c.errors import DataError, UsageError
from gpt2c.support.rng import checked_seed


def random_words(seed, number, count):
    """`count` 64-bit words that depend on the seed and the number alone."""
    return np.random.Philox(key=seed, counter=[0, 0, 0, number]).random_raw(count)


class Positioned(Identified):
    """A loader whose position is the number of the next batch."""

    SETTINGS: tuple[str, ...] = ("B", "T", "rank", "world", "seed", "num_tokens")  # what a saved position depends on

    def __init__(self, B, T, rank, world, seed):
        if min(B, T, world) < 1 or not 0 <= rank < world:
            raise UsageError(
                f"B = {B}, T = {T}, world = {world}, rank = {rank}: the first three must be at "
                "least 1, and the rank from 0 to world - 1"
            )
        self.B, self.T, self.rank, self.world, self.seed = B, T, rank, world, checked_seed(seed)
        self._batch = 0  # of this rank

    def next_batch(self):
        """Inputs and targets, new (B, T) int32 arrays. The ranks take the batches in turn."""
        number = self._batch * self.world + self.rank
        self._batch += 1
        return self._make(number)

    def skip(self):
        """Leaves out a batch."""
        self._batch += 1

    def reset(self):
        """Back to the first batch."""
        self._batch = 0

    def state(self):
        """The position as a dict of ints; `restore` continues from it with the same batches."""
        return {name: int(getattr(self, name)) for name in self.SETTINGS} | {"batch": self._batch}

    def restore(self, state):
        """Go to a position saved by `state` of a loader over the same data with the same settings."""
        now = self.state()
        if state.keys() != now.keys():
            raise UsageError("the saved data position is one of another --order; resume with the same one")
        for name in self.SETTINGS:
            if int(state[name]) != now[name]:
                raise UsageError(
                    f"the saved data position has {name} = {int(state[name])}, this run has {now[name]}; resume "
                    "with the same data and batch settings"
                )
        if not 0 <= int(state["batch"]) < 2**53:  # random_words takes numbers of 64 bits
            raise DataError(f"the saved data position is damaged: batch {int(state['batch'])}")
        self._batch = int(state["batch"])


class RandomWindows(Positioned):
    """Windows of T tokens that begin anywhere in one or many shards. An epoch is as many as cover the tokens once."""

    def __init__(self, files, B, T, rank=0, world=1, seed=1337, vocab_size=None, part=(0, 1)):
        super().__init__(B, T, rank, world, seed)
        self._paths = expand(files)
        self._ranges = []
        for path in self._paths:
            count = len(read_shard(path, vocab_size).tokens)
            self._ranges.append((int(part[0] * count), int(part[1] * count)))
        self.pieces = [(path, *bounds) for path, bounds in zip(self._paths, self._ranges)]
        self.num_tokens = sum(last - first for first, last in self._ranges)
        self.num_batches = max(1, self.num_tokens // (world * B * T))
        self._tokens = functools.lru_cache(64)(lambda shard: map_shard(self._paths[shard]).tokens)
        self._prepare()

    def _prepare(self):
        starts = [max(0, last - first - self.T) for first, last in self._ranges]  # places where a window may begin
        if not any(starts):
            raise DataError(
                f"{self._paths[0]} has {self.num_tokens} tokens, but a window takes T + 1 = {self.T + 1}; choose "
                "a smaller T or use a longer file"
            )
        self._ends = np.cumsum(starts)

    def _make(self, number):
        x = np.zeros((self.B, self.T), np.int32)
        y = np.full((self.B, self.T), -1, np.int32)
        for row, word in enumerate(random_words(self.seed, number, self.B)):
            place = int(word) % int(self._ends[-1])
            shard = int(np.searchsorted(self._ends, place, side="right"))
            window = copied(self._window(shard, place - (int(self._ends[shard - 1]) if shard else 0)))
            x[row, : len(window) - 1], y[row, : len(window) - 1] = window[:-1], window[1:]
        return x, y

    def _window(self, shard, place):
        start = self._ranges[shard][0] + place
        return self._tokens(shard)[start : start + self.T + 1]


class DocumentWindows(RandomWindows):
    """Windows that never reach from one document into the next; documents are taken in proportion to their length.

    A document is a separator and what follows, its last target the next separator. Behind the end of a short one the
    inputs are 0 and the targets -1.
    """

    SETTINGS = (*RandomWindows.SETTINGS, "separator")

    def __init__(self, files, B, T, separator, **options):
        self.separator = separator
        super().__init__(files, B, T, **options)

    def _prepare(self):
        self._documents, sizes = [], []  # per shard: where its documents begin, and its end
        for shard, (first, last) in enumerate(self._ranges):
            tokens = self._tokens(shard)[first:last]
            begins = np.flatnonzero(tokens == self.separator)
            bounds = np.union1d(begins, [0, len(tokens)]) if len(tokens) else np.zeros(1, np.int64)
            self._documents.append(first + bounds)
            sizes.append(max(0, last - first - 1))
        if not any(sizes):
            raise DataError(f"{self._paths[0]} has {self.num_tokens} tokens, expected at least 2")
        self._ends = np.cumsum(sizes)

    def _window(self, shard, place):
        bounds, start = self._documents[shard], self._ranges[shard][0] + place
        document = int(np.searchsorted(bounds, start, side="right")) - 1
        begin, end = int(bounds[document]), min(int(bounds[document + 1]) + 1, self._ranges[shard][1])
        start = max(begin, min(start, end - self.T - 1))
        return self._tokens(shard)[start : min(end, start + self.T + 1)]
