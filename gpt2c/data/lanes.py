"""Contiguous batches: each row is a lane of text, which the next batch continues.

For recurrent models, which carry a hidden state from one batch to the next.
"""

import numpy as np

from gpt2c.data.shards import copied, expand, map_shard, read_shard
from gpt2c.data.windows import Positioned, random_words
from gpt2c.errors import DataError


class Lanes(Positioned):
    """Chunks of T tokens along B lanes. In each epoch the lanes begin at new random places and continue for `chunks` chunks, or
    as many as the text has."""

    SETTINGS = (*Positioned.SETTINGS, "chunks")

    def __init__(self, files, B, T, chunks, rank=0, world=1, seed=1337, vocab_size=None, part=(0, 1)):
        super().__init__(B, T, rank, world, seed)
        counts = [(len(read_shard(path, vocab_size).tokens), path) for path in expand(files)]
        ranges = [(int(part[0] * count), int(part[1] * count), path) for count, path in counts]
        self.pieces = [(path, first, last) for first, last, path in ranges]
        self.num_tokens = sum(last - first for first, last, _ in ranges)
        longest = max(last - first for first, last, _ in ranges)
        self.chunks = min(chunks, (longest - 1) // T)
        if self.chunks < 1:
            raise DataError(
                f"{counts[0][1]} has {longest} tokens, but a chunk takes T + 1 = {T + 1}; choose a smaller T or use a longer file"
            )
        span = self.chunks * T + 1
        self._ranges = [(first, last, path) for first, last, path in ranges if last - first >= span]
        self._ends = np.cumsum([last - first - span + 1 for first, last, _ in self._ranges])  # of the places to begin at
        self.num_batches = self.chunks
        self._epoch = None

    @property
    def continues(self):
        """Whether the next batch continues the lanes of the last one."""
        return self._batch % self.chunks != 0

    def next_batch(self):
        """Inputs and targets, new (B, T) int32 arrays. Every rank has lanes of its own."""
        epoch, chunk = divmod(self._batch, self.chunks)
        if epoch != self._epoch:
            self._epoch, self._lanes = epoch, self._begin(epoch)
        self._batch += 1
        rows = np.array([copied(lane[chunk * self.T : (chunk + 1) * self.T + 1]) for lane in self._lanes])
        return rows[:, :-1].copy(), rows[:, 1:].copy()

    def again(self, count):
        """The inputs of the last `count` batches of this epoch once more."""
        here = self._batch
        if count > (here - 1) % self.chunks + 1 or not here:
            raise DataError(f"the saved data position is damaged: {count} batches before batch {here % self.chunks} of an epoch")
        self._batch -= count
        inputs = [self.next_batch()[0] for _ in range(count)]
        self._batch = here
        return inputs

    def state(self):
        """The position of all ranks together: that of one rank with all of their lanes."""
        return super().state() | {"B": self.B * self.world, "rank": 0, "world": 1}

    def _begin(self, epoch):
        """The lanes of an epoch: views of the files."""
        words = random_words(self.seed, epoch, self.B * self.world)[self.rank * self.B : (self.rank + 1) * self.B]
        lanes = []
        for word in words:
            place = int(word) % int(self._ends[-1])
            shard = int(np.searchsorted(self._ends, place, side="right"))
            first, last, path = self._ranges[shard]
            start = first + place - (int(self._ends[shard - 1]) if shard else 0)
            lanes.append(map_shard(path).tokens[start : start + self.chunks * self.T + 1])
        return lanes
