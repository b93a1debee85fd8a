"""What a case is: a kernel's arguments for given sizes, what each output should be, and how far off it may be.

A case is a function with the name of its kernel, registered with @case. How far off follows from the arithmetic: each
operation of float32 is off by at most U of its result, so n of them in a row by gamma(n), and a sum by gamma(n) times the sum
of the absolute values of its terms, in whatever order it is taken. Such a bound is the oracle's own formula with every minus
made a plus.
"""

import functools

import numpy as np

from gpt2c import _core
from gpt2c import reference as ref

U = 2.0**-24  # half the distance from 1 to the next float32
TINY = 2.0**-120  # numbers below 2^-126 count as zero: what a sum of 64 such can amount to

CASES = {}


def gamma(n):
    return n * U / (1 - n * U)


def case(*sizes, large):
    """Registers a case: its awkward sizes, and sizes worth seven threads (WORK_PER_THREAD in parallel.h)."""

    def register(make):
        CASES[make.__name__] = make, sizes, large
        return make

    return register


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def unset(*shape):
    return np.full(shape, np.nan, np.float32)


def single(x):
    """Rounded to float32, as the kernels receive it."""
    return np.asarray(x, np.float32)


def rows_of_blocks(rng, kind, N, C):
    """Rows as in a file, (N, bytes) uint8: any integers, with scales of either sign, subnormal ones among them."""
    if kind == "bf16":
        return (normal(rng, N, C).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(N, 2 * C)
    if kind in ("f16", "f32"):
        return normal(rng, N, C).astype(kind.replace("f", "float")).view(np.uint8).reshape(N, -1)
    form = _core.STORED[kind]
    blocks = rng.integers(256, size=(N, C // form.columns, form.nbytes), dtype=np.uint8)
    halves = (0.01 * rng.standard_normal((N, C // form.columns, 2)) ** 3).astype(np.float16).view(np.uint8)
    if kind == "q6_K":
        blocks[..., 208:] = halves[..., :2]
    else:
        least = 4 if kind in ("q4_1", "q5_1", "q4_K", "q5_K") else 2
        blocks[..., :least] = halves[..., :least]
    return blocks.reshape(N, -1)


def stored(rng, kind, N, C):
    """(a matrix as a kernel takes it, its numbers, their sizes: every minus made a plus), all (N, C)."""
    if kind == "f32":
        w = normal(rng, N, C)
        return w, w, abs(w)
    rows = rows_of_blocks(rng, kind, N, C)
    numbers = ref.stored_numbers(kind, rows)
    sizes = abs(numbers)
    if kind in ("q4_1", "q5_1", "q4_K", "q5_K"):  # of the others, scale and least are in proportion, and the sum is exact
        blocks = ref.unpacked(kind, rows)
        scale, least = ref.scale_and_least(blocks)
        sizes = abs(scale) * blocks.codes + abs(least)
    return as_stored(kind, (N, C), ref.repack(kind, rows)), numbers, sizes


def as_stored(kind, shape, data):
    """Bytes as a Buffer of a matrix."""
    return _core.Buffer("w", shape, data.ctypes.data, data, kind)


# 1, primes, and one less, as many and one more than the lanes of each vector (4, 8, 16) and tile (8, 16, 32)
LENGTHS = [(n,) for n in (0, 1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)]
ROWS = [
    (0, 5), (1, 1), (3, 1), (1, 3), (2, 4), (3, 5), (1, 7), (5, 8), (2, 9), (7, 15), (3, 16), (2, 17),
    (5, 31), (3, 63), (2, 64), (13, 65), (3, 257),
]  # fmt: skip


@functools.cache
def made(name, sizes):
    args, expected = CASES[name][0](np.random.default_rng(1), *sizes)
    return args, list(expected)


def assert_within(outputs, expected):
    for i, (out, (exact, bound)) in enumerate(zip(outputs, expected, strict=True)):
        far = ~(abs(out - exact) <= bound + TINY)  # so that NaN is far
        assert not far.any(), f"output {i}: {far.sum()} of {out.size} are off, the first at {np.argwhere(far)[0]}"
