"""Batches from token files in llm.c's order: shuffled or not, on one rank or many."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2c.data.identity import Identified
from gpt2c.data.shards import copied, expand, map_shard, read_shard
from gpt2c.errors import DataError, UsageError
from gpt2c.support.files import StrPath
from gpt2c.support.rng import Mt19937


class DataLoader(Identified):
    """Batches of B x T tokens from one or many shards, in llm.c's order.

    A shard of n tokens is cut into (n - 1) // (world * B * T) windows; each rank reads its own B * T tokens
    of a window, and one more for the targets. With `shuffle` each epoch has a new order of shards, and of
    windows inside each shard. `files` is a path, a glob pattern or a list of paths; `part` is the range of each
    shard that is served, as fractions.
    """

    SETTINGS: tuple[str, ...] = ("B", "T", "rank", "world", "shuffle", "num_tokens")  # what a saved position depends on

    def __init__(
        self,
        files: StrPath | Sequence[StrPath],
        B: int,
        T: int,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = False,
        vocab_size: int | None = None,
        part: tuple[float, float] = (0, 1),
    ) -> None:
        if min(B, T, world) < 1 or not 0 <= rank < world:
            raise UsageError(
                f"B = {B}, T = {T}, world = {world}, rank = {rank}: the first three must be at "
                "least 1, and the rank from 0 to world - 1"
            )
        self.B, self.T, self.rank, self.world, self.shuffle = B, T, rank, world, bool(shuffle)
        self.paths = expand(files)
        self._window = world * B * T  # tokens all ranks advance together
        self._part = part
        self.pieces = [(path, *self._range(len(read_shard(path, vocab_size).tokens))) for path in self.paths]
        self._counts = [last - first for _, first, last in self.pieces]
        for path, count in zip(self.paths, self._counts):
            if count <= self._window:
                raise DataError(
                    f"{path} has {count} tokens, but a batch takes world * B * T + 1 = "
                    f"{self._window + 1}; choose B * T of at most {(count - 1) // world} "
                    "or use a longer file"
                )
        self.num_tokens = sum(self._counts)
        self.num_batches = sum((count - 1) // self._window for count in self._counts)  # per rank and epoch
        self._rng = Mt19937(42 + rank)
        self._shard_order = np.arange(len(self.paths), dtype=np.int32)
        self.reset()

    def __repr__(self) -> str:
        ranks = f", rank {self.rank} of {self.world}" if self.world > 1 else ""
        shards = f"{len(self.paths)} shard{'s' * (len(self.paths) > 1)}"
        return f"<gpt2c.DataLoader: {self.num_batches} batches of {self.B} x {self.T} tokens in {shards}{ranks}>"

    def reset(self) -> None:
        """Begin an epoch; a shuffled loader draws the next order, it does not return to the first."""
        self._shard = self._sample = 0
        if self.shuffle:
            self._shard_order = self._shard_order[self._rng.random_permutation(len(self.paths))]
        self._open_shard()

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, new (B, T) int32 arrays; after the last batch of an epoch the next begins."""
        size = self.B * self.T
        start = self._next_window() * self._window + self.rank * size
        x, y = (copied(self._tokens[at : at + size]) for at in (start, start + 1))
        return x.reshape(self.B, self.T), y.reshape(self.B, self.T)

    def skip(self) -> None:
        """Leaves out a batch."""
        self._next_window()

    def _next_window(self):
        if self._sample == len(self._order):
            if self._shard + 1 == len(self.paths):
                self.reset()
            else:
                self._shard, self._sample = self._shard + 1, 0
                self._open_shard()
        self._sample += 1
        return int(self._order[self._sample - 1])

    def state(self) -> dict[str, Any]:
        """The position as a dict of ints and arrays; `restore` continues from it with the same batches."""
        settings = {name: int(getattr(self, name)) for name in self.SETTINGS}
        return settings | {
            "shard": self._shard,
            "sample": self._sample,
            "shard_order": self._shard_order.copy(),
            "rng": self._rng_at_open,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position saved by `state` of a loader over the same data with the same settings."""
        if state.keys() != self.state().keys():
            raise UsageError("the saved data position is one of another --order; resume with the same one")
        for name in self.SETTINGS:
            if int(state[name]) != getattr(self, name):
                raise UsageError(
                    f"the saved data position has {name} = {int(state[name])}, this run has "
                    f"{int(getattr(self, name))}; resume with the same data and batch settings"
                )
        shard, sample = int(state["shard"]), int(state["sample"])
        order = np.array(state["shard_order"], np.int32)
        if not 0 <= shard < len(self.paths) or sorted(order.tolist()) != list(range(len(self.paths))):
            raise DataError(
                f"the saved data position is damaged: shard {shard} of {order.tolist()}, "
                f"expected an order of {len(self.paths)} shards"
            )
        windows = (self._counts[order[shard]] - 1) // self._window
        if not 0 <= sample <= windows:
            raise DataError(f"the saved data position is damaged: batch {sample} of a shard with {windows}")
        self._rng.state = state["rng"]
        self._shard, self._sample, self._shard_order = shard, sample, order
        self._open_shard()

    def _served(self, tokens):
        """The part of a shard's tokens that this loader serves."""
        first, last = self._range(len(tokens))
        return tokens[first:last]

    def _range(self, count):
        return int(self._part[0] * count), int(self._part[1] * count)

    def _open_shard(self):
        """Map the current shard, one at a time so that thousands do not use up the file handles."""
        index = self._shard_order[self._shard]
        self._tokens = self._served(map_shard(self.paths[index]).tokens)
        if len(self._tokens) != self._counts[index]:
            raise DataError(
                f"{self.paths[index]} changed during the run from {self._counts[index]} to "
                f"{len(self._tokens)} tokens; start again with the new file"
            )
        windows = (len(self._tokens) - 1) // self._window
        self._rng_at_open = self._rng.state  # enough to draw this shard's order again
        self._order = self._rng.random_permutation(windows) if self.shuffle else range(windows)
