"""The oracles of kernels/norm.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64, sum_rows

# ---- layernorm: n = (x - mean) * rstd, out = n * w + b, over the last axis with the biased variance


@in_float64
def layernorm_forward(x, w, b, eps=1e-5):
    mean = x.mean(axis=-1)
    rstd = 1 / np.sqrt(x.var(axis=-1) + eps)
    return (x - mean[..., None]) * rstd[..., None] * w + b, mean, rstd


@in_float64
def layernorm_backward(dout, x, w, mean, rstd):
    n = (x - mean[..., None]) * rstd[..., None]
    dn = dout * w
    dx = rstd[..., None] * (dn - dn.mean(axis=-1, keepdims=True) - n * (dn * n).mean(axis=-1, keepdims=True))
    return dx, sum_rows(dout * n), sum_rows(dout)


# ---- rmsnorm: n = x * rstd, out = n * w, over the last axis; w may be None


@in_float64
def rmsnorm_forward(x, w=None, eps=1e-5):
    rstd = 1 / np.sqrt((x**2).mean(axis=-1) + eps)
    return x * rstd[..., None] * (1 if w is None else w), rstd


@in_float64
def rmsnorm_backward(dout, x, w, rstd):
    n = x * rstd[..., None]
    dn = dout * (1 if w is None else w)
    return rstd[..., None] * (dn - n * (dn * n).mean(axis=-1, keepdims=True)), sum_rows(dout * n)


# ---- head_norm: rmsnorm of the first N of the heads of x (R, heads, hs): H with gains qw, the others with kw


def head_gains(qw, kw, H, N):
    return np.where(np.arange(N)[:, None] < H, qw, kw)  # (N, hs)


@in_float64
def head_norm_forward(x, qw, kw, H, N, eps=1e-5):
    normed, rstd = rmsnorm_forward(x[:, :N], head_gains(qw, kw, H, N), eps)
    return np.concatenate([normed, x[:, N:]], axis=1), rstd


@in_float64
def head_norm_backward(dout, x, qw, kw, rstd, H, N):
    dx, _ = rmsnorm_backward(dout[:, :N], x[:, :N], head_gains(qw, kw, H, N), rstd)
    dw = dout[:, :N] * x[:, :N] * rstd[..., None]  # (R, N, hs)
    return np.concatenate([dx, dout[:, N:]], axis=1), dw[:, :H].sum(axis=(0, 1)), dw[:, H:].sum(axis=(0, 1))
