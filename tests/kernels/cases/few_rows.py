"""Cases of kernels/few_rows.c: rows in blocks of 8, 4, 2 and 1, groups of 16 rows of w, and vectors of 4, 8 and 16 columns."""

import numpy as np

from cases.case import U, case, gamma, normal, stored, unset
from cases.matmul import PRODUCTS, STORED, placed
from gpt2c import reference as ref

MOST = 127 * 256  # that x / scale is rounded to, of 32 neighbours


def rounding(x, sizes):
    """How far the products may be off because x is rounded: half a step of the largest of 32 neighbours, times |w|."""
    R, C = x.shape
    steps = abs(x.astype(np.float64)).reshape(R, C // 32, 32).max(-1, initial=0) / MOST
    return np.repeat(steps * (0.5 + MOST * 4 * U), 32, axis=1) @ sizes.T  # 4 roundings on the way to the whole number


def bound_of(x, numbers, sizes, kind, b=None):
    """How far off a product may be."""
    size = ref.matmul_forward(abs(x), sizes, None if b is None else abs(b))
    if kind in ("f32", "bf16", "f16"):
        return gamma(x.shape[1] + 2) * size
    # for each block of 32: a scale of w and one of x, their product, a sum of integers in float32, twice into the sum
    return rounding(x, abs(numbers)) + gamma(x.shape[1] // 16 + 8) * size


@case(*PRODUCTS, (8, 65, 3, False), (17, 15, 16, False), *STORED, (11, 288, 37, True, "q4_1"), large=(11, 1024, 61, True, "q4_0"))
def few_rows_forward(rng, R, C, N, bias=True, kind="f32", at=0, after=0):
    x, (w, numbers, sizes), b = normal(rng, R, C), stored(rng, kind, N, C), normal(rng, N) if bias else None
    exact, bound = ref.matmul_forward(x, numbers, b), bound_of(x, numbers, sizes, kind, b)
    b = np.pad(b, (at, after)) if bias else None
    return (placed(unset(R, N), at, after), x, w, b, at), [(placed(exact, at, after), placed(bound, at, after))]


@case((3, 35, 17, "f32", "f16"), (1, 64, 33, "q4_0", "q4_0"), (5, 256, 18, "q4_K", "bf16"), (2, 96, 1, "f32", "q8_0"),
      (0, 32, 3, "q4_1", "q4_1"),
      large=(11, 1024, 61, "q8_0", "q4_0"))  # fmt: skip
def few_rows_pair_forward(rng, R, C, N, first, second):
    x, kinds = normal(rng, R, C), (first, second)
    found = [stored(rng, kind, N, C) for kind in kinds]
    expected = [(ref.matmul_forward(x, n), bound_of(x, n, s, kind)) for kind, (_, n, s) in zip(kinds, found)]
    return (unset(R, N), unset(R, N), x, *(w for w, _, _ in found)), expected
