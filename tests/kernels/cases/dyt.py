"""Cases of kernels/dyt.c."""

import numpy as np

from cases.case import ROWS, U, case, gamma, normal, single, unset
from gpt2c import reference as ref


@case(*ROWS, large=(64, 1031))
def dyt_forward(rng, R, C):
    """tanh is off by 4 units of its own, and by what the rounding of a x does to it."""
    x, a, w, b = normal(rng, R, C), single([0.8]), normal(rng, C), normal(rng, C)
    t = abs(np.tanh(a * x.astype(float)))
    bound = abs(w) * (8 * U * t + U * abs(a * x)) + gamma(2) * (abs(w) * t + abs(b))
    return (unset(R, C), x, a, w, b), [(ref.dyt_forward(x, a, w, b), bound)]


@case(*ROWS, large=(64, 1031))
def dyt_backward(rng, R, C):
    x, a, w, dout = normal(rng, R, C), single([0.8]), normal(rng, C), normal(rng, R, C)
    old = normal(rng, R, C), normal(rng, 1), normal(rng, C), normal(rng, C)
    exact = ref.dyt_backward(dout, x, a, w)
    t = abs(np.tanh(a * x.astype(float)))
    off_t = 8 * U * t + U * abs(a * x)
    g = abs(dout.astype(float))
    size_u, off_u = g * abs(w) * (1 + t**2), g * abs(w) * 2 * t * off_t
    sizes = a * size_u, (size_u * abs(x)).sum(), ref.sum_rows(g * t), ref.sum_rows(g)
    off = a * off_u, (off_u * abs(x)).sum(), ref.sum_rows(g * off_t), 0
    roundings = 8, R * C + 8, R + 4, R + 2
    expected = [(o + e, far + gamma(k) * (abs(o) + size)) for o, e, far, k, size in zip(old, exact, off, roundings, sizes)]
    return (*old, dout, x, a, w), expected
