"""The parameters that are not trained: a Base holds them by name, matrices in the storage types that files have."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt2c._core import GROUP, Buffer, Stream, nbytes, row_bytes
from gpt2c.engine.arena import ALIGNMENT, ParamSpec, aligned_bytes

Types = Sequence[Sequence[tuple[int, str]]]  # of each layer of a parameter: its parts, rows and a storage type each


class Stored(NamedTuple):
    """Rows of several types, one after the other, where a Buffer has rows of one."""

    name: str
    shape: tuple[int, ...]
    buffers: tuple[Buffer, ...]

    def parts(self):
        """(a Buffer, the number of its first row) for each of them."""
        first = 0
        for buffer in self.buffers:
            yield buffer, first
            first += buffer.shape[0]


class Frozen(NamedTuple):
    """A parameter of a Base."""

    shape: tuple[int, ...]
    types: tuple[str, ...]  # its storage types, the commonest first
    nbytes: int
    layers: tuple[Buffer | Stored, ...]

    def numbers(self) -> np.ndarray:
        """It in float32, read-only."""
        out = np.empty(self.shape, np.float32)
        self.read(out)
        out.flags.writeable = False
        return out

    def read(self, out: np.ndarray) -> None:
        """Puts it into a float32 array of its shape."""
        flat, at, stream = out.reshape(-1), 0, Stream()
        for buffer in buffers_of(self.layers):
            some = flat[at : at + math.prod(buffer.shape)].reshape(buffer.shape)
            at += some.size
            if buffer.dtype == "f32":
                some[...] = buffer.array
            else:
                rows = np.arange(len(some), dtype=np.int32)
                stream.embedding_forward(some[None], rows[None], buffer, None, np.zeros(1, np.int32))


def buffers_of(layers):
    return [buffer for layer in layers for buffer in (layer.buffers if isinstance(layer, Stored) else (layer,))]


class Base(Mapping[str, Frozen]):
    """Frozen parameters in one block of memory, which is allocated when the first of them is put there.

    `types` says what matrices are stored as, layer by layer; what is not in it is float32.
    """

    def __init__(self, specs: Sequence[ParamSpec], types: Mapping[str, Types]) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.size = sum(spec.size for spec in specs)
        self.nbytes = 0
        self._types = types
        self._places: dict[str, list[list[tuple[int, str, int]]]] = {}  # of each layer: rows, type, byte of each part
        self._block: np.ndarray | None = None
        for spec in specs:
            layers = types.get(spec.name) or [[(spec.shape[0], "f32")]]
            self._places[spec.name] = [[(*part, self._room(spec, *part)) for part in layer] for layer in layers]

    def _room(self, spec, rows, dtype):
        """The byte at which so many rows of a parameter begin."""
        at = self.nbytes
        size = nbytes(dtype, (rows, spec.shape[-1]) if spec.name in self._types else spec.shape)
        self.nbytes += -(-size // ALIGNMENT) * ALIGNMENT
        return at

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __repr__(self):
        return f"<gpt2c.Base: {len(self)} frozen tensors, {self.size:,} numbers in {self.nbytes:,} bytes>"

    def __getitem__(self, name: str) -> Frozen:
        layers = tuple(self._layer(name, number) for number in range(len(self._places[name])))
        rows: Counter[str] = Counter()
        for buffer in buffers_of(layers):
            rows[buffer.dtype] += buffer.shape[0]
        size = sum(nbytes(buffer.dtype, buffer.shape) for buffer in buffers_of(layers))
        return Frozen(self.specs[name].shape, tuple(dtype for dtype, _ in rows.most_common()), size, layers)

    def buffer(self, name: str, layer: int | None = None, address: bool = True) -> Buffer | Stored:
        """A tensor, or one layer of it, as ops take it; without an address while only planning."""
        if name in self._types:
            return self._layer(name, layer or 0, address)
        whole = self._layer(name, 0, address)
        if layer is None:
            return whole
        shape = whole.shape[1:] or (1,)
        return whole.rows(layer, layer + 1, *shape).shaped(*shape)

    def array(self, name: str) -> np.ndarray:
        """A parameter that is in float32, to be filled."""
        buffer = self._layer(name, 0)
        assert isinstance(buffer, Buffer) and buffer.dtype == "f32"
        return buffer.array

    def _layer(self, name, layer, address=True):
        spec, parts = self.specs[name], self._places[name][layer]
        label = f"{name}[{layer}]" if len(spec.shape) > 2 else name
        if name not in self._types:
            return self._buffer(name, spec.shape, *parts[0][1:], address)
        buffers = tuple(self._buffer(label, (rows, spec.shape[-1]), dtype, at, address) for rows, dtype, at in parts)
        return buffers[0] if len(buffers) == 1 else Stored(label, spec.shape[-2:], buffers)

    def _buffer(self, label, shape, dtype, at, address):
        if address and self._block is None:
            self._block = aligned_bytes(self.nbytes)
        return Buffer(label, shape, self._block.ctypes.data + at if address else 0, self._block, dtype)

    def put(self, name: str, layer: int, part: int, pieces: Iterable[np.ndarray]) -> None:
        """Puts rows into a part of a layer: their bytes, as a file has them, in pieces of any size. What is left of it is 0."""
        whole = self._layer(name, layer)
        buffer = whole.buffers[part] if isinstance(whole, Stored) else whole
        shape, stream, first, rest = buffer.shape, Stream(), 0, np.empty(0, np.uint8)
        size = row_bytes(buffer.dtype, shape[-1])
        groups = nbytes(buffer.dtype, (GROUP, shape[-1]))
        for piece in pieces:
            rest = np.concatenate([rest, piece]) if rest.size else piece
            rows = rest.size // size // GROUP * GROUP
            self._put_rows(stream, buffer, first, rest[: rows * size].reshape(rows, size), groups)
            first, rest = first + rows, rest[rows * size :]
        if rest.size:
            self._put_rows(stream, buffer, first, rest.reshape(-1, size), groups)

    def _put_rows(self, stream, buffer, first, rows, groups):
        """Rows from number `first` on, a multiple of GROUP of them but at the end."""
        if len(rows):
            at = buffer.array.ctypes.data + first // GROUP * groups
            there = Buffer(buffer.name, (len(rows), buffer.shape[-1]), at, self._block, buffer.dtype)
            stream.repack(there, rows)
