"""Cases of kernels/matmul.c: M x K times K x N, across the borders of tiles (M 4, 6, 14; N 8, 16, 32), of spans of K (384)
and of blocks (M 256, 384, 896; N 80, 160, 320).
"""

from cases.case import case, gamma, normal, unset
from gpt2c import reference as ref

PRODUCTS = [
    (0, 5, 3), (1, 1, 1), (2, 3, 5), (4, 17, 33), (5, 16, 32), (3, 770, 7), (13, 31, 31), (14, 383, 32),
    (15, 384, 33), (29, 385, 17), (7, 770, 11), (6, 8, 16), (12, 9, 15), (5, 385, 323), (299, 2, 3),
    (1031, 385, 3),
]  # fmt: skip


@case(*PRODUCTS, (4, 65, 3, False), (17, 15, 16, False), large=(97, 385, 61))
def matmul_forward(rng, R, C, N, bias=True):
    x, w, b = normal(rng, R, C), normal(rng, N, C), normal(rng, N) if bias else None
    size = ref.matmul_forward(abs(x), abs(w), abs(b) if bias else None)
    return (unset(R, N), x, w, b), [(ref.matmul_forward(x, w, b), gamma(C + 2) * size)]


@case(*PRODUCTS[:-2], (4, 65, 3, False), large=(8, 385, 461))
def matmul_rows_forward(rng, R, C, N, bias=True):
    return matmul_forward(rng, R, C, N, bias)


@case(*PRODUCTS, large=(97, 385, 61))
def matmul_backward_x(rng, R, N, C):
    dx, dout, w = normal(rng, R, C), normal(rng, R, N), normal(rng, N, C)
    exact, size = ref.matmul_backward(dout, dx, w)[0], ref.matmul_backward(abs(dout), dx, abs(w))[0]
    return (dx, dout, w), [(dx + exact, gamma(N + 2) * (abs(dx) + size))]


@case(*PRODUCTS[1:], (3, 0, 5), (17, 15, 16, False), large=(97, 385, 61))
def matmul_backward_w(rng, N, R, C, bias=True):
    dw, db, dout, x = normal(rng, N, C), normal(rng, N), normal(rng, R, N), normal(rng, R, C)
    exact, sizes = ref.matmul_backward(dout, x, dw)[1:], ref.matmul_backward(abs(dout), abs(x), dw)[1:]
    expected = [(old + e, gamma(R + 2) * (abs(old) + s)) for old, e, s in zip((dw, db), exact, sizes)]
    return (dw, db if bias else None, dout, x), expected[: 1 + bias]
