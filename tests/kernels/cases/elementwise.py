"""Cases of kernels/elementwise.c: at most one rounding an element, so the float64 result rounded to float32."""

import numpy as np

from cases.case import LENGTHS, case, normal, single, unset
from gpt2c import reference as ref


@case(*LENGTHS, large=(80021,))
def residual_forward(rng, R):
    a, b = normal(rng, R), normal(rng, R)
    return (unset(R), a, b), [(single(ref.residual_forward(a, b)), 0)]


@case(*LENGTHS, large=(50021,))
def residual_backward(rng, R):
    da, db, dout = normal(rng, R), normal(rng, R), normal(rng, R)
    return (da, db, dout), [(old + d, 0) for old, d in zip((da, db), map(single, ref.residual_backward(dout)))]


@case((0, 2, 3), (1, 1, 1), (3, 5, 7), (2, 4, 33), large=(16, 9, 1801))
def last_position_forward(rng, B, T, C):
    x = normal(rng, B, T, C)
    return (unset(B, C), x), [(ref.last_position_forward(x), 0)]


@case((0, 3, 2), (1, 1, 1), (3, 5, 7), (4, 4, 33), large=(16, 20, 1801))
def gather(rng, B, N, C):
    """Slots in any order, some twice."""
    x, slot = normal(rng, N, C), rng.integers(N, size=B, dtype=np.int32)
    return (unset(B, C), x, slot), [(ref.gather(x, slot), 0)]


@case((0, 3, 2), (1, 1, 1), (3, 5, 7), (4, 4, 33), large=(16, 20, 1801))
def scatter(rng, B, N, C):
    x, rows, slot = normal(rng, N, C), normal(rng, B, C), rng.permutation(N)[:B].astype(np.int32)
    return (x, rows, slot), [(ref.scatter(x, rows, slot), 0)]


@case(*LENGTHS, large=(240007,))
def copy(rng, R):
    x = normal(rng, R)
    return (unset(R), x), [(ref.copy(x), 0)]


@case(*LENGTHS, large=(240007,))
def zero(rng, R):
    x = normal(rng, R)
    return (x,), [(ref.zero(x), 0)]
