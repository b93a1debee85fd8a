"""Weights: the content of a model file, in plain values, independent of families. Readers return it, writers take it."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpt2c.support.choice import is_choice
from gpt2c.tokenizers.tokenizer import Tokenizer

SAID = {  # optional facts about a model in a file -> whether one may be this
    "description": lambda value: isinstance(value, str),
    "turns": lambda value: type(value) is int,
    "sampling": is_choice,
}

NUMBER = re.compile(r"(?<= )[0-9]{1,9}(?= |$)")  # in the name of a format: its version


class Part(NamedTuple):
    """Rows of a tensor as a file has them: pieces() gives their bytes, in whole blocks of their storage type (blocks)."""

    kind: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[np.ndarray]]


class Unread(NamedTuple):
    """A tensor that is still in its file: read(out) puts it into a contiguous float32 array of this shape."""

    shape: tuple[int, ...]
    read: Callable[[np.ndarray], None]
    parts: tuple[Part, ...] = ()  # of which it consists, from its first row on, where a writer may copy them as they are

    @property
    def dtype(self):
        return np.dtype(np.float32)

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.dtype.itemsize * self.size


def loaded(tensor):
    """A tensor as an array; one that is still in its file is read."""
    if not isinstance(tensor, Unread):
        return tensor
    out = np.empty(tensor.shape, tensor.dtype)
    tensor.read(out)
    return out


@dataclass
class RunState:
    """The state of a run besides the model: plain values and arrays, by name."""

    values: dict = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """The parameters by name, in file order, and what goes with them. Arrays may be views of a file that is mapped, until
    `let_go`."""

    family: str
    config: dict  # the fields of the family's Config
    tensors: dict[str, np.ndarray | Unread]
    tokenizer: Tokenizer | None = None
    said: dict = field(default_factory=dict)  # of SAID; "step" and "best_val_loss" of the run that the weights are from
    run: RunState | None = None
    moments: dict[str, np.ndarray] = field(default_factory=dict)  # the optimizer's, "m." or "v." before a parameter's name
    form: str = ""  # the format that it was read from, with its version
    facts: dict = field(default_factory=dict)  # what else the file says, for people

    def put(self, name, out):
        """Puts a parameter into an array of its shape."""
        tensor = self.tensors[name]
        if isinstance(tensor, Unread):
            tensor.read(out)
        else:
            out[...] = tensor

    def let_go(self):
        """Drops all arrays: a deleted file that is still mapped keeps its room on the disk."""
        self.tensors.clear()
        self.moments.clear()
        if self.run:
            self.run.arrays.clear()


def is_newer(form, known):
    """Whether the name of a format is `known` with a higher number in it."""
    found = NUMBER.search(form) if isinstance(form, str) else None
    return bool(found) and NUMBER.sub("N", form) == NUMBER.sub("N", known) and int(found[0]) > int(NUMBER.search(known)[0])
