"""Slots: sequences that one model reads and continues in step, each with a position and a row of the KV cache, or a state, of
its own.

A prompt is read in pieces that begin at multiples of a fixed size, what follows it token by token. Pieces take the kernels for
many rows, tokens those for a few, however many rows there are. So the bits of a sequence's logits depend on the sequence alone:
not on those beside it, nor on what its slot had read before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2c._core import CACHED
from gpt2c.engine.runner import Runner, Work
from gpt2c.errors import InferenceError
from gpt2c.models.family import max_seq_len
from gpt2c.models.model import Model
from gpt2c.support.fields import flag
from gpt2c.support.machine import require_memory

PIECE = 512  # tokens of a prompt per forward pass
FEW = 8  # rows; more are filled up to a multiple of it


@dataclass
class CacheConfig:
    kv: str = flag(
        "",
        "KV cache: what its numbers are stored as, f32, bf16, f16 or q8_0 (8 bits)",
        choices=("", *CACHED),
        default_text="f32, or f16 where weights are stored in fewer bits than float32",
    )


class Slots:
    """`count` slots of a model, each with room for `context` tokens (None: as many as the model takes). `kv`: what keys and
    values are stored as; unless said float32, or float16 where the model's weights have fewer bits too.

    A transformer whose context is full starts again from its later half; the context of a recurrent model is unlimited.
    """

    def __init__(self, model: Model, count: int = 1, context: int | None = None, piece: int = PIECE, kv: str = "") -> None:
        if piece < 1:
            raise InferenceError(f"the prompt is to be read {piece} tokens at a time, expected at least 1")
        if kv not in ("", *CACHED):
            raise InferenceError(f"kv is {kv!r}, expected {', '.join(CACHED)}")
        few_bits = any(kind != "f32" for tensor in model.base.values() for kind in tensor.types)
        self.kv = kv or ("f16" if few_bits else "f32")
        most = max_seq_len(model.config)
        self.model, self.count, self.context, self.piece = model, count, min(context or most, most), piece
        self.is_recurrent = model.definition.state is not None
        self._runner = Runner(model, slots=count, context=self.context, kv=self.kv)
        size = self._runner.cache_bytes()
        require_memory(size, f"a KV cache of {count} x {self.context} tokens", "choose a shorter context or a smaller --kv")
        self._texts: list[list[int]] = [[] for _ in range(count)]  # what is in the caches: of a recurrent model nothing
        self._prompts = [0] * count  # how much of it was read in pieces

    def room(self, slot: int) -> int:
        """How many more tokens it has room for."""
        return self.context - len(self._texts[slot])

    def read(self, prompts: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Gives each slot a text to begin with, {slot: ids}: {slot: logits (known_ids,) of the next id}.

        Of what it has read before, it keeps the whole pieces that the new text begins with. Of slots with the same text one
        reads it.
        """
        self._check(prompts)
        texts = {slot: self._fitting(ids) for slot, ids in prompts.items()}
        readers: dict[tuple[int, ...], int] = {}
        for slot, ids in texts.items():
            readers.setdefault(tuple(ids), slot)
        logits = self._read({slot: texts[slot] for slot in readers.values()})
        for slot, ids in texts.items():
            if (reader := readers[tuple(ids)]) != slot:
                self.copy(reader, slot)
                logits[slot] = logits[reader]
        return logits

    def step(self, new: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        """Continues each of these texts, {slot: ids}: {slot: logits (ids, known_ids) after each of the ids}, until the next call.

        Several ids are for a transformer that has room for them.
        """
        self._check(new)
        for slot, ids in new.items():
            if len(ids) > 1 and len(ids) > (0 if self.is_recurrent else self.room(slot)):
                raise InferenceError(f"slot {slot} is given {len(ids)} ids at once, expected one, or as many as it has room for")
        full = {slot: [*self._texts[slot], *ids] for slot, ids in new.items() if len(ids) > self.room(slot)}
        logits = {slot: row[None] for slot, row in self.read(full).items()}
        rows = [(slot, place, id) for slot, ids in new.items() if slot not in full for place, id in enumerate(ids)]
        if rows:
            slots = [slot for slot, _, _ in rows]
            positions = [len(self._texts[slot]) + place for slot, place, _ in rows]
            found, first = self._run(slots, positions, [[id] for *_, id in rows], decoding=True), 0
            for slot in dict.fromkeys(slots):
                logits[slot] = found[first : first + len(new[slot])]
                first += len(new[slot])
                self._texts[slot] += () if self.is_recurrent else new[slot]
        return logits

    def cut(self, slot: int, length: int) -> None:
        """Lets a slot forget all but the first tokens; all of them where the model is recurrent."""
        del self._texts[slot][length:]
        self._prompts[slot] = min(self._prompts[slot], length)
        self._runner.clear_slot(slot)

    def copy(self, source: int, target: int) -> None:
        """Lets the target go on from where the source is."""
        self._runner.copy_slot(source, target, len(self._texts[source]))
        self._texts[target], self._prompts[target] = list(self._texts[source]), self._prompts[source]

    def length(self, slot: int) -> int:
        """How many tokens it holds."""
        return len(self._texts[slot])

    def _check(self, texts):
        known = self.model.known_ids
        for slot, ids in texts.items():
            if not 0 <= slot < self.count:
                raise InferenceError(f"slot is {slot}, expected 0 to {self.count - 1}")
            if not len(ids) or min(ids) < 0 or max(ids) >= known:
                found = f"ids from {min(ids)} to {max(ids)}" if len(ids) else "no ids"
                raise InferenceError(f"slot {slot} is given {found}, expected one or more from 0 to {known - 1}")

    def _fitting(self, ids):
        return list(ids) if len(ids) <= self.context else list(ids[-max(1, self.context // 2) :])

    def _read(self, texts):
        """{slot: logits} of these texts, of which the slots read what they lack, as many together as make a piece."""
        for slot, ids in texts.items():
            self.cut(slot, self._kept(slot, ids))
        logits, at = {}, {slot: len(self._texts[slot]) for slot in texts}
        while at:
            lengths: dict[int, list[int]] = {}  # of the next pieces
            for slot, start in at.items():
                lengths.setdefault(min(self.piece, len(texts[slot]) - start), []).append(slot)
            for length, slots in lengths.items():
                most = max(1, self.piece // length)
                for some in (slots[first : first + most] for first in range(0, len(slots), most)):
                    pieces = [texts[slot][at[slot] : at[slot] + length] for slot in some]
                    found = self._run(some, [at[slot] for slot in some], pieces)
                    for slot, piece, row in zip(some, pieces, found):
                        self._texts[slot] += () if self.is_recurrent else piece
                        self._prompts[slot] = at[slot] = at[slot] + length
                        if at[slot] == len(texts[slot]):
                            logits[slot] = row.copy()
                            del at[slot]
        return logits

    def _kept(self, slot, ids):
        """How many of the ids it keeps: whole pieces that it has read as such, without the last id, which gives the logits."""
        most = min(self._prompts[slot], len(ids) - 1, len(self._texts[slot]))
        same = next((n for n in range(most) if ids[n] != self._texts[slot][n]), most)
        return same // self.piece * self.piece

    def _run(self, slots, positions, ids, decoding=False):
        """Logits (B, known_ids) after the ids (B, T). Rows that fill them up do what the first does."""
        B = len(slots)
        rows = B if B <= FEW else -(-B // FEW) * FEW
        work = self._runner.prepare(Work(rows, len(ids[0]), targets=False, decoding=decoding))
        for into, values in (work.slot, slots), (work.tokens, ids), (work.position, () if self.is_recurrent else positions):
            if len(values):
                into[:B], into[B:] = values, values[0]
        work.forward()
        return work.output.logits.array[:B, : self.model.known_ids]
