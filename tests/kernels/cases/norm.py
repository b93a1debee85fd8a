"""Cases of kernels/norm.c."""

from cases.case import ROWS, case, gamma, normal, single, unset
from gpt2c import reference as ref


@case(*ROWS, (3, 63, 1000), large=(64, 1031))
def layernorm_forward(rng, R, C, center=1):
    """The mean is off by gamma mean|x|, the variance by the square of that and by its own roundings."""
    x, w, b, eps = center + normal(rng, R, C), normal(rng, C), normal(rng, C), single(1e-5)
    out, mean, rstd = ref.layernorm_forward(x, w, b, float(eps))
    off_mean = gamma(C + 1) * abs(x.astype(float)).mean(-1)
    off_rstd = gamma(C + 8) + (off_mean * rstd) ** 2  # as a share
    n = abs(x - mean[:, None]) * rstd[:, None]
    off_n = n * (off_rstd[:, None] + gamma(4)) + (off_mean * rstd * (1 + off_rstd))[:, None]
    bounds = off_n * abs(w) + gamma(2) * (abs(w) * n + abs(b)), off_mean, off_rstd * rstd
    args = unset(R, C), unset(R), unset(R), x, w, b, eps
    return args, zip((out, mean, rstd), bounds)


@case(*ROWS, large=(64, 1031))
def layernorm_backward(rng, R, C):
    x, w, dout = 1 + normal(rng, R, C), normal(rng, C), normal(rng, R, C)
    dx, dw, db = normal(rng, R, C), normal(rng, C), normal(rng, C)
    _, mean, rstd = map(single, ref.layernorm_forward(x, w, w))
    exact = ref.layernorm_backward(dout, x, w, mean, rstd)
    d, n = abs(dout * w).astype(float), (abs(x - mean[:, None]) * rstd[:, None]).astype(float)
    size_dx = rstd[:, None] * (d + d.mean(-1, keepdims=True) + n * (d * n).mean(-1, keepdims=True))
    sizes = size_dx, ref.sum_rows(abs(dout) * n), ref.sum_rows(abs(dout).astype(float))
    bounds = [gamma(k) * (abs(old) + s) for k, old, s in zip((C + 10, R + 5, R + 1), (dx, dw, db), sizes)]
    args = dx, dw, db, dout, x, w, mean, rstd
    return args, [(old + e, bound) for old, e, bound in zip((dx, dw, db), exact, bounds)]


GAINLESS = [(3, 5, False), (2, 17, False), (1, 64, False)]


@case(*ROWS, *GAINLESS, large=(64, 1031))
def rmsnorm_forward(rng, R, C, gains=True):
    x, w, eps = 1 + normal(rng, R, C), normal(rng, C) if gains else None, single(1e-5)
    out, rstd = ref.rmsnorm_forward(x, w, float(eps))
    off = gamma(C + 8)  # of rstd, as a share: half of that of the mean square, and the root and the division
    return (unset(R, C), unset(R), x, w, eps), [(out, (off + gamma(2)) * abs(out)), (rstd, off * rstd)]


@case(*ROWS, *GAINLESS, large=(64, 1031))
def rmsnorm_backward(rng, R, C, gains=True):
    x, w, dout = 1 + normal(rng, R, C), normal(rng, C) if gains else None, normal(rng, R, C)
    dx, dw = normal(rng, R, C), normal(rng, C) if gains else None
    rstd = single(ref.rmsnorm_forward(x, w)[1])
    exact_dx, exact_dw = ref.rmsnorm_backward(dout, x, w, rstd)
    n = abs(x.astype(float)) * rstd[:, None]
    d = abs(dout.astype(float)) * (abs(w) if gains else 1)
    size_dx = rstd[:, None] * (d + n * (d * n).mean(-1, keepdims=True))
    expected = [(dx + exact_dx, gamma(C + 10) * (abs(dx) + size_dx))]
    if gains:
        expected.append((dw + exact_dw, gamma(R + 4) * (abs(dw) + ref.sum_rows(abs(dout) * n))))
    return (dx, dw, dout, x, w, rstd), expected


HEADS = [
    (0, 3, 2, 1, 5), (1, 1, 1, 1, 1), (2, 3, 2, 1, 3), (3, 3, 1, 0, 4), (1, 5, 3, 2, 7), (5, 4, 3, 3, 8), (2, 3, 2, 1, 15),
    (3, 4, 3, 2, 16), (2, 6, 5, 4, 17), (7, 3, 2, 1, 33), (2, 4, 3, 2, 64), (5, 5, 3, 1, 65),
]  # fmt: skip


@case(*HEADS, large=(31, 12, 9, 6, 67))
def head_norm_forward(rng, R, G, N, H, D):
    x, qw, kw, eps = 1 + normal(rng, R, G, D), normal(rng, D), normal(rng, D), single(1e-5)
    out, rstd = ref.head_norm_forward(x, qw, kw, H, N, float(eps))
    off = gamma(D + 8)
    bound = (off + gamma(2)) * abs(out)
    bound[:, N:] = 0
    return (unset(R, G, D), unset(R, N), x, qw, kw, H, eps), [(out, bound), (rstd, off * rstd)]


@case(*HEADS, large=(31, 12, 9, 6, 67))
def head_norm_backward(rng, R, G, N, H, D):
    x, qw, kw, dout = 1 + normal(rng, R, G, D), normal(rng, D), normal(rng, D), normal(rng, R, G, D)
    dx, dqw, dkw = normal(rng, R, G, D), normal(rng, D), normal(rng, D)
    rstd = single(ref.head_norm_forward(x, qw, kw, H, N)[1])
    exact = ref.head_norm_backward(dout, x, qw, kw, rstd, H, N)
    n, g = abs(x[:, :N].astype(float)) * rstd[..., None], abs(dout[:, :N].astype(float))
    d = g * abs(ref.head_gains(qw, kw, H, N))
    size = abs(dout.astype(float))
    size[:, :N] = rstd[..., None] * (d + n * (d * n).mean(-1, keepdims=True))
    dw = g * n
    sizes = size, dw[:, :H].sum((0, 1)), dw[:, H:].sum((0, 1))
    bounds = [gamma(k) * (abs(old) + s) for k, old, s in zip((D + 10, R * N + 4, R * N + 4), (dx, dqw, dkw), sizes)]
    args = dx, dqw, dkw, dout, x, qw, kw, rstd, H
    return args, [(old + e, bound) for old, e, bound in zip((dx, dqw, dkw), exact, bounds)]
