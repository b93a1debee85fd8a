"""Memory: an Arena holds named tensors in one block, a Pool hands out pieces of a slab and takes them back."""

import bisect
import math
import mmap
from collections.abc import Callable, Iterator, KeysView, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from gpt2c._core import Buffer, nbytes

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
SHOWN = 4  # tensors that an Arena names where it is shown
LARGE = 1 << 22  # bytes: from here on an array gets pages of its own from the system


@dataclass(frozen=True)
class ParamSpec:
    """A parameter tensor: its name, shape, how it starts (a function of a random generator and the shape), whether
    weight decay is meant for it, and what its numbers are stored as."""

    name: str
    shape: tuple[int, ...]
    init: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    decay: bool
    dtype: str = "f32"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def normal(std):
    """Initialise from N(0, std)."""
    return lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std)


def uniform(bound):
    """Initialise evenly between -bound and bound."""
    return lambda rng, shape: (2 * rng.random(shape, np.float32) - 1) * np.float32(bound)


def constant(value):
    return lambda rng, shape: np.full(shape, value, np.float32)


def aligned_bytes(size):
    """That many bytes, all zero, at an aligned address. Their pages come from the system when they are first touched.

    Large ones ask for huge pages: a step walks through all of them, and small pages cost it and the first touch time.
    Systems rarely grant those to memory that could be shared between processes, as mmap makes it unless told otherwise.
    """
    if size >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system that has none
            block.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(block, np.uint8)
    block = np.zeros(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def aligned(*shape):
    """A float32 array of aligned_bytes."""
    return aligned_bytes(nbytes("f32", shape)).view(np.float32).reshape(shape)


class Arena:
    """Named tensors in one contiguous block, in the order given, without padding.

    `arena["wte"]` is a view, `arena.flat` the whole block as float32, which is what all that is trained is; both are
    writable and shared. The block is allocated when it is first asked for.
    """

    def __init__(self, specs: Sequence[ParamSpec], prefix: str = "") -> None:
        self.specs = tuple(specs)
        self.prefix = prefix  # of the names in program listings: "d" for gradients
        self.size = self.nbytes = 0
        self._places: dict[str, tuple[ParamSpec, int, int]] = {}  # a spec, the numbers before it, their bytes
        for spec in self.specs:
            self._places[spec.name] = spec, self.size, self.nbytes
            self.size += spec.size
            self.nbytes += nbytes(spec.dtype, spec.shape)
        self._flat: np.ndarray | None = None

    def __repr__(self):
        first = ", ".join(f"{self.prefix}{spec.name} {spec.shape}" for spec in self.specs[:SHOWN])
        more = f" and {len(self.specs) - SHOWN} more" if len(self.specs) > SHOWN else ""
        return f"<gpt2c.Arena: {len(self.specs)} tensors, {self.size:,} numbers: {first}{more}>"

    @property
    def flat(self) -> np.ndarray:
        if self._flat is None:
            self._flat = aligned_bytes(self.nbytes).view(np.float32)
        return self._flat

    @property
    def allocated(self) -> bool:
        return self._flat is not None

    def keys(self) -> KeysView[str]:
        return self._places.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.buffer(name).array

    def range(self, name: str) -> tuple[int, int]:
        """Where a tensor lies in `flat`: (first, last)."""
        spec, first, _ = self._places[name]
        return first, first + spec.size

    def buffer(self, name: str, layer: int | None = None, address: bool = True) -> Buffer:
        """A tensor, or one layer of it, as the kernels take it; without an address while only planning."""
        spec, _, offset = self._places[name]
        shape, label = spec.shape, self.prefix + name
        if layer is not None:
            shape = shape[1:] or (1,)
            offset, label = offset + nbytes(spec.dtype, (layer, *shape)), f"{label}[{layer}]"
        return Buffer(label, shape, self.flat.ctypes.data + offset if address else 0, self._flat, spec.dtype)


class Pool:
    """Hands out pieces of one slab, best fit, and takes each back when its last holder is gone.

    Because that happens at a fixed place in the order of calls, a recorded program reuses memory exactly as the
    recording did. A pool without a slab only plans: its pieces have no memory, and `peak` tells how large the slab
    must be. `reuse=False` gives every piece memory of its own; `poison=True` fills what comes back with NaN, so that
    whoever reads it too late finds out.
    """

    def __init__(self, slab=None, reuse=True, poison=False):
        self.slab, self.reuse, self.poison = slab, reuse, poison
        self.base = slab.ctypes.data if slab is not None else 0
        self.top = self.peak = 0  # bytes
        self._holes = []  # (offset, size) below top, by offset, none adjacent to another or to top

    def take(self, shape, name, dtype="f32"):
        """A buffer of this shape and type; what is in it is left over from before."""
        size = -(-nbytes(dtype, shape) // ALIGNMENT) * ALIGNMENT
        fitting = [hole for hole in self._holes if hole[1] >= size]
        if fitting:
            offset, room = min(fitting, key=lambda hole: hole[1])
            self._holes.remove((offset, room))
            if room > size:
                bisect.insort(self._holes, (offset + size, room - size))
        else:
            offset = self.top
            self.top += size
            self.peak = max(self.peak, self.top)
            if self.slab is not None and self.top > self.slab.nbytes:
                raise AssertionError("the slab is smaller than planned")
        return _Piece(self, offset, size, shape, name, dtype)

    def give(self, offset, size):
        if self.poison and self.slab is not None:
            self.slab[offset : offset + size].view(np.float32).fill(np.nan)
        if not self.reuse or not size:
            return
        at = bisect.bisect(self._holes, (offset,))
        if at < len(self._holes) and self._holes[at][0] == offset + size:
            size += self._holes.pop(at)[1]
        if at and sum(self._holes[at - 1]) == offset:
            offset, room = self._holes.pop(at - 1)
            size += room
            at -= 1
        if offset + size == self.top:  # so that an emptied pool is as good as new
            self.top = offset
        else:
            self._holes.insert(at, (offset, size))


class _Piece(Buffer):
    """A Buffer that goes back to its pool by itself."""

    def __new__(cls, pool, offset, size, shape, name, dtype):
        return Buffer.__new__(cls)

    def __init__(self, pool, offset, size, shape, name, dtype):
        super().__init__(name, shape, pool.base + offset, pool.slab, dtype)
        self._pool, self._offset, self._size = pool, offset, size

    def __del__(self):
        self._pool.give(self._offset, self._size)
