"""Every kernel against the float64 oracle: each instruction set, several numbers of threads, awkward sizes.

A case is a function with the name of its kernel. It makes arguments for given sizes and says, for every
output, what it should be and how far off it may be. How far follows from the arithmetic: each operation of
float32 is off by at most U of its result, so n of them in a row by gamma(n), and a sum by gamma(n) times the
sum of the absolute values of its terms, in whatever order it is taken. Such a bound is the oracle's own
formula with every minus made a plus.
"""

import functools

import numpy as np
import pytest
import reference as ref
from guarded import STREAM, bits, call, run

import gpt2c
from gpt2c import _core
from gpt2c.llmc import bf16_bits

U = 2.0**-24  # half the distance from 1 to the next float32
TINY = 2.0**-148  # below 2^-126 roundings are off by an amount instead: two of them by this

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
# and of blocks (M 292, 438, 1022; N 80, 160, 320)

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


@case(*DECODED, large=(2, 65, 7, 33, 64))
def attention_cached_forward(rng, B, T, H, D, pos):
    """The last T of pos + T positions; the others are in the caches already, and beyond them lies rubbish."""
    qkv, (out, *_), _, size_out, off = attention_inputs(rng, B, pos + T, H, D)
    _, k, v = np.split(qkv, 3, axis=-1)
    after = np.full((2, B, pos + T + 3, H * D), 1e30, np.float32)
    after[:, :, : pos + T] = k, v
    before = after.copy()
    before[:, :, pos : pos + T] = 1e30
    bound = (2 * off + gamma(2 * (pos + T) + 8)) * size_out
    args = unset(B, T, H * D), *before, qkv[:, pos:].copy(), np.array([pos], np.int32), H
    return args, [(out[:, pos:], bound[:, pos:]), (after[0], 0), (after[1], 0)]


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


@case(*LOGITS, large=(101, 337, 331))
def crossentropy_backward(rng, R, P, V, scale=1, ignored=0):
    logits, targets, (_, lse, _) = crossentropy_inputs(rng, R, P, V, scale, ignored)
    count = (targets >= 0).sum()
    exact = ref.crossentropy_backward(np.nan_to_num(logits), targets, V)
    hit = np.arange(P) == targets[:, None]
    p = exact * max(count, 1) + hit  # the probabilities; 0 in rows and columns that do not count
    off = U * (np.nan_to_num(abs(logits - lse[:, None])) + abs(lse[:, None])) + gamma(8)
    args = unset(R, P), logits, single(lse), targets, single([count]), V
    return args, [(exact, (p * off + gamma(3) * hit) / max(count, 1))]


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


@pytest.mark.parametrize("threads", [2, 3, 7], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(isa, threads, name):
    """Several times, so that threads that are in each other's way meet."""
    args, _ = made(name, CASES[name][2])
    together = [bits(call(name, args)) for _ in range(5)]
    _core.use_threads(1)
    assert together == 5 * [bits(call(name, args))]


def is_batch(array):
    return array[2][0] in ((1, "R"), (1, "B"))  # its leading dimension, in the kernel's door


@pytest.mark.parametrize("name", [name for name in CASES if is_batch(_core.DOORS[name].arrays[0])
                                  and not name.startswith("dropout")])  # whose masks depend on where an element stands
def test_an_element_or_row_has_the_same_bits_wherever_it_stands(isa, name):
    args, _ = made(name, CASES[name][2])
    door = _core.DOORS[name].arrays
    batch = [i for i, array in enumerate(door) if is_batch(array)]
    outputs = [i for i in batch if door[i][-1]]
    R, fewest = len(args[0]), 5 if name == "matmul_forward" else 1  # up to 4 rows are multiplied another way
    whole = call(name, args)
    for n in range(min(R, 35)):
        for part in slice(n, R), slice(0, R - n), slice(n, n + fewest), slice(0, n + fewest):
            if part.stop > R or part.stop - part.start < fewest:
                continue
            some = call(name, [a[part] if i in batch else a for i, a in enumerate(args)])
            assert bits(some[i] for i in outputs) == bits(whole[i][part] for i in outputs)


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


@pytest.mark.parametrize("R", [1, 16383, 16385, 8 * 16384 + 5])
def test_global_norm_of_whole_numbers_is_exact(isa, rng, R):
    """Every partial sum is exact, in whatever order: no element is left out."""
    x = rng.integers(1, 9, R).astype(np.float32)
    assert run("global_norm", unset(1), x)[0] == single(ref.global_norm(x))


@pytest.mark.parametrize("R, P, V, scale", [(1, 1, 1, 1), (5, 8, 3, 1), (4, 31, 17, 1), (6, 33, 29, 1e4)])
def test_crossentropy_backward_may_store_over_the_logits(isa, R, P, V, scale):
    (_, logits, *others), _ = made("crossentropy_backward", (R, P, V, scale, 1))
    apart = run("crossentropy_backward", unset(R, P), logits, *others)
    assert bits(apart) == bits(run("crossentropy_backward", logits, logits, *others))


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


@pytest.mark.parametrize("R, C, N", [(5, 1, 1), (7, 17, 13), (33, 769, 34), (30, 31, 771), (70, 129, 200)])
def test_bf16_products_are_those_of_rounded_operands(R, C, N, isa, threads, rng):
    """Only the operands are rounded; the sums are as exact as with float32."""
    gpt2c.set_matmul_precision("bf16")
    full = normal(rng, R, C), normal(rng, N, C), normal(rng, R, N)
    x, w, dout = ((bf16_bits(a).astype(np.uint32) << 16).view(np.float32) for a in full)
    size = [ref.matmul_forward(abs(x), abs(w)), *ref.matmul_backward(abs(dout), abs(x), abs(w))[:2]]
    exact = [ref.matmul_forward(x, w), *ref.matmul_backward(dout, x, w)[:2]]
    for a, b, c in (full, (x, w, dout)):
        found = [run("matmul_forward", unset(R, N), a, b, None)[0], run("matmul_backward_x", np.zeros_like(a), c, b)[0],
                 run("matmul_backward_w", np.zeros_like(b), None, c, a)[0]]
        assert_within(found, [(e, gamma(k + 2) * s) for e, s, k in zip(exact, size, (C, N, R))])


def test_peak_counts_what_it_does(isa):
    """12 sums per lane go from 0, 0.1, 0.2, ... by s x + y; a sink is the sum over all of them."""
    R, steps, lanes = 5, 7, {"avx2": 8, "avx512": 16, "avx512bf16": 16}.get(isa, 4)
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
        stored = 2 if name == "matmul_backward_w" else len(STORING[name])  # the first outputs; there one flag is for both
        zeros, nans = ([a if a is None else np.full_like(a, fill) for a in args[:stored]] for fill in (0, np.nan))
        added = call(name, (*zeros, *args[stored:]))
        found = call(name, (*nans, *args[stored:], *[0] * len(STORING[name])))
        for a, b in zip(added, found, strict=True):
            np.testing.assert_array_equal(a, b)
