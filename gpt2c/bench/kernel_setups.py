"""One set-up for each kernel that is measured: its arrays, its calls, and what should come out of them.

A set-up gives the calls to a recording stream and returns a Subject. What the kernels should compute is written out in
float64 here; where an array is large, a sample of its rows is compared.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt2c._core import Stream
from gpt2c.engine.arena import aligned
from gpt2c.errors import Gpt2cError

START = np.zeros(1, np.int32)  # position
NOISE = np.array([1, 2], np.int32)  # seed and counter

rng = np.random.default_rng(1)


class Check(NamedTuple):
    got: Callable  # looks at what the kernel stored, or at a sample of it
    want: np.ndarray  # in float64
    roundings: int  # behind one element: the length of its sum, or the operations that lead to it


class Subject(NamedTuple):
    checks: list[Check]
    numpy: Callable | None = None  # does the same with NumPy, on the same arrays


def zeros(*shape):
    return aligned(math.prod(shape)).reshape(shape)


def nans(*shape):
    """For outputs: what is not written shows."""
    array = zeros(*shape)
    array.fill(np.nan)
    return array


def normal(*shape):
    return rng.standard_normal(out=zeros(*shape), dtype=np.float32)


def tokens_below(V, *shape):
    return rng.integers(V, size=shape, dtype=np.int32)


def sample(n, most=16):
    """Up to `most` of the indices below n, evenly spread; the first and the last are among them."""
    return np.unique(np.linspace(0, n - 1, most).astype(int))


def elements(R):
    return sample(R, 1 << 14)


def double(*arrays):
    return [a.astype(np.float64) for a in arrays]


def matmul_forward(s, R, C, N, bias):
    out, x, w, b = nans(R, N), normal(R, C), normal(N, C), normal(N) if bias else None
    s.matmul_forward(out, x, w, b)
    rows = sample(R)

    def numpy():
        np.matmul(x, w.T, out=out)
        if bias:
            np.add(out, b, out=out)

    return Subject([Check(lambda: out[rows], x[rows].astype(np.float64) @ w.T + (b if bias else 0), C)], numpy)


def matmul_backward_x(s, R, C, N):
    dx, dout, w = zeros(R, C), normal(R, N), normal(N, C)
    s.matmul_backward_x(dx, dout, w)
    rows = sample(R)
    return Subject([Check(lambda: dx[rows], dout[rows].astype(np.float64) @ w, N)], lambda: np.add(dx, dout @ w, out=dx))


def matmul_backward_w(s, R, C, N, bias):
    dw, db, dout, x = zeros(N, C), zeros(N) if bias else None, normal(R, N), normal(R, C)
    s.matmul_backward_w(dw, db, dout, x)
    outputs = sample(N)
    some = dout[:, outputs].astype(np.float64)
    checks = [Check(lambda: dw[outputs], some.T @ x, R)]
    if bias:
        checks.append(Check(lambda: db[outputs], some.sum(axis=0), R))

    def numpy():
        np.add(dw, dout.T @ x, out=dw)
        if bias:
            np.add(db, dout.sum(axis=0), out=db)

    return Subject(checks, numpy)


def matmul_one_row(s, L, C, N, bias):
    """L weights in turn, as many as make up a model: they come from memory, as in decoding."""
    out, x, w, b = nans(L, 1, N), normal(1, C), normal(L, N, C), normal(N) if bias else None
    for i in range(L):
        s.matmul_forward(out[i], x, w[i], b)
    want = np.stack([x.astype(np.float64) @ wi.T for wi in w]) + (b if bias else 0)

    def numpy():
        np.matmul(x, w.transpose(0, 2, 1), out=out)
        if bias:
            np.add(out, b, out=out)

    return Subject([Check(lambda: out, want, C)], numpy)


def by_head(x, H, C, chosen):
    """(B, T, nC) -> (chosen, T, nC / H): some of the B * H heads."""
    B, T, width = x.shape
    x = x.reshape(B, T, width // C, H, C // H).transpose(0, 3, 1, 2, 4)
    return x.reshape(B * H, T, width // H)[chosen]


def attend(qkv):
    """Causal attention of heads (n, T, 3D) in float64 -> q, k, v, weights (n, T, T), logs of sums (n, T)."""
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=-1)
    scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
    scores[:, ~np.tri(qkv.shape[1], dtype=bool)] = -np.inf
    lse = np.logaddexp.reduce(scores, axis=-1)
    return q, k, v, np.exp(scores - lse[..., None]), lse


def attention_forward(s, B, T, C, H):
    out, lse, qkv = nans(B, T, C), nans(B, H, T), normal(B, T, 3 * C)
    s.attention_forward(out, lse, qkv)
    heads = sample(B * H, 4)
    _, _, v, att, want_lse = attend(by_head(qkv, H, C, heads))
    return Subject(
        [
            Check(lambda: by_head(out, H, C, heads), att @ v, T + C // H),
            Check(lambda: lse.reshape(B * H, T)[heads], want_lse, T + C // H),
        ]
    )


def attention_backward(s, B, T, C, H):
    dqkv, dout, qkv = zeros(B, T, 3 * C), normal(B, T, C), normal(B, T, 3 * C)
    out, lse = nans(B, T, C), nans(B, H, T)
    Stream().attention_forward(out, lse, qkv)
    s.attention_backward(dqkv, dout, qkv, out, lse)
    heads = sample(B * H, 4)
    q, k, v, att, _ = attend(by_head(qkv, H, C, heads))
    dy = by_head(dout, H, C, heads).astype(np.float64)
    datt = dy @ v.swapaxes(1, 2)
    ds = att * (datt - (att * datt).sum(axis=-1, keepdims=True)) / math.sqrt(C // H)
    want = np.concatenate([ds @ k, ds.swapaxes(1, 2) @ q, att.swapaxes(1, 2) @ dy], axis=-1)
    return Subject([Check(lambda: by_head(dqkv, H, C, heads), want, T + C // H)])


def attention_one_row(s, L, S, C, H):
    """The last position of a full context; L caches in turn, for the same reason."""
    out, qkv, k, v = nans(L, 1, 1, C), normal(1, 1, 3 * C), normal(L, 1, S, C), normal(L, 1, S, C)
    last = np.array([S - 1], np.int32)
    want = np.empty((L, H, C // H))
    for i in range(L):
        s.attention_cached_forward(out[i], k[i], v[i], qkv, last, H)
        q, keys, values = (part.reshape(-1, H, C // H) for part in double(qkv[..., :C], k[i], v[i]))
        keys[-1], values[-1] = qkv[0, 0, C:].reshape(2, H, C // H)
        scores = np.einsum("hd,shd->hs", q[0], keys) / math.sqrt(C // H)
        att = np.exp(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))
        want[i] = np.einsum("hs,shd->hd", att, values)
    return Subject([Check(lambda: out.reshape(want.shape), want, S + C // H)])


def standardise(x):
    """(R, C) -> n, mean, rstd in float64."""
    (x,) = double(x)
    mean, rstd = x.mean(axis=-1), 1 / np.sqrt(x.var(axis=-1) + 1e-5)
    return (x - mean[:, None]) * rstd[:, None], mean, rstd


def layernorm_forward(s, R, C):
    out, mean, rstd, x, w, b = nans(R, C), nans(R), nans(R), normal(R, C), normal(C), normal(C)
    s.layernorm_forward(out, mean, rstd, x, w, b)
    rows = sample(R)
    n, want_mean, want_rstd = standardise(x[rows])
    return Subject(
        [Check(lambda: out[rows], n * w + b, C), Check(lambda: mean[rows], want_mean, C), Check(lambda: rstd[rows], want_rstd, C)]
    )


def layernorm_backward(s, R, C):
    dx, dw, db, dout, x, w = zeros(R, C), zeros(C), zeros(C), normal(R, C), normal(R, C), normal(C)
    mean, rstd = zeros(R), zeros(R)
    n, mean[:], rstd[:] = standardise(x)
    s.layernorm_backward(dx, dw, db, dout, x, w, mean, rstd)
    d = dout.astype(np.float64) * w
    want_dx = rstd[:, None] * (d - d.mean(axis=-1, keepdims=True) - n * (d * n).mean(axis=-1, keepdims=True))
    return Subject(
        [
            Check(lambda: dx, want_dx, C),
            Check(lambda: dw, (dout * n).sum(axis=0), R),
            Check(lambda: db, dout.sum(axis=0, dtype=np.float64), R),
        ]
    )


def rmsnorm_forward(s, R, C):
    out, rstd, x, w = nans(R, C), nans(R), normal(R, C), normal(C)
    s.rmsnorm_forward(out, rstd, x, w)
    rows = sample(R)
    want_rstd = 1 / np.sqrt(np.square(x[rows], dtype=np.float64).mean(axis=-1) + 1e-5)
    return Subject([Check(lambda: out[rows], x[rows] * want_rstd[:, None] * w, C), Check(lambda: rstd[rows], want_rstd, C)])


def rmsnorm_backward(s, R, C):
    dx, dw, dout, x, w, rstd = zeros(R, C), zeros(C), normal(R, C), normal(R, C), normal(C), zeros(R)
    rstd[:] = 1 / np.sqrt(np.square(x, dtype=np.float64).mean(axis=-1) + 1e-5)
    s.rmsnorm_backward(dx, dw, dout, x, w, rstd)
    n, d = x * rstd.astype(np.float64)[:, None], dout * w.astype(np.float64)
    want_dx = rstd[:, None] * (d - n * (d * n).mean(axis=-1, keepdims=True))
    return Subject([Check(lambda: dx, want_dx, C), Check(lambda: dw, (dout * n).sum(axis=0), R)])


def gate(x):
    """gelu(x) = x gate(x), and the gate's derivative; the tanh approximation, in float64."""
    (x,) = double(x)
    g = 1 / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return g, g * (1 - g) * 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


def gelu_forward(s, R):
    out, x = nans(R), normal(R)
    s.gelu_forward(out, x)
    some = elements(R)
    return Subject([Check(lambda: out[some], x[some] * gate(x[some])[0], 16)])


def gelu_backward(s, R):
    dx, dout, x = zeros(R), normal(R), normal(R)
    s.gelu_backward(dx, dout, x)
    some = elements(R)
    g, dg = gate(x[some])
    return Subject([Check(lambda: dx[some], dout[some] * (g + x[some] * dg), 32)])


def normal_distribution(x):
    """Φ(x) and its derivative, in float64."""
    (x,) = double(x)
    return np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x]), np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_erf_forward(s, R):
    out, x = nans(R), normal(R)
    s.gelu_erf_forward(out, x)
    some = elements(R)
    return Subject([Check(lambda: out[some], x[some] * normal_distribution(x[some])[0], 32)])


def gelu_erf_backward(s, R):
    dx, dout, x = zeros(R), normal(R), normal(R)
    s.gelu_erf_backward(dx, dout, x)
    some = elements(R)
    cdf, density = normal_distribution(x[some])
    return Subject([Check(lambda: dx[some], dout[some] * (cdf + x[some] * density), 32)])


def squared_relu_forward(s, R):
    out, x = nans(R), normal(R)
    s.squared_relu_forward(out, x)
    some = elements(R)
    return Subject([Check(lambda: out[some], np.maximum(*double(x[some]), 0) ** 2, 1)])


def squared_relu_backward(s, R):
    dx, dout, x = zeros(R), normal(R), normal(R)
    s.squared_relu_backward(dx, dout, x)
    some = elements(R)
    return Subject([Check(lambda: dx[some], 2 * dout[some] * np.maximum(*double(x[some]), 0), 2)])


def swiglu_forward(s, R):
    out, a, b = nans(R), normal(R), normal(R)
    s.swiglu_forward(out, a, b)
    some = elements(R)
    a64, b64 = double(a[some], b[some])
    return Subject([Check(lambda: out[some], a64 / (1 + np.exp(-a64)) * b64, 16)])


def swiglu_backward(s, R):
    da, db, dout, a, b = zeros(R), zeros(R), normal(R), normal(R), normal(R)
    s.swiglu_backward(da, db, dout, a, b)
    some = elements(R)
    a64, b64, d = double(a[some], b[some], dout[some])
    g = 1 / (1 + np.exp(-a64))
    return Subject([Check(lambda: da[some], d * b64 * g * (1 + a64 * (1 - g)), 32), Check(lambda: db[some], d * a64 * g, 16)])


def residual_forward(s, R):
    out, a, b = nans(R), normal(R), normal(R)
    s.residual_forward(out, a, b)
    some = elements(R)
    return Subject([Check(lambda: out[some], np.add(*double(a[some], b[some])), 1)])


def residual_backward(s, R):
    da, db, dout = zeros(R), zeros(R), normal(R)
    s.residual_backward(da, db, dout)
    some = elements(R)
    return Subject([Check(lambda: da[some], dout[some], 1), Check(lambda: db[some], dout[some], 1)])


def dropout_residual_forward(s, R):
    out, a, b = nans(R), normal(R), normal(R)
    for stream in (Stream(), s):  # at once, to see below what is dropped
        stream.dropout_residual_forward(out, a, b, NOISE, 0, 0.1)
    a64, b64 = double(a, b)
    kept = abs(out - a64) > 1e-3 * abs(b64)  # the others are a itself
    if abs(kept.mean() - 0.9) > 5 * math.sqrt(0.09 / R):
        raise Gpt2cError(f"dropout_residual_forward keeps {kept.mean():.4f} of its elements, expected 0.9")
    return Subject([Check(lambda: out, a64 + kept * b64 / 0.9, 2)])


def dropout_residual_backward(s, R):
    da, db, dout = zeros(R), zeros(R), normal(R)
    s.dropout_residual_backward(da, db, dout, NOISE, 0, 0.1, 0, 0)
    kept = nans(R)
    Stream().dropout_residual_forward(kept, zeros(R), np.ones(R, np.float32), NOISE, 0, 0.1)
    (d,) = double(dout)
    return Subject([Check(lambda: da, d, 1), Check(lambda: db, (kept > 0) * d / 0.9, 2)])


def mingru_parts(x):
    """x (R, 2I), candidate and gate -> z, g and its slope in float64."""
    c, gate = np.split(x.astype(np.float64), 2, axis=-1)
    s = 1 / (1 + np.exp(-c))
    return 1 / (1 + np.exp(-gate)), np.where(c >= 0, c + 0.5, s), np.where(c >= 0, 1, s * (1 - s))


def mingru_gates_forward(s, R, I):
    a, b, x = nans(R, I), nans(R, I), normal(R, 2 * I)
    s.mingru_gates_forward(a, b, x)
    rows = sample(R)
    z, g, _ = mingru_parts(x[rows])
    return Subject([Check(lambda: a[rows], 1 - z, 16), Check(lambda: b[rows], z * g, 16)])


def mingru_gates_backward(s, R, I):
    dx, da, db, x = zeros(R, 2 * I), normal(R, I), normal(R, I), normal(R, 2 * I)
    s.mingru_gates_backward(dx, da, db, x)
    rows = sample(R)
    z, g, slope = mingru_parts(x[rows])
    d = db[rows].astype(np.float64)
    want = np.concatenate([d * z * slope, (d * g - da[rows]) * z * (1 - z)], axis=-1)
    return Subject([Check(lambda: dx[rows], want, 32)])


def decays(*shape):
    return rng.random(out=zeros(*shape), dtype=np.float32)


def scan_forward(s, B, T, I):
    out, last, a, b, h0 = nans(B, T, I), nans(B, I), decays(B, T, I), normal(B, T, I), normal(B, I)
    s.scan_forward(out, last, a, b, h0)
    want, h = np.empty((B, T, I)), h0.astype(np.float64)
    for t in range(T):
        want[:, t] = h = a[:, t] * h + b[:, t]
    return Subject([Check(lambda: out, want, 32), Check(lambda: last, h, 32)])


def scan_backward(s, B, T, I):
    da, db, dh0, dout = nans(B, T, I), nans(B, T, I), nans(B, I), normal(B, T, I)
    a, h, h0 = decays(B, T, I), normal(B, T, I), normal(B, I)
    s.scan_backward(da, db, dh0, dout, None, a, h, h0)
    before = np.concatenate([h0[:, None], h[:, :-1]], axis=1)
    want, d = np.empty((B, T, I)), np.zeros((B, I))
    for t in reversed(range(T)):
        want[:, t] = d = d + dout[:, t]
        d = a[:, t] * d
    return Subject([Check(lambda: db, want, 32), Check(lambda: da, want * before, 32), Check(lambda: dh0, d, 32)])


def crossentropy_forward(s, R, P, V):
    losses, lse = nans(R), nans(R)
    logits, targets = normal(R, P), tokens_below(V, R)
    s.crossentropy_forward(losses, lse, logits, targets, V)
    rows = sample(R)
    want_lse = np.logaddexp.reduce(logits[rows, :V].astype(np.float64), axis=-1)
    return Subject(
        [Check(lambda: losses[rows], want_lse - logits[rows, targets[rows]], V), Check(lambda: lse[rows], want_lse, V)]
    )


def crossentropy_backward(s, R, P, V):
    """In place, as in training: the gradient of the gradient of ... costs the same each time."""
    count, losses, lse = np.full(1, R, np.float32), nans(R), nans(R)
    logits, targets = normal(R, P), tokens_below(V, R)
    Stream().crossentropy_forward(losses, lse, logits, targets, V)
    s.crossentropy_backward(logits, logits, lse, targets, count, None, V)
    rows = sample(R)
    want = logits[rows].astype(np.float64)
    want -= np.logaddexp.reduce(want[:, :V], axis=-1, keepdims=True)
    want = np.exp(want)
    want[:, V:] = 0
    want[np.arange(len(rows)), targets[rows]] -= 1
    return Subject([Check(lambda: logits[rows], want / R, V)])  # the mean is over all rows


def embedding_forward(s, B, T, C, V):
    out, tokens, wte, wpe = nans(B, T, C), tokens_below(V, B, T), normal(V, C), normal(T, C)
    s.embedding_forward(out, tokens, wte, wpe, START)
    return Subject([Check(lambda: out, wte[tokens].astype(np.float64) + wpe, 1)])


def embedding_backward(s, B, T, C, V):
    dwte, dwpe, dout, tokens = zeros(V, C), zeros(T, C), normal(B, T, C), tokens_below(V, B, T)
    s.embedding_backward(dwte, dwpe, dout, tokens, START)
    want = np.zeros((V, C))
    np.add.at(want, tokens, dout)  # a token that occurs twice receives both gradients
    return Subject([Check(lambda: dwte, want, B), Check(lambda: dwpe, dout.sum(axis=0, dtype=np.float64), B)])


def adamw(s, R):
    params, m, v, grads = normal(R), normal(R), normal(R), normal(R)
    np.multiply(params, 0.02, out=params)  # so small that an error in the update shows beside it
    np.square(v, out=v)
    lr, beta1, beta2, eps, decay, t = 6e-4, 0.9, 0.95, 1e-8, 0.1, 10
    bias1, bias2 = 1 - beta1**t, 1 - beta2**t
    s.adamw(params, m, v, grads, lr, beta1, beta2, eps, decay, bias1, bias2)
    some = elements(R)
    p, m64, v64, g = double(params[some], m[some], v[some], grads[some])
    m64 = beta1 * m64 + (1 - beta1) * g
    v64 = beta2 * v64 + (1 - beta2) * g**2
    p = p - lr * (m64 / bias1 / (np.sqrt(v64 / bias2) + eps) + decay * p)
    return Subject([Check(lambda: params[some], p, 16), Check(lambda: m[some], m64, 16), Check(lambda: v[some], v64, 16)])


def global_norm(s, R):
    norm, x = nans(1), normal(R)
    s.global_norm(norm, x)
    parts = np.array_split(x, 64)  # in float64 it would be 1 GB
    want = np.sqrt([sum(np.square(part, dtype=np.float64).sum() for part in parts)])
    return Subject([Check(lambda: norm, want, 1 << 14)])  # the kernel, too, sums longer parts in float64
