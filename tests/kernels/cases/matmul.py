"""Cases of kernels/matmul.c: M x K times K x N, across the borders of tiles (M 4, 6, 14; N 8, 16, 32), of spans of K (384)
and of blocks (M 256, 384, 896; N 80, 160, 320).
"""

import numpy as np

from cases.case import case, gamma, normal, stored, unset
from gpt2c import reference as ref

PRODUCTS = [
    (0, 5, 3), (1, 1, 1), (2, 3, 5), (4, 17, 33), (5, 16, 32), (3, 770, 7), (13, 31, 31), (14, 383, 32),
    (15, 384, 33), (29, 385, 17), (7, 770, 11), (6, 8, 16), (12, 9, 15), (5, 385, 323), (299, 2, 3),
    (1031, 385, 3),
]  # fmt: skip


# R, C, N, a bias, storage type, columns of the output before and behind these
STORED = [
    (5, 96, 33, True, "q8_0", 3, 2), (1, 32, 1, False, "q4_0", 0, 1), (2, 416, 17, True, "q4_1", 1, 0), (7, 64, 47, True, "q5_0"),
    (3, 32, 16, True, "q5_1", 16, 5), (6, 512, 31, True, "q4_K"), (5, 256, 65, True, "q5_K"), (2, 768, 18, True, "q6_K", 1, 1),
    (3, 35, 17, True, "bf16", 2, 1), (4, 51, 33, True, "f16"), (3, 17, 5, True, "f32", 2, 3), (0, 64, 3, True, "q4_0"),
    (299, 800, 33, True, "q8_0"),
]  # fmt: skip


def placed(out, at, after):
    """(R, N) between columns of zeros."""
    return np.pad(out, ((0, 0), (at, after)))


@case(*PRODUCTS, (4, 65, 3, False), (17, 15, 16, False), *STORED, large=(97, 385, 61))
def matmul_forward(rng, R, C, N, bias=True, kind="f32", at=0, after=0):
    x, (w, numbers, sizes), b = normal(rng, R, C), stored(rng, kind, N, C), normal(rng, N) if bias else None
    size = ref.matmul_forward(abs(x), sizes, abs(b) if bias else None)
    out = placed(unset(R, N), at, after)
    exact, bound = ref.matmul_forward(x, numbers, b), gamma(C + 3) * size
    b = np.pad(b, (at, after)) if bias else None
    return (out, x, w, b, at), [(placed(exact, at, after), placed(bound, at, after))]


@case(*PRODUCTS, *((R, C, N, *others[1:]) for R, C, N, *others in STORED), large=(97, 385, 61))
def matmul_backward_x(rng, R, N, C, kind="f32", at=0, after=0):
    N, C = (N, C) if kind == "f32" else (C, N)  # C is that of STORED
    dx, dout, (w, numbers, sizes) = normal(rng, R, C), normal(rng, R, N), stored(rng, kind, N, C)
    exact, size = dout.astype(np.float64) @ numbers, abs(dout).astype(np.float64) @ sizes
    return (dx, placed(dout, at, after), w, at), [(dx + exact, gamma(N + 3) * (abs(dx) + size))]


@case(*PRODUCTS[1:], (3, 0, 5), (17, 15, 16, False), large=(97, 385, 61))
def matmul_backward_w(rng, N, R, C, bias=True):
    dw, db, dout, x = normal(rng, N, C), normal(rng, N), normal(rng, R, N), normal(rng, R, C)
    exact, sizes = ref.matmul_backward(dout, x, dw)[1:], ref.matmul_backward(abs(dout), abs(x), dw)[1:]
    expected = [(old + e, gamma(R + 2) * (abs(old) + s)) for old, e, s in zip((dw, db), exact, sizes)]
    return (dw, db if bias else None, dout, x), expected[: 1 + bias]
