"""Every kernel against the float64 oracle: each instruction set, several numbers of threads, awkward sizes.

A case is a function with the name of its kernel. It makes arguments for given sizes and says, for every
output, what it should be and how far off it may be. How far follows from the arithmetic: each operation of
float32 is off by at most U of its result, so n of them in a row by gamma(n), and a sum by gamma(n) times the
sum of the absolute values of its terms, in whatever order it is taken. Such a bound is the oracle's own
formula with every minus made a plus.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference as ref
import reference_hybrid as hybrid
import reference_trm as trm
from guarded import STREAM, bits, call, run

import gpt2c
from gpt2c import _core
from gpt2c.llmc import bf16_bits

FENCED = Path(__file__).with_name("fenced.py")
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


# ---- embedding


@case((0, 3, 5), (1, 1, 1), (2, 7, 3), (1, 5, 17), (3, 4, 65), (2, 7, 5, False), large=(4, 32, 1801))
def embedding_forward(rng, B, T, C, positions=True):
    V, S, pos = 11, T + 5, 3
    tokens = rng.integers(V, size=(B, T), dtype=np.int32)
    wte, wpe = normal(rng, V, C), normal(rng, S, C)
    args = unset(B, T, C), tokens, wte, wpe if positions else None, np.array([pos], np.int32)
    exact = ref.embedding_forward(tokens, wte, wpe, pos) if positions else wte[tokens]
    return args, [(single(exact), 0)]  # one rounding: exact


@case((0, 3, 5), (1, 1, 1), (2, 7, 3), (1, 5, 17), (3, 4, 65), (2, 7, 5, False), large=(4, 32, 1801))
def embedding_backward(rng, B, T, C, positions=True):
    V, S, pos = 5, T + 5, 3  # most tokens occur more than once
    tokens = rng.integers(V, size=(B, T), dtype=np.int32)
    dwte, dwpe, dout = normal(rng, V, C), normal(rng, S, C), normal(rng, B, T, C)
    exact = ref.embedding_backward(dout, tokens, V, S, pos)
    sizes = ref.embedding_backward(abs(dout), tokens, V, S, pos)
    args = dwte, dwpe if positions else None, dout, tokens, np.array([pos], np.int32)
    tables = (dwte, dwpe) if positions else (dwte,)
    return args, [(old + e, gamma(B * T) * (abs(old) + s)) for old, e, s in zip(tables, exact, sizes)]


# ---- layernorm


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


# ---- rmsnorm

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


# ---- matmul: M x K times K x N, across the borders of tiles (M 4, 6, 14; N 8, 16, 32), of spans of K (384)
# and of blocks (M 256, 384, 896; N 80, 160, 320)

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


# ---- attention: B, T, H, D, and how large the entries of q and k are

HEADS = [
    (0, 3, 1, 4), (1, 1, 1, 1), (2, 1, 3, 2), (1, 2, 1, 3), (2, 7, 2, 5), (1, 8, 2, 8), (1, 9, 1, 7),
    (3, 15, 1, 16), (1, 16, 2, 15), (1, 17, 1, 17), (1, 31, 2, 33), (1, 32, 1, 31), (2, 33, 1, 64),
    (1, 67, 1, 13), (1, 33, 1, 4, 30),
]  # fmt: skip


def attention_inputs(rng, B, T, H, D, scale=1):
    """-> qkv, the oracle's results, the sizes of scores and out, by what share a probability may be off.

    A score s is off by gamma(D + 3) of its size; exp turns that, and the rounding of s - max or s - lse, into
    a share, and adds three roundings of its own.
    """
    qkv = normal(rng, B, T, 3 * H * D)
    qkv[..., : 2 * H * D] *= scale
    out, scores, att, lse = ref.attention_forward(qkv, H)
    q, k, v = (ref.split_heads(abs(x.astype(float)), H) for x in np.split(qkv, 3, axis=-1))
    size = q @ k.swapaxes(-1, -2) / np.sqrt(D) * np.tri(T)
    off = gamma(D + 3) * size.max(initial=0) + U * (
        2 * abs(scores).max(initial=0) + abs(lse).max(initial=0) + 3
    )
    return qkv, (out, scores, att, lse), size, ref.merge_heads(att @ v), off


@case(*HEADS, large=(2, 129, 7, 33))
def attention_forward(rng, B, T, H, D, scale=1):
    qkv, (out, _, _, lse), _, size_out, off = attention_inputs(rng, B, T, H, D, scale)
    args = unset(*out.shape), unset(*lse.shape), qkv
    share = 2 * off + gamma(2 * T + 8)  # of the weighted sum and of the sum of weights
    return args, [(out, share * size_out), (lse, off + gamma(T + 8) * (1 + abs(lse)))]


@case(*HEADS, large=(2, 129, 7, 33))
def attention_materialised_forward(rng, B, T, H, D, scale=1):
    qkv, (out, scores, att, _), size, size_out, off = attention_inputs(rng, B, T, H, D, scale)
    args = unset(*out.shape), unset(*att.shape), unset(*att.shape), qkv
    share = 2 * off + gamma(2 * T + 8)
    return args, [(out, share * size_out), (scores, gamma(D + 3) * size), (att, share * att)]


@case(*HEADS, large=(2, 129, 7, 33))
def attention_backward(rng, B, T, H, D, scale=1):
    """The kernels get what the forward keeps as the oracle has it, rounded."""
    qkv, (out, _, att, lse), _, _, off = attention_inputs(rng, B, T, H, D, scale)
    dqkv, dout = normal(rng, *qkv.shape), normal(rng, *out.shape)
    q, k, v, dy = (ref.split_heads(abs(x.astype(float)), H) for x in (*np.split(qkv, 3, axis=-1), dout))
    datt = dy @ v.swapaxes(-1, -2)
    ds = att * (datt + (att * datt).sum(-1, keepdims=True)) / np.sqrt(D)
    sizes = ds @ k, ds.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy
    size = np.concatenate([ref.merge_heads(x) for x in sizes], axis=-1)
    bound = (off + gamma(2 * T + D + 16)) * size + gamma(2) * abs(dqkv)
    args = dqkv, dout, qkv, single(out), single(lse)
    return args, [(dqkv + ref.attention_backward(dout, qkv, att, H), bound)]


@case(*HEADS, large=(2, 129, 7, 33))
def attention_materialised_backward(rng, B, T, H, D, scale=1):
    (dqkv, dout, qkv, *_), expected = attention_backward(rng, B, T, H, D, scale)
    return (dqkv, dout, qkv, single(ref.attention_forward(qkv, H)[2])), expected


DECODED = [(0, 1, 1, 3, 0), (1, 1, 1, 1, 0), (2, 1, 3, 5, 8), (2, 3, 2, 8, 13), (1, 17, 1, 33, 2)]


def decoding(qkv, out, off, size_out, T, pos, last_argument):
    """(args, expected) for the last T of pos + T positions; the others are in the caches already, beyond them lies rubbish."""
    B, _, C = out.shape
    _, k, v = np.split(qkv, 3, axis=-1)
    after = np.full((2, B, pos + T + 3, C), 1e30, np.float32)
    after[:, :, : pos + T] = k, v
    before = after.copy()
    before[:, :, pos : pos + T] = 1e30
    bound = (2 * off + gamma(2 * (pos + T) + 8)) * size_out
    args = unset(B, T, C), *before, qkv[:, pos:].copy(), np.array([pos], np.int32), last_argument
    return args, [(out[:, pos:], bound[:, pos:]), (after[0], 0), (after[1], 0)]


@case(*DECODED, large=(2, 65, 7, 33, 64))
def attention_cached_forward(rng, B, T, H, D, pos):
    qkv, (out, *_), _, size_out, off = attention_inputs(rng, B, pos + T, H, D)
    return decoding(qkv, out, off, size_out, T, pos, H)


# ---- the Tiny Recursive Model: dynamic tanh


@case(*ROWS, large=(64, 1031))
def dyt_forward(rng, R, C):
    """tanh is off by 4 units of its own, and by what the rounding of a x does to it."""
    x, a, w, b = normal(rng, R, C), single([0.8]), normal(rng, C), normal(rng, C)
    t = abs(np.tanh(a * x.astype(float)))
    bound = abs(w) * (8 * U * t + U * abs(a * x)) + gamma(2) * (abs(w) * t + abs(b))
    return (unset(R, C), x, a, w, b), [(trm.dyt_forward(x, a, w, b), bound)]


@case(*ROWS, large=(64, 1031))
def dyt_backward(rng, R, C):
    x, a, w, dout = normal(rng, R, C), single([0.8]), normal(rng, C), normal(rng, R, C)
    old = normal(rng, R, C), normal(rng, 1), normal(rng, C), normal(rng, C)
    exact = trm.dyt_backward(dout, x, a, w)
    t = abs(np.tanh(a * x.astype(float)))
    off_t = 8 * U * t + U * abs(a * x)
    g = abs(dout.astype(float))
    size_u, off_u = g * abs(w) * (1 + t**2), g * abs(w) * 2 * t * off_t
    sizes = a * size_u, (size_u * abs(x)).sum(), ref.sum_rows(g * t), ref.sum_rows(g)
    off = a * off_u, (off_u * abs(x)).sum(), ref.sum_rows(g * off_t), 0
    roundings = 8, R * C + 8, R + 4, R + 2
    expected = [(o + e, far + gamma(k) * (abs(o) + size)) for o, e, far, k, size in zip(old, exact, off, roundings, sizes)]
    return (*old, dout, x, a, w), expected


# ---- attention with contextual positions: B, T, H, D, rows of the table, and how large the entries of q and k are

COPE_HEADS = [
    (0, 3, 1, 4, 3), (1, 1, 1, 1, 1), (2, 1, 3, 2, 2), (1, 2, 1, 3, 4), (2, 7, 2, 5, 3), (1, 8, 2, 8, 9), (1, 9, 1, 7, 1),
    (3, 15, 1, 16, 5), (1, 16, 2, 15, 17), (1, 17, 1, 17, 4), (9, 31, 2, 33, 12), (1, 32, 1, 31, 65), (2, 33, 1, 64, 7),
    (1, 67, 1, 13, 20), (1, 33, 1, 4, 9, 30), (1, 20, 1, 4, 65, 300),
]  # fmt: skip


def cope_inputs(rng, B, T, H, D, M, scale=1):
    """-> qkv, table, the oracle's cache and results, and how far off gates, positions and scores may be.

    r is off by gamma(D) of its size. A gate turns that into a quarter of it at most, and adds a few roundings; a position
    is a sum of gates; reading the table at a position that is off by so much is off by that times its steepest part.
    """
    qkv, table = normal(rng, B, T, 3 * H * D), normal(rng, H, M, D)
    qkv[..., : 2 * H * D] *= scale
    out, c = trm.cope_forward(qkv, table, H)
    q, k = abs(c["q"]), abs(c["k"])
    seen = np.tri(T)
    size_r = q @ k.swapaxes(-1, -2) * seen
    off_r = gamma(D + 2) * size_r
    off_gate = c["gate"] * (1 - c["gate"]) * off_r * (1 + off_r) + 4 * U * c["gate"]
    off_p = np.flip(np.flip(off_gate, -1).cumsum(-1), -1) + gamma(T + 1) * c["total"]
    size_z = np.einsum("bhid,hmd->bhim", q, abs(table))
    size_z = np.concatenate([size_z, 0 * size_z[..., :1]], -1)
    size_read = np.take_along_axis(size_z, c["m"], -1) + np.take_along_axis(size_z, c["m"] + 1, -1)
    z = np.einsum("bhid,hmd->bhim", c["q"], table)
    steepest = abs(np.diff(z, axis=-1)).max(-1, initial=0)[..., None]
    off_score = (off_r + gamma(2) * size_r) / np.sqrt(D) + steepest * off_p + gamma(D + 6) * size_read
    off = (off_score * seen).max(initial=0) + U * (2 * abs(c["preatt"]).max(initial=0) + abs(c["lse"]).max(initial=0) + 3)
    size_out = ref.merge_heads(c["att"] @ abs(c["v"]))
    return qkv, table, out, c, size_out, (off_gate, off_p, off_score, off, size_read)


@case(*COPE_HEADS, large=(2, 129, 7, 33, 40))
def cope_forward(rng, B, T, H, D, M, scale=1):
    qkv, table, out, c, size_out, (_, _, off_score, off, _) = cope_inputs(rng, B, T, H, D, M, scale)
    args = unset(*out.shape), unset(B, H, T), unset(B, H, T, T), unset(B, H, T, T), qkv, table
    share = 2 * off + gamma(2 * T + 8)
    return args, [(out, share * size_out), (c["lse"], off + gamma(T + 8) * (1 + abs(c["lse"]))),
                  (c["preatt"], off_score * np.tri(T) + gamma(2) * abs(c["preatt"])), (c["att"], share * c["att"])]


@case(*COPE_HEADS, large=(2, 129, 7, 33, 40))
def cope_backward(rng, B, T, H, D, M, scale=1):
    """Where a position is so near a row of the table that rounding may take it to the other side, the slope of either side
    is right, and the bound is as wide as they differ."""
    qkv, table, out, c, _, (off_gate, off_p, _, off, size_read) = cope_inputs(rng, B, T, H, D, M, scale)
    dqkv, dtable, dout = normal(rng, *qkv.shape), normal(rng, *table.shape), normal(rng, *out.shape)
    q, k, v, dy = (abs(x) for x in (c["q"], c["k"], c["v"], ref.split_heads(dout.astype(float), H)))
    seen, share = np.tri(T), off + gamma(2 * T + D + 16)
    datt = dy @ v.swapaxes(-1, -2)
    size_ds = c["att"] * (datt + (c["att"] * datt).sum(-1, keepdims=True))
    off_ds = share * size_ds

    slopes = np.einsum("bhid,hmd->bhim", c["q"], np.diff(table.astype(float), axis=1))
    slopes = np.concatenate([slopes, 0 * size_read[..., :1], 0 * size_read[..., :1]], -1) if T else size_read
    nearest = np.clip(np.rint(c["total"]).astype(int), 0, M - 1) if T else c["m"]
    left, right = (np.take_along_axis(slopes, np.maximum(nearest - 1 + side, 0), -1) for side in (0, 1))
    jump = np.where(abs(c["total"] - nearest) <= off_p, abs(right - left), 0)
    size_dp = size_ds * size_read
    off_dp = (share + gamma(D + 8)) * size_dp + size_ds * jump
    size_dg, off_dg = size_dp.cumsum(-1), off_dp.cumsum(-1) + gamma(T + 1) * size_dp.cumsum(-1)
    flat = c["gate"] * (1 - c["gate"])
    off_dr = (off_ds + gamma(4) * size_ds) / np.sqrt(D) + off_dg * flat + size_dg * (off_gate + 4 * U * c["gate"]) * seen
    size_dr = size_ds / np.sqrt(D) + size_dg * flat

    read = np.zeros((*q.shape[:3], M + 1))  # how much of ds each row of the table gets
    for index in np.ndindex(size_ds.shape):
        read[index[:3]][c["m"][index]] += (1 - c["f"][index]) * size_ds[index]
        read[index[:3]][c["m"][index] + 1] += c["f"][index] * size_ds[index]
    off_read = (share + gamma(T + 6)) * read[..., :M] + (size_ds * off_p).sum(-1, keepdims=True)
    off_dq = off_dr @ k + np.einsum("bhim,hmd->bhid", off_read, abs(table))
    off_dq += gamma(T + M + 4) * (size_dr @ k + np.einsum("bhim,hmd->bhid", read[..., :M], abs(table)))
    off_dk = off_dr.swapaxes(-1, -2) @ q + gamma(T + 4) * (size_dr.swapaxes(-1, -2) @ q)
    off_dv = share * (c["att"].swapaxes(-1, -2) @ dy)
    off_dqkv = np.concatenate([ref.merge_heads(d) for d in (off_dq, off_dk, off_dv)], axis=-1) + gamma(2) * abs(dqkv)
    off_dtable = np.einsum("bhim,bhid->hmd", off_read + gamma(B * T + 8) * read[..., :M], q) + gamma(2) * abs(dtable)
    exact = trm.cope_backward(dout, c)
    args = dqkv, dtable, dout, qkv, single(out), single(c["lse"]), table
    return args, [(dqkv + exact[0], off_dqkv), (dtable + exact[1], off_dtable)]


@case(*[(B, T, H, D, pos, M) for (B, T, H, D, pos), M in zip(DECODED, (3, 1, 2, 30, 5))], large=(2, 65, 7, 33, 64, 40))
def cope_cached_forward(rng, B, T, H, D, pos, M):
    qkv, table, out, _, size_out, (_, _, _, off, _) = cope_inputs(rng, B, pos + T, H, D, M)
    return decoding(qkv, out, off, size_out, T, pos, table)


# ---- residuals with a scale, and adaptive depth


@case(*ROWS, (5, 9, False), large=(64, 1031))
def scaled_residual_forward(rng, R, C, adaptive=True):
    x, y, scale = normal(rng, R, C), normal(rng, R, C), single([0.3])
    depth = rng.integers(1, 5, R).astype(np.float32) if adaptive else None
    exact = trm.scaled_residual_forward(x, y, scale, depth, 3)
    bound = gamma(2) * (abs(x) + abs(scale * y)) * (1 if depth is None else (depth >= 3)[:, None])  # else: exact
    return (unset(R, C), x, y, scale, depth, 3), [(exact, bound)]


@case(*ROWS, (5, 9, False), large=(64, 1031))
def scaled_residual_backward(rng, R, C, adaptive=True):
    y, scale, dout = normal(rng, R, C), single([0.3]), normal(rng, R, C)
    old = normal(rng, R, C), normal(rng, R, C), normal(rng, 1)
    depth = rng.integers(1, 5, R).astype(np.float32) if adaptive else None
    exact = trm.scaled_residual_backward(dout, y, scale, depth, 3)
    sizes = trm.scaled_residual_backward(abs(dout), abs(y), scale, depth, 3)
    roundings = 1, 2, R * C + 2
    expected = [(o + e, gamma(n) * (abs(o) + size)) for o, e, n, size in zip(old, exact, roundings, sizes)]
    return (*old, dout, y, scale, depth, 3), expected


def halting_inputs(rng, R, C, steps=4):
    """x after each step, w, b, and what the oracle makes of them; no row is near the threshold."""
    xs = [normal(rng, R, C) for _ in range(steps)]
    w, b = single(normal(rng, C) / np.sqrt(max(C, 1))), single([-0.7])
    mixed, prob, weight, depth, total = trm.halting_forward(xs, w, b, 0.9)
    assert abs(np.cumsum(prob, axis=0) - 0.9).min(initial=1) > 1e-5
    return xs, w, b, mixed, prob, weight, depth, total


def halting_state(prob, depth, step):
    """depth and total as they are before a step, from what they are after the last."""
    now = np.minimum(depth, step)
    return now, np.array([prob[: n - 1, r].sum() for r, n in enumerate(now)])


@case(*ROWS, (5, 9, 1), (5, 9, 4), large=(64, 1031))
def halting_forward(rng, R, C, step=2):
    xs, w, b, _, prob, weight, depth, _ = halting_inputs(rng, R, C)
    (before, total), (after, _), x = halting_state(prob, depth, step), halting_state(prob, depth, step + 1), xs[step - 1]
    prob, weight = prob[step - 1], weight[step - 1]
    off_p = 0.25 * gamma(C + 3) * (abs(x.astype(float)) @ abs(w) + 1) + 8 * U
    off_weight = (weight > 0) * (off_p + 4 * U)
    old = normal(rng, R, C)
    args = unset(R), unset(R), single(total), single(before), old, x, w, b, step, 4, 0.9
    if step == 1:  # what is there does not count
        args, old = (*args[:2], *(np.full_like(a, np.nan) for a in args[2:5]), *args[5:]), 0 * old
    new_total = single(total) + np.where(depth > step, prob, 0)
    bounds = off_p, off_weight, off_p + 2 * U, 0, off_weight[:, None] * abs(x) + gamma(2) * (abs(old) + abs(x))
    return args, zip((prob, weight, new_total, after, old + weight[:, None] * x), bounds)


@case(*ROWS, (5, 9, 1), (5, 9, 4), large=(64, 1031))
def halting_backward(rng, R, C, step=2):
    xs, w, b, _, prob, weight, depth, _ = halting_inputs(rng, R, C)
    old, dmixed, x = (normal(rng, R, C), normal(rng, C), normal(rng, 1)), normal(rng, R, C), xs[step - 1]
    dtotal = normal(rng, R)
    dweight = (dmixed.astype(float) * x).sum(-1)
    after = np.where(depth == step, dtotal - dweight, dtotal)
    p = single(prob[step - 1]).astype(float)
    goes_on = depth > step
    d = np.where(goes_on, (dtotal + dweight) * p * (1 - p), 0)
    share = single(weight[step - 1])
    size_dweight = (abs(dmixed.astype(float)) * abs(x)).sum(-1)
    size_d = np.where(goes_on, (abs(dtotal) + size_dweight) * p * (1 - p), 0)
    off_d = gamma(C + 6) * size_d + np.where(goes_on, 2 * U * p * (abs(dtotal) + size_dweight), 0)
    exact = share[:, None] * dmixed + d[:, None] * w, d @ x, d.sum()
    off = off_d[:, None] * abs(w), off_d @ abs(x), off_d.sum()
    sizes = abs(share[:, None] * dmixed) + size_d[:, None] * abs(w), size_d @ abs(x), size_d.sum()
    expected = [(o + e, far + gamma(n) * (abs(o) + size))
                for o, e, far, n, size in zip(old, exact, off, (4, R + 2, R + 2), sizes)]
    expected.append((after, gamma(C + 2) * (abs(dtotal) + size_dweight) * (depth == step)))
    args = *old, dtotal, dmixed, x, w, single(prob[step - 1]), share, single(depth), step
    return args, expected


@case((0,), (1,), (7,), (33, 33), large=(5003,))
def ponder_forward(rng, R, ignored=1):
    depth, total = rng.integers(1, 7, R).astype(np.float32), single(rng.random(R))
    targets = rng.integers(3, size=R, dtype=np.int32)
    targets[:ignored] = -1
    ponder, mean_depth, count = trm.ponder_forward(depth, total, targets)
    args = unset(1), unset(1), unset(1), depth, total, targets
    return args, [(ponder, gamma(2) * ponder), (mean_depth, gamma(2) * mean_depth), (count, 0)]


@case((0,), (1,), (7,), (33, 33), large=(5003,))
def ponder_backward(rng, R, ignored=1):
    targets = rng.integers(3, size=R, dtype=np.int32)
    targets[:ignored] = -1
    exact = trm.ponder_backward(targets, float(single(0.05)))
    return (unset(R), targets, single([(targets >= 0).sum()]), 0.05), [(exact, gamma(1) * abs(exact))]


# ---- activations


def gelu_argument(x):
    """2u"""
    x = x.astype(float)
    return 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def gelu_bound(x, exact):
    """4 + 2 |2u| units of 2^-23 of the value; where exp(-2u) leaves the range of float32, 0 is as good."""
    u2 = gelu_argument(x)
    return abs(exact) * np.where(u2 < -126 * np.log(2), 1, (4 + 2 * abs(u2)) * 2 * U)


@case(*LENGTHS, large=(30011,))
def gelu_forward(rng, R):
    x = 4 * normal(rng, R)
    exact = ref.gelu_forward(x)
    return (unset(R), x), [(exact, gelu_bound(x, exact))]


CASES["gelu_forward_scalar"] = CASES["gelu_forward"]


@case(*LENGTHS, large=(30011,))
def gelu_backward(rng, R):
    """exp(-2u) is as far off as in the forward; 1 - s by that times s (1 - s), and by the roundings of s."""
    dx, dout, x = normal(rng, R), normal(rng, R), 3 * normal(rng, R)
    u2 = gelu_argument(x)
    s, rest = ref.sigmoid(u2), ref.sigmoid(-u2)
    inner = abs(x) * 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x.astype(float) ** 2)
    off_s = s * (rest * (4 + 2 * abs(u2)) + 2) * 2 * U
    off_slope = off_s * (1 + rest * inner) + s * inner * off_s + gamma(8) * s * (1 + (rest + U) * inner)
    exact = ref.gelu_backward(dout, x)
    return (dx, dout, x), [(dx + exact, abs(dout) * off_slope + gamma(2) * (abs(dx) + abs(exact)))]


def gelu_erf_bound(x, exact):
    """6 + x²/4 units of 2^-23 of the value; where exp(-x²/2) leaves the range of float32, 0 is as good."""
    half_square = x.astype(float) ** 2 / 2
    small = (x < 0) & (half_square > 126 * np.log(2))
    return abs(exact) * np.where(small, 1, (6 + np.minimum(half_square / 2, 50) * (x < 0)) * 2 * U)


@case(*LENGTHS, large=(30011,))
def gelu_erf_forward(rng, R):
    x = 4 * normal(rng, R)
    exact = ref.gelu_erf_forward(x)
    return (unset(R), x), [(exact, gelu_erf_bound(x, exact))]


@case(*LENGTHS, large=(30011,))
def gelu_erf_backward(rng, R):
    """Φ is as far off as in the forward, φ by the rounding of x²/2 and exp's."""
    dx, dout, x = normal(rng, R), normal(rng, R), 3 * normal(rng, R)
    half_square = x.astype(float) ** 2 / 2
    off = gelu_erf_bound(x, ref.normal_cdf(x)) + gamma(8) * (
        ref.normal_cdf(x) + (1 + half_square) * abs(x) * np.exp(-half_square) / np.sqrt(2 * np.pi))
    exact = ref.gelu_erf_backward(dout, x)
    return (dx, dout, x), [(dx + exact, abs(dout) * off + gamma(2) * (abs(dx) + abs(exact)))]


@case(*LENGTHS, large=(80021,))
def squared_relu_forward(rng, R):
    x = 4 * normal(rng, R)
    return (unset(R), x), [(single(ref.squared_relu_forward(x)), 0)]  # one rounding: exact


@case(*LENGTHS, large=(50021,))
def squared_relu_backward(rng, R):
    dx, dout, x = normal(rng, R), normal(rng, R), 4 * normal(rng, R)
    exact = ref.squared_relu_backward(dout, x)
    return (dx, dout, x), [(dx + exact, gamma(2) * (abs(dx) + abs(exact)))]


def swiglu_bound(a, exact):
    """6 units of 2^-23 of the value; where exp(-a) leaves the range of float32, 0 is as good."""
    return abs(exact) * np.where(a < -87, 1, 6 * 2 * U)


@case(*LENGTHS, large=(30011,))
def swiglu_forward(rng, R):
    a, b = 8 * normal(rng, R), normal(rng, R)
    exact = ref.swiglu_forward(a, b)
    return (unset(R), a, b), [(exact, swiglu_bound(a, exact))]


@case(*LENGTHS, large=(20011,))
def swiglu_backward(rng, R):
    """s is off by 4 units of its value; 1 - s by that times s and a rounding of 1."""
    da, db, dout, a, b = (normal(rng, R) for _ in range(5))
    a *= 4
    s, rest = ref.sigmoid(a.astype(float)), ref.sigmoid(-a.astype(float))
    off_slope = s * (8 * U * (1 + abs(a) * rest) + abs(a) * (8 * U * s + U)) + gamma(4) * s * (1 + abs(a) * rest)
    exact_a, exact_b = ref.swiglu_backward(dout, a, b)
    bound_a = abs(dout * b).astype(float) * (1 + gamma(1)) * off_slope + gamma(4) * (abs(da) + abs(exact_a))
    return (da, db, dout, a, b), [
        (da + exact_a, bound_a),
        (db + exact_b, swiglu_bound(a, exact_b) + gamma(2) * (abs(db) + abs(exact_b))),
    ]


# ---- scan: cut into stretches from LONG = 65536 steps on, where there are fewer than SIDE = 4 vectors of recurrences

SCANS = [
    (0, 3, 2), (1, 1, 1), (1, 2, 5), (2, 7, 16), (1, 5, 17), (3, 9, 33), (2, 4, 97), (5, 13, 3), (1, 511, 3), (3, 600, 2),
    (1, 65535, 5), (1, 65536, 5), (1, 65547, 16), (1, 65537, 19),
]  # fmt: skip


def scan_inputs(rng, B, T, I):
    a = single(rng.uniform(0, 1, (B, T, I)) ** 0.1)
    a[:, ::37] *= -1  # the recurrence is not for gates alone
    return a, normal(rng, B, T, I), normal(rng, B, I)


def steps_of(T):
    """Roundings behind a state after T steps, either form: two a step, and a stretch's product and sum."""
    return 4 * T + 40


@case(*SCANS, large=(2, 701, 133))
def scan_forward(rng, B, T, I):
    a, b, h0 = scan_inputs(rng, B, T, I)
    out, last = ref.scan_forward(a, b, h0)
    bound = gamma(steps_of(T)) * ref.scan_forward(abs(a), abs(b), abs(h0))[0]
    return (unset(B, T, I), unset(B, I), a, b, h0), [(out, bound), (last, bound[:, -1])]


@case(*SCANS, (2, 7, 3, False), large=(2, 701, 133))
def scan_backward(rng, B, T, I, continued=True):
    a, b, h0 = scan_inputs(rng, B, T, I)
    out, dout, dlast = single(ref.scan_forward(a, b, h0)[0]), normal(rng, B, T, I), normal(rng, B, I)
    if not continued:
        dlast = np.zeros_like(dlast)
    exact = ref.scan_backward(dout, dlast, a, out, h0)
    sizes = ref.scan_backward(abs(dout), abs(dlast), abs(a), abs(out), abs(h0))
    args = unset(B, T, I), unset(B, T, I), unset(B, I), dout, dlast if continued else None, a, out, h0
    return args, [(e, gamma(steps_of(T)) * s) for e, s in zip(exact, sizes)]


@case(*ROWS, large=(64, 1031))
def mingru_gates_forward(rng, R, I):
    x = 4 * normal(rng, R, 2 * I)
    a, b = ref.mingru_gates_forward(x)
    return (unset(R, I), unset(R, I), x), [(a, gamma(8) * a), (b, gamma(17) * b)]


@case(*ROWS, large=(64, 1031))
def mingru_gates_backward(rng, R, I):
    dx, da, db, x = normal(rng, R, 2 * I), normal(rng, R, I), normal(rng, R, I), 4 * normal(rng, R, 2 * I)
    exact = ref.mingru_gates_backward(da, db, x)
    size = ref.mingru_gates_backward(-abs(da), abs(db), x)
    return (dx, da, db, x), [(dx + exact, gamma(32) * size + gamma(2) * abs(dx))]


@case((0, 3, 2), (1, 1, 1), (2, 5, 3), (1, 33, 17), large=(2, 65, 31))
def mingru_log_forward(rng, B, T, I):
    x, h0 = 2 * normal(rng, B, T, 2 * I), abs(normal(rng, B, I))
    out = ref.mingru_log_forward(x, h0)
    return (unset(B, T, I), x, h0), [(out, gamma(1) * out + 1e-12)]


# ---- dropout

NOISE = np.array([1337, 5], np.int32)
DROPPED = [(n, 3, 0.1) for n, in LENGTHS] + [(1024, 0, 0.5), (1025, 1, 0.0), (2100, 7, 1.0), (3000, 2**40, 0.25)]


@case(*DROPPED, large=(80021, 4, 0.1))
def dropout_residual_forward(rng, R, stream, p):
    a, b, p = normal(rng, R), normal(rng, R), float(single(p))
    mask = ref.dropout_mask(R, *NOISE.tolist(), stream, p)
    out = ref.dropout_residual_forward(a, b, mask, p) if p < 1 else a
    return (unset(R), a, b, NOISE, stream, p), [(out, gamma(4) * (abs(a) + abs(out)))]


@case(*DROPPED, large=(50021, 4, 0.1))
def dropout_residual_backward(rng, R, stream, p):
    da, db, dout, p = normal(rng, R), normal(rng, R), normal(rng, R), float(single(p))
    mask = ref.dropout_mask(R, *NOISE.tolist(), stream, p)
    _, added = ref.dropout_residual_backward(dout, mask, p) if p < 1 else (dout, 0 * db)
    return (da, db, dout, NOISE, stream, p), [(da + dout, 0), (db + added, gamma(4) * (abs(db) + abs(added)))]


# ---- sums and copies: at most one rounding an element, so the float64 result rounded to float32


@case(*LENGTHS, large=(80021,))
def residual_forward(rng, R):
    a, b = normal(rng, R), normal(rng, R)
    return (unset(R), a, b), [(single(ref.residual_forward(a, b)), 0)]


@case(*LENGTHS, large=(50021,))
def residual_backward(rng, R):
    da, db, dout = normal(rng, R), normal(rng, R), normal(rng, R)
    return (da, db, dout), [(da + dout, 0), (db + dout, 0)]


def test_residual_takes_a_multiple_of_what_is_added(isa, rng):
    a, b, scale = normal(rng, 37), normal(rng, 37), 0.25  # a power of 2: one rounding
    np.testing.assert_array_equal(run("residual_forward", unset(37), a, b, scale)[0], a + scale * b)
    da, db = run("residual_backward", a, b, a, 1, 1, scale)
    np.testing.assert_array_equal((da, db), (a + a, b + scale * a))


@case((0, 2, 3), (1, 1, 1), (3, 5, 7), (2, 4, 33), large=(16, 9, 1801))
def last_position_forward(rng, B, T, C):
    x = normal(rng, B, T, C)
    return (unset(B, C), x), [(x[:, -1], 0)]


@case(*LENGTHS, large=(240007,))
def copy(rng, R):
    x = normal(rng, R)
    return (unset(R), x), [(x, 0)]


@case(*LENGTHS, large=(240007,))
def zero(rng, R):
    return (unset(R),), [(np.zeros(R), 0)]


# ---- cross-entropy: R, columns P of which V count, how large the logits are, how many targets are ignored

LOGITS = [
    (0, 5, 5), (1, 1, 1), (3, 2, 1), (1, 3, 3), (5, 8, 3), (2, 5, 4), (7, 16, 8), (3, 17, 9), (2, 20, 15),
    (5, 16, 16), (4, 31, 17), (3, 64, 33), (5, 211, 199), (6, 33, 29, 1e4), (5, 9, 7, 1, 5),
    (9, 40, 37, 30, 2),
]  # fmt: skip


def crossentropy_inputs(rng, R, P, V, scale, ignored):
    logits, targets = scale * normal(rng, R, P), rng.integers(V, size=R, dtype=np.int32)
    logits[:, V:] = np.inf  # columns that only pad do not count
    targets[:ignored] = -1
    return logits, targets, ref.crossentropy_forward(logits, targets, V)


@case(*LOGITS, large=(101, 337, 331))
def crossentropy_forward(rng, R, P, V, scale=1, ignored=0):
    logits, targets, (losses, lse, _) = crossentropy_inputs(rng, R, P, V, scale, ignored)
    off = gamma(V + 9) * (1 + abs(logits[:, :V].astype(float)).max(-1, initial=0))
    args = unset(R), unset(R), logits, targets, V
    return args, [(losses, 2 * off * (targets >= 0)), (lse, off)]


@case(*LOGITS, (9, 40, 37, 30, 2, True), (4, 31, 17, 1, 0, True), large=(101, 337, 331))
def crossentropy_backward(rng, R, P, V, scale=1, ignored=0, weighted=False):
    logits, targets, (_, lse, _) = crossentropy_inputs(rng, R, P, V, scale, ignored)
    count = (targets >= 0).sum()
    weights = normal(rng, R) if weighted else None
    exact = ref.crossentropy_backward(np.nan_to_num(logits), targets, V)
    hit = np.arange(P) == targets[:, None]
    p = exact * max(count, 1) + hit  # the probabilities; 0 in rows and columns that do not count
    off = U * (np.nan_to_num(abs(logits - lse[:, None])) + abs(lse[:, None])) + gamma(8)
    off = (p * off + gamma(3 + weighted) * hit) / max(count, 1)
    if weighted:
        off = (off + U * abs(exact)) * abs(weights[:, None])
        exact = ref.crossentropy_backward(np.nan_to_num(logits), targets, V, weights)
    args = unset(R, P), logits, single(lse), targets, single([count]), weights, V
    return args, [(exact, off)]


@case((0,), (1,), (7,), (64,), large=(1001,))
def count_targets(rng, R):
    targets = rng.integers(-1, 3, size=R, dtype=np.int32)
    return (unset(1), targets), [((targets >= 0).sum(), 0)]


@case((0, 0), (1, 1), (5, 0), (7, 3), (64, 64), large=(1001, 900))
def mean_loss(rng, R, counted):
    losses = abs(normal(rng, R))
    losses[counted:] = 0
    exact = losses.sum(dtype=float) / max(counted, 1)
    return (unset(1), losses, single([counted])), [(exact, gamma(2) * exact)]


# ---- experts: B, T, H, experts N, chosen besides the first K. Every value is off by the roundings of the sums behind it;
# they are bounded by the largest value of its tensor.


def behind(n, exact, *, terms=0.0):
    """A value of a tensor behind n roundings, of sums whose terms reach what the tensor and `terms` do."""
    return gamma(n) * (abs(exact).max(initial=0) + terms)


def cast(arrays):
    """As the kernels receive them: float32, whole numbers as they are, None where absent (or of no size)."""
    return [None if a is None or 0 in a.shape[-1:] else a if a.dtype == np.int32 else single(a) for a in arrays]


def expert_weights(rng, H, N):
    shapes = (N, 2 * H, H), (N, 2 * H, H), (N, H, 2 * H), (N - 1, H)
    return [single(rng.standard_normal(shape) / np.sqrt(shape[-1])) if shape[0] else None for shape in shapes]


MIXTURES = [
    (1, 1, 1, 1, 1), (2, 3, 5, 4, 1), (1, 7, 16, 4, 2), (3, 5, 17, 3, 2), (1, 33, 8, 5, 3), (5, 13, 33, 2, 1), (0, 2, 3, 3, 1),
]  # fmt: skip


def mixture_of(rng, B, T, H, N, K):
    """-> n, weights, the oracle's result, its cache, what is kept as (..., B, T, ...)"""
    n, weights = normal(rng, B, T, H), expert_weights(rng, H, N)
    out, cache = hybrid.moe_forward(n.reshape(-1, H), *weights, K)
    kept = [a.reshape(*a.shape[:-2], B, T, a.shape[-1]) for a in hybrid.moe_kept(cache)]
    return n, weights, out.reshape(B, T, H), cache, kept


@case(*MIXTURES, large=(9, 7, 48, 4, 1))
def moe_forward(rng, B, T, H, N, K):
    n, weights, out, _, kept = mixture_of(rng, B, T, H, N, K)
    expected = [(out, behind(6 * H + 30, out)), *((a, behind(6 * H + 30, a) * (a.dtype != np.int32)) for a in kept)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast([out, *kept])]
    return (*outputs, n, *weights), [pair for pair, output in zip(expected, outputs) if output is not None]


@case(*MIXTURES, (3, 5, 17, 3, 2, 0.5), large=(9, 7, 48, 4, 1))
def moe_backward(rng, B, T, H, N, K, balance=0.0):
    n, weights, _, cache, kept = mixture_of(rng, B, T, H, N, K)
    dout, slope, fraction = normal(rng, B, T, H), 0.0, None
    if balance:
        fraction = single(cache["picked"].mean(axis=0))
        slope = balance * hybrid.balance_slope(cache["picked"])
    dn, _, (da, db, dlogits) = hybrid.moe_backward(dout.reshape(-1, H), cache, *weights, slope)
    dgates = hybrid.by_slot(np.concatenate([da, db], axis=-1), kept[-1].reshape(B * T, kept[-1].shape[-1]))
    exact = [a.reshape(shape) for a, shape in zip((dn, dgates, dlogits), (dout.shape, kept[0].shape, kept[2].shape))]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    args = *outputs, dout, *cast(kept), *weights, fraction, balance
    return args, [(a, behind(9 * H + 60, a, terms=0.5)) for a, output in zip(exact, outputs) if output is not None]


@case(*MIXTURES, (3, 400, 2, 3, 1), large=(9, 7, 48, 4, 1))
def moe_backward_w(rng, B, T, H, N, K):
    """More rows of an expert than are gathered at a time are among the sizes."""
    n, _, _, _, kept = mixture_of(rng, B, T, H, N, K)
    gates, _, _, shares, chosen = cast(kept)
    dout, dgates = normal(rng, B, T, H), normal(rng, *gates.shape)
    old = normal(rng, N, 2 * H, H), normal(rng, N, 2 * H, H), normal(rng, N, H, 2 * H)
    exact, size = [a.astype(float) for a in old], [abs(a.astype(float)) for a in old]
    for slot, (g, d) in enumerate(zip(gates.astype(float), dgates.astype(float))):
        hidden = g[..., : 2 * H] * ref.sigmoid(g[..., : 2 * H]) * g[..., 2 * H :]
        dy = dout * shares[..., slot, None].astype(float)
        pairs = (d[..., : 2 * H], n.astype(float)), (d[..., 2 * H :], n.astype(float)), (dy, hidden)
        for e in range(N):
            rows = chosen[..., slot] == e
            for i, (left, right) in enumerate(pairs):
                exact[i][e] += left[rows].T @ right[rows]
                size[i][e] += abs(left[rows]).T @ abs(right[rows])
    args = *old, dout, dgates, gates, n, shares, chosen
    return args, [(e, gamma(B * T * len(gates) + 24) * s) for e, s in zip(exact, size)]


@case((1, 1, 1), (3, 2, 1), (17, 5, 2), (0, 3, 1), large=(3001, 3, 2))
def balance_forward(rng, R, M, K):
    probs, chosen = single(hybrid.softmax(normal(rng, R, M))), rng.permuted(np.tile(np.arange(M), (R, 1)), axis=1)[:, :K]
    picked = (chosen[:, :, None] == np.arange(M)).sum(axis=1)
    fraction = picked.sum(axis=0) / max(R, 1)
    loss = M * (fraction * probs.sum(axis=0, dtype=float) / max(R, 1)).sum()
    chosen = np.concatenate([np.zeros((R, 1), int), chosen + 1], axis=1).astype(np.int32)
    return (unset(1), unset(M), probs, chosen), [(loss, gamma(8) * loss), (fraction, gamma(2) * fraction)]


# ---- the recurrent layer: B, T, H, experts N (0: none), K; time mixing; xr; the balance loss; how many times as large the keys
# are, of which some are then clamped and others nearly; skip and a gradient from later steps. Each step starts from the roundings
# of the one before, so that bounds grow with T.

LAYERS = [
    (1, 1, 1, 0, 1), (1, 1, 1, 1, 1), (2, 3, 5, 4, 1), (3, 4, 16, 4, 2), (2, 4, 17, 3, 2), (5, 2, 33, 2, 1), (2, 5, 9, 0, 1),
    (2, 3, 5, 4, 1, False), (3, 3, 7, 0, 1, False), (2, 3, 31, 0, 1, True, False), (2, 3, 6, 4, 2, True, True, 0.5),
    (70, 2, 4, 4, 1), (3, 4, 16, 0, 1, True, True, 0.0, 10),
]  # fmt: skip
VECTORS = ("hid_norm", *hybrid.TIME_MIXING[5:], "moe_norm")


def layer_of(rng, B, T, H, N, K, mixing=True, with_xr=True, keys=1):
    """-> inputs, state, weights by name, the oracle's (out, last state, cache), skip"""
    cfg = dict(vocab_size=1, hidden=H, num_layers=1, embed=H, num_experts=max(N, 1), top_k=K, fast_mode=not N,
               use_rwkv=mixing, carry="layer")
    weights = hybrid.layer_weights(hybrid.hybrid_random_params(cfg, 1), cfg, 0)
    if keys > 1:
        weights["wk"] = keys * weights["wk"]
    inputs = [normal(rng, B, T, H) for _ in range(3)] + [normal(rng, B, T, H) if with_xr else None]
    state = {name: abs(normal(rng, B, H)) for name in hybrid.zero_state(cfg, B)}
    skip = 0.5 if with_xr else 0.0
    return inputs, state, weights, hybrid.gru_forward(*inputs, state, weights, K, skip), skip


def states(arrays):
    return [arrays.get(name) for name in ("h", "num", "den", "xprev")]


def layer_weights(weights):
    names = "hid_norm", "uz", "ur", "uh", *hybrid.TIME_MIXING, *hybrid.EXPERTS
    return [weights.get(name) for name in names]


def steps_bound(T, H, exact):
    return behind(T * (24 * H + 200), exact, terms=0.1)


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_forward(rng, B, T, H, N, K, mixing=True, with_xr=True, _=0.0, keys=1):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    exact = [out, *hybrid.gru_kept(cache, last), *states(last)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    expected = [(a, 0 if a.dtype == np.int32 else steps_bound(T, H, a)) for a, o in zip(exact, outputs) if o is not None]
    return (*outputs, *inputs, *states(state), *layer_weights(weights), 1e-6, skip), expected


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_backward(rng, B, T, H, N, K, mixing=True, with_xr=True, balance=0.0, keys=1):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    acts, mixed, _, *kept = hybrid.gru_kept(cache, last)
    dout, flow = normal(rng, B, T, H), {name: normal(rng, B, H) for name in state}
    *deltas, dxr, dstate, grads = hybrid.gru_backward(dout, flow, cache, balance)
    steps = cache["steps"]
    exact = {"deltas": np.stack(deltas), "mixed": None, "dtotal": None, "dgates": None, "dlogits": None}
    if mixing:
        exact["mixed"] = np.stack([np.stack(d, axis=1) for d in zip(*(s["mixed_deltas"] for s in steps))])
    fraction = None
    if N:
        exact["dtotal"] = np.stack([s["dtotal"] for s in steps], axis=1)
        da, db, dlogits = (np.stack(d, axis=1).reshape(B * T, *d[0].shape[1:]) for d in zip(*(s["dgates"] for s in steps)))
        chosen = kept[-1].reshape(B * T, kept[-1].shape[-1])
        exact["dgates"] = hybrid.by_slot(np.concatenate([da, db], axis=-1), chosen).reshape(kept[0].shape)
        exact["dlogits"] = dlogits.reshape(B, T, N - 1)
        if balance:
            fraction = single(np.concatenate([s["moe"]["picked"] for s in steps]).mean(axis=0))
    exact = [*exact.values(), *states(dstate)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    old = [normal(rng, B, T, H) if with_xr else None] + [normal(rng, H) if name in weights else None for name in VECTORS]
    added = [dxr, *(grads.get(name) for name in VECTORS)]
    expected = [(a, steps_bound(T, H, a)) for a, o in zip(exact, outputs) if o is not None]
    sums = [(o + a, steps_bound(T, H, a) + U * abs(o + a)) for o, a in zip(old, added) if o is not None]
    args = (old[0], *outputs, *old[1:], dout, *states(flow), *cast([out, acts, mixed, *kept]), *states(state),
            *layer_weights(weights), fraction, 1e-6, skip, balance)
    return args, sums[:with_xr] + expected + sums[with_xr:]


# ---- optimizer


@case(*LENGTHS, large=(8 * 16384 + 5,))
def adamw(rng, R):
    params, m, grads, v = normal(rng, R), normal(rng, R), normal(rng, R), normal(rng, R) ** 2
    lr, beta1, beta2, eps, decay, scale = (float(single(x)) for x in (0.1, 0.9, 0.95, 1e-3, 0.3, 0.7))
    bias1, bias2 = 1 - beta1**3, 1 - beta2**3
    new, new_m, new_v = ref.adamw(params, grads, m, v, lr, beta1, beta2, eps, decay, t=3, grad_scale=scale)
    size_m = beta1 * abs(m) + (1 - beta1) * scale * abs(grads)
    size_step = lr * size_m / bias1 / (np.sqrt(new_v / bias2) + eps)
    bound = gamma(16) * size_step + gamma(4) * (lr * decay + 1) * abs(params)
    args = params, m, v, grads, lr, beta1, beta2, eps, decay, bias1, bias2, scale
    return args, [(new, bound), (new_m, gamma(4) * size_m), (new_v, gamma(5) * new_v)]


@case(*LENGTHS, (33, 0.0, 0.9), (33, 1.0, 0.0), (33, 0.0, 0.9, 1), (97, 0.3, 0.9, 0, 1), large=(8 * 16384 + 5,))
def sgd(rng, R, dampening=0.3, momentum=0.9, nesterov=0, first=0):
    params, m, grads = normal(rng, R), normal(rng, R), normal(rng, R)
    lr, momentum, dampening, decay, scale = (float(single(x)) for x in (0.1, momentum, dampening, 0.3, 0.7))
    exact = ref.sgd(params, grads, m, lr, momentum, dampening, decay, nesterov, first, scale)
    size_d = scale * abs(grads) + decay * abs(params)
    size_m = size_d if first else momentum * abs(m) + (1 - dampening) * size_d
    size_p = abs(params) + lr * (size_d + momentum * size_m if nesterov else size_m)
    args = params, m, grads, lr, momentum, dampening, decay, scale, nesterov, first
    return args, [(exact[0], gamma(8) * size_p), (exact[1], gamma(5) * size_m)]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def add_scaled(rng, R):
    y, x, a = normal(rng, R), normal(rng, R), float(single(0.3))
    return (y, x, a), [(y + a * x.astype(np.float64), gamma(2) * (abs(y) + a * abs(x)))]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def clamp(rng, R):
    x = normal(rng, R)
    return (x, 0.5), [(np.clip(x, -0.5, 0.5), 0)]


@case(*LENGTHS, large=(8 * 16384 + 5,))
def global_norm(rng, R):
    """Up to 2^14 squares are summed in float32."""
    x = normal(rng, R)
    norm = ref.global_norm(x)
    return (unset(1), x), [(norm, gamma(min(R, 1 << 14) + 2) * norm)]


# ---- what every case is good for


@functools.cache
def made(name, sizes):
    args, expected = CASES[name][0](np.random.default_rng(1), *sizes)
    return args, list(expected)


def assert_within(outputs, expected):
    for i, (out, (exact, bound)) in enumerate(zip(outputs, expected, strict=True)):
        far = ~(abs(out - exact) <= bound + TINY)  # so that NaN is far
        assert not far.any(), (
            f"output {i}: {far.sum()} of {out.size} are off, the first at {np.argwhere(far)[0]}"
        )


def test_every_kernel_has_a_case():
    assert {*CASES, "peak"} == {*_core.DOORS}


EVERY_SIZE = [(name, sizes) for name, (_, awkward, large) in CASES.items() for sizes in (*awkward, large)]


@pytest.mark.parametrize("name, sizes", EVERY_SIZE, ids=str)
def test_against_the_oracle(isa, threads, name, sizes):
    args, expected = made(name, sizes)
    assert_within(run(name, *args), expected)


def test_nothing_beside_an_array_is_touched():
    """On any instruction set, in a process that dies of it."""
    done = subprocess.run([sys.executable, str(FENCED)], env=os.environ | {"PYTHONPATH": str(FENCED.parents[1])},
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.stderr}"


@pytest.mark.parametrize("threads", [2, 3, 7], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(isa, threads, name):
    """Several times, so that threads that are in each other's way meet."""
    args, _ = made(name, CASES[name][2])
    together = [bits(call(name, args)) for _ in range(5)]
    _core.use_threads(1)
    assert together == 5 * [bits(call(name, args))]


def batch_axis(array):
    """Which dimension runs over independent rows, in the kernel's door; None if none does."""
    return next((i for i, size in enumerate(array[2]) if size in ((1, "R"), (1, "B"))), None)


def rows_of(array, axis, part):
    return array if axis is None or array is None else np.ascontiguousarray(array[(slice(None),) * axis + (part,)])


@pytest.mark.parametrize("name", [name for name in CASES if batch_axis(_core.DOORS[name].arrays[0]) == 0
                                  and not name.startswith("dropout")])  # whose masks depend on where an element stands
def test_an_element_or_row_has_the_same_bits_wherever_it_stands(isa, name):
    args, _ = made(name, CASES[name][2])
    door = _core.DOORS[name].arrays
    axes = [batch_axis(array) for array in door] + [None] * (len(args) - len(door))
    outputs = [axis for array, axis, arg in zip(door, axes, args) if array[-1] and arg is not None]
    R, fewest = len(args[0]), 5 if name == "matmul_forward" else 1  # up to 4 rows are multiplied another way
    whole = call(name, args)
    for n in range(min(R, 35)):
        for part in slice(n, R), slice(0, R - n), slice(n, n + fewest), slice(0, n + fewest):
            if part.stop > R or part.stop - part.start < fewest:
                continue
            some = call(name, [rows_of(a, axis, part) for a, axis in zip(args, axes)])
            expected = [rows_of(a, axis, part) for a, axis in zip(whole, outputs)]
            assert bits(a for a, axis in zip(some, outputs) if axis is not None) == bits(
                a for a, axis in zip(expected, outputs) if axis is not None)


# ---- what single kernels promise besides


@pytest.mark.parametrize("name", ["gelu_forward", "gelu_forward_scalar"])
def test_gelu_over_all_floats(isa, name):
    x = np.arange(0, 2**32, 2003).astype(np.uint32).view(np.float32)  # of either sign, subnormal, huge, NaN
    x, out = x[abs(x) < np.inf], unset(np.sum(abs(x) < np.inf))
    getattr(STREAM, name)(out, x)
    exact = ref.gelu_forward(x)
    assert_within([out], [(exact, gelu_bound(x, exact))])


def test_gelu_erf_and_swiglu_over_all_floats(isa):
    x = np.arange(0, 2**32, 20011).astype(np.uint32).view(np.float32)
    x = x[abs(x) < np.inf]
    exact = ref.gelu_erf_forward(x)
    assert_within(run("gelu_erf_forward", unset(len(x)), x), [(exact, gelu_erf_bound(x, exact))])
    exact = ref.swiglu_forward(x, np.ones(len(x)))
    assert_within(run("swiglu_forward", unset(len(x)), x, np.ones_like(x)), [(exact, swiglu_bound(x, exact))])


@pytest.mark.parametrize("name", ["gelu_erf_forward", "squared_relu_forward"])
def test_activations_of_special_values(isa, name):
    x = single([0.0, np.nan, -np.nan, np.inf, -3e38, 1e-30, -1e-45])
    small = 0.0 if name == "squared_relu_forward" else 5e-31
    expected = [0.0, np.nan, np.nan, np.inf, 0.0, small, 0.0]
    np.testing.assert_allclose(run(name, unset(7), x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["gelu_forward", "gelu_forward_scalar"])
def test_gelu_of_special_values(isa, name):
    x = single([0.0, -0.0, np.nan, -np.nan, np.inf, 3e38, -3e38, 1e-45, -1e-45])
    out = unset(9)
    getattr(STREAM, name)(out, x)
    np.testing.assert_array_equal(out, single([0.0, -0.0, np.nan, np.nan, np.inf, 3e38, 0.0, 0.0, 0.0]))
    assert list(np.signbit(out[:2])) == [False, True]


def test_tanh_over_all_floats(isa):
    """Through dyt_forward with a = w = 1 and b = 0: within 4 units in the last place."""
    x = np.arange(0, 2**32, 2003).astype(np.uint32).view(np.float32)
    x = x[(abs(x) < np.inf) & (abs(x) > 2.0**-126)][None]
    out, one = unset(*x.shape), np.ones(x.shape[1], np.float32)
    STREAM.dyt_forward(out, x, one[:1], one, 0 * one)
    exact = np.tanh(x.astype(float))
    assert (abs(out - exact) <= 4 * np.spacing(abs(single(exact)))).all()


def test_contextual_positions_of_nan_and_infinite_scores_read_nothing_wild(isa):
    qkv, table = np.full((1, 40, 24), np.nan, np.float32), np.ones((2, 5, 4), np.float32)
    for value in np.nan, np.inf, 3e38:
        qkv[...] = value
        outputs = run("cope_forward", unset(1, 40, 8), unset(1, 2, 40), None, None, qkv, table)
        run("cope_backward", np.zeros_like(qkv), 0 * table, outputs[0], qkv, *outputs, table)


def test_contextual_decoding_in_any_steps_is_the_full_forward(isa):
    sizes = B, T, H, D, _ = 2, 33, 3, 13, 9
    (*_, qkv, table), [(out, bound), *_] = made("cope_forward", sizes)
    for ends in range(1, T + 1), (7, 8, 30, T), (T,):
        caches, parts, pos = [unset(B, T + 2, H * D), unset(B, T + 2, H * D)], [], 0
        for end in ends:
            new, at = qkv[:, pos:end].copy(), np.array([pos], np.int32)
            part, *caches = run("cope_cached_forward", unset(B, end - pos, H * D), *caches, new, at, table)
            parts.append(part)
            pos = end
        assert_within([np.concatenate(parts, axis=1)], [(out, bound)])


@pytest.mark.parametrize("T, I", [(63, 1), (500, 200), (4000, 5), (66000, 9), (66000, 17)])
def test_the_three_forms_of_the_mingru_agree(isa, rng, T, I):
    """Few recurrences over a long sequence are cut into stretches, many are not; and the form in logarithms."""
    x, h0 = 2 * normal(rng, 1, T, 2 * I), abs(normal(rng, 1, I))
    a, b = run("mingru_gates_forward", unset(1, T, I), unset(1, T, I), x)
    found = run("scan_forward", unset(1, T, I), unset(1, I), a, b, h0)[0]
    many = [np.repeat(array, 4, axis=0) for array in (a, b, h0)]
    direct = call("scan_forward", (unset(4, T, I), unset(4, I), *many))[0]
    logs = call("mingru_log_forward", (unset(1, T, I), x, h0))[0]
    np.testing.assert_allclose(found, logs, rtol=1e-5)
    np.testing.assert_allclose(direct, np.repeat(logs, 4, axis=0), rtol=1e-5)


def test_dropout_keeps_the_right_share_independently(isa):
    """Of 2^20 elements; a share of p varies by sqrt(p (1 - p) / n), five of which are 0.0015 for p = 0.1."""
    n, p = 1 << 20, 0.1
    zero, one = np.zeros(n, np.float32), np.ones(n, np.float32)

    def dropped(stream, *noise):
        out = unset(n)
        STREAM.dropout_residual_forward(out, zero, one, np.array(noise, np.int32), stream, p)
        return out == 0

    masks = [dropped(0, 1, 1), dropped(1, 1, 1), dropped(0, 2, 1), dropped(0, 1, 2), dropped(0, -1, 1)]
    for mask in masks:
        assert mask.mean() == pytest.approx(p, abs=0.0015)
        for lag in (1, 2, 16, 64, 1024, 4096):
            assert (mask[lag:] & mask[:-lag]).mean() == pytest.approx(p * p, abs=0.0005)
    for i, one_mask in enumerate(masks):
        for other in masks[:i]:
            assert (one_mask & other).mean() == pytest.approx(p * p, abs=0.0005)


@pytest.mark.parametrize("threshold, depth", [(0.5, 1), (1.0, 2), (1.25, 3)])
def test_a_token_halts_once_the_sum_is_as_much_as_the_threshold(isa, rng, threshold, depth):
    """Each step's probability is 1/2, so that the sums are exact."""
    x, zero = normal(rng, 3, 5), np.zeros(5, np.float32)
    total, found, mixed = (unset(*shape) for shape in ((3,), (3,), (3, 5)))
    for step in 1, 2, 3, 4:
        prob, _, total, found, mixed = run("halting_forward", unset(3), unset(3), total, found, mixed, x, zero, zero[:1], step, 4,
                                           threshold)
        np.testing.assert_array_equal(prob, 0.5)
    np.testing.assert_array_equal(found, trm.halting_forward([x] * 4, zero, 0.0, threshold)[3])
    np.testing.assert_array_equal(found, depth)


@pytest.mark.parametrize("R", [1, 16383, 16385, 8 * 16384 + 5])
def test_global_norm_of_whole_numbers_is_exact(isa, rng, R):
    """Every partial sum is exact, in whatever order: no element is left out."""
    x = rng.integers(1, 9, R).astype(np.float32)
    assert run("global_norm", unset(1), x)[0] == single(ref.global_norm(x))


def test_clamp_keeps_what_is_not_a_number(isa):
    x = single([np.nan, np.inf, -np.inf, 1, -1, 0.25] * 7)
    np.testing.assert_array_equal(run("clamp", x, 0.5)[0], single([np.nan, 0.5, -0.5, 0.5, -0.5, 0.25] * 7))


def test_sgd_without_momentum_needs_no_moments(isa, rng):
    p, g = normal(rng, 33), normal(rng, 33)
    expected = ref.sgd(p, g, None, 0.1, weight_decay=0.3)[0], gamma(5) * (abs(p) + abs(g))
    assert_within(call("sgd", (p, None, g, 0.1, 0.0, 0.0, 0.3)), [expected])


@pytest.mark.parametrize("R, P, V, scale", [(1, 1, 1, 1), (5, 8, 3, 1), (4, 31, 17, 1), (6, 33, 29, 1e4)])
def test_crossentropy_backward_may_store_over_the_logits(isa, R, P, V, scale):
    (_, logits, *others), _ = made("crossentropy_backward", (R, P, V, scale, 1))
    apart = run("crossentropy_backward", unset(R, P), logits, *others)
    assert bits(apart) == bits(run("crossentropy_backward", logits, logits, *others))


@pytest.mark.parametrize("V", [1, 19, 33])
def test_crossentropy_where_one_logit_is_far_above_the_others(isa, V):
    """In each column in turn, the last included: exp of it alone would leave float32's range."""
    logits, targets = single(1e4 * np.eye(V, V + 2)), np.arange(V, dtype=np.int32)
    logits[:, V:] = np.inf
    losses, lse = run("crossentropy_forward", unset(V), unset(V), logits, targets, V)
    np.testing.assert_array_equal((losses, lse), (0 * lse, 0 * lse + 1e4))


def test_residual_of_a_tensor_with_itself_sends_it_both_gradients(isa, rng):
    d, dout = normal(rng, 37), normal(rng, 37)
    np.testing.assert_array_equal(run("residual_backward", d, d, dout)[0], d + dout + dout)


def test_decoding_in_any_steps_is_the_full_forward(isa):
    sizes = B, T, H, D = 2, 33, 3, 13
    (*_, qkv), [(out, bound), _] = made("attention_forward", sizes)
    decoded = []
    for ends in range(1, T + 1), (7, 8, 30, T), (T,):
        caches, parts, pos = [unset(B, T + 2, H * D), unset(B, T + 2, H * D)], [], 0
        for end in ends:
            new, at = qkv[:, pos:end].copy(), np.array([pos], np.int32)
            part, *caches = run("attention_cached_forward", unset(B, end - pos, H * D), *caches, new, at, H)
            parts.append(part)
            pos = end
        decoded.append(np.concatenate(parts, axis=1))
    assert_within(decoded, 3 * [(out, bound)])


BF16_PRODUCTS = [(5, 1, 1), (7, 17, 13), (33, 769, 34), (30, 31, 771), (70, 129, 200), (331, 40, 929)]


def bf16_products(x, w, b, dout, old_dx, old_dw):
    """-> out, dx, dw with the bias and what was there before"""
    return [run("matmul_forward", unset(len(x), len(w)), x, w, b)[0], run("matmul_backward_x", old_dx.copy(), dout, w)[0],
            run("matmul_backward_w", old_dw.copy(), None, dout, x)[0]]


@pytest.mark.parametrize("R, C, N", BF16_PRODUCTS)
def test_bf16_products_are_those_of_rounded_operands(R, C, N, isa, threads, rng):
    """Only the operands are rounded; the sums are as exact as with float32."""
    gpt2c.set_matmul_precision("bf16")
    full = normal(rng, R, C), normal(rng, N, C), normal(rng, R, N)
    x, w, dout = ((bf16_bits(a).astype(np.uint32) << 16).view(np.float32) for a in full)
    b, *old = normal(rng, N), normal(rng, R, C), normal(rng, N, C)
    size = [ref.matmul_forward(abs(x), abs(w), abs(b)), *ref.matmul_backward(abs(dout), abs(x), abs(w))[:2]]
    exact = [ref.matmul_forward(x, w, b), *ref.matmul_backward(dout, x, w)[:2]]
    for i in 0, 1:
        exact[i + 1], size[i + 1] = exact[i + 1] + old[i], size[i + 1] + abs(old[i])
    for given in full, (x, w, dout):
        found = bf16_products(given[0], given[1], b, given[2], *old)
        assert_within(found, [(e, gamma(k + 2) * s) for e, s, k in zip(exact, size, (C, N, R))])


@pytest.mark.parametrize("R, C, N", BF16_PRODUCTS[2:])
def test_threads_change_no_bit_of_bf16_products(R, C, N, isa, rng):
    gpt2c.set_matmul_precision("bf16")
    args = [normal(rng, *shape) for shape in ((R, C), (N, C), (N,), (R, N), (R, C), (N, C))]

    def found(threads):
        _core.use_threads(threads)
        return bits(bf16_products(*args))

    assert [found(2), found(3), found(7)] == 3 * [found(1)]


def test_peak_counts_what_it_does(isa):
    """12 sums per lane go from 0, 0.1, 0.2, ... by s x + y; a sink is the sum over all of them."""
    R, steps, lanes = 5, 7, {"avx2": 8, "avx512": 16, "avx512bf16": 16, "amx": 16}.get(isa, 4)
    sums = 0.1 * np.arange(12)
    for _ in range(steps):
        sums = sums * 1.0001 + 0.0001
    total = lanes * sums.sum()
    expected = [(np.full(R, total), gamma(2 * steps + 20) * total), (2 * 12 * lanes * R * steps, 0)]
    assert_within(run("peak", unset(R), unset(1), steps), expected)


STORING = {name: [scalar for scalar, *_ in door.scalars if scalar.startswith("add")]
           for name, door in _core.DOORS.items() if name in CASES}


@pytest.mark.parametrize("name", [name for name, flags in STORING.items() if flags])
def test_storing_is_adding_to_zeros(name, isa, rng):
    """With add = 0 it does not matter what was in the gradient."""
    make, sizes, large = CASES[name]
    for size in (*sizes, large):
        args = make(rng, *size)[0]
        one_for_all = {"matmul_backward_w": 2, "moe_backward_w": 3}  # outputs that share a flag
        stored = one_for_all.get(name, len(STORING[name]))  # the first outputs
        zeros, nans = ([a if a is None else np.full_like(a, fill) for a in args[:stored]] for fill in (0, np.nan))
        added = call(name, (*zeros, *args[stored:]))
        found = call(name, (*nans, *args[stored:], *[0] * len(STORING[name])))
        for a, b in zip(added, found, strict=True):
            np.testing.assert_array_equal(a, b)
