"""What a case is: a kernel's arguments for given sizes, what each output should be, and how far off it may be.

A case is a function with the name of its kernel, registered with @case. How far off follows from the arithmetic: each
operation of float32 is off by at most U of its result, so n of them in a row by gamma(n), and a sum by gamma(n) times the sum
of the absolute values of its terms, in whatever order it is taken. Such a bound is the oracle's own formula with every minus
made a plus.
"""

import functools

import numpy as np

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
