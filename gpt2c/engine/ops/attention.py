"""Causal self-attention: tiled, materialised, or against the KV caches of slots; and what queries and keys go through before it.

`qkv` is (B, T, (H + 2K) D): H heads of queries, K of keys, K of values, all of width D.
"""

import functools

import numpy as np

from gpt2c._core import Buffer
from gpt2c.engine.tape import Tape, Tensor


def in_heads(buffer: Buffer, heads: int) -> Buffer:
    """(..., heads D) seen as (..., heads, D)."""
    return buffer.shaped(*buffer.shape[:-1], heads, buffer.shape[-1] // heads)


def attention(t: Tape, qkv: Tensor, num_heads: int, num_kv_heads: int = 0, *, name: str) -> Tensor:
    """Causal self-attention over H = num_heads heads, of which H / K share one of the K = num_kv_heads (0: H) heads of keys and
    values: (B, T, (H + 2K) D) -> (B, T, H D).

    Tiled while training. Materialised where everything is kept: `preatt` and `att` are then there to look at. Where
    the tape has a context: against the keys and values that each row's slot has so far.
    """
    (B, T), H, K = qkv.shape[:2], num_heads, num_kv_heads or num_heads
    all_heads = H + 2 * K
    D = qkv.shape[2] // all_heads
    out, x = t.new((B, T, H * D), f"{name}.atty"), in_heads(qkv.data, all_heads)
    y = in_heads(out.data, H)
    if t.context:
        k, v = (t.caches(f"{name}.{part}", (K, D)) for part in ("keys", "values"))
        if t.decoding:
            y, x = y.shaped(B, H, D), x.shaped(B, all_heads, D)
            t.s.attention_decode_forward(y, k, v, x, t.position, t.slot)
        else:
            t.s.attention_cached_forward(y, k, v, x, t.position, t.slot)
        return out
    if t.keep:
        preatt, att = (t.buffer((B, H, T, T), f"{name}.{part}") for part in ("preatt", "att"))
        t.s.attention_materialised_forward(y, preatt, att, x, K)
    else:
        lse = t.buffer((B, H, T), f"{name}.lse")
        t.s.attention_forward(y, lse, x, K)

    def backward():
        dqkv, add = qkv.sink()
        dx, dy = in_heads(dqkv, all_heads), in_heads(out.grad, H)
        if t.keep:
            t.s.attention_materialised_backward(dx, dy, x, att, K, add)
        else:
            t.s.attention_backward(dx, dy, x, y, lse, K, add)

    t.on_backward(backward)
    return out


@functools.lru_cache(maxsize=8)
def rotations(length: int, frequencies: tuple[float, ...]) -> np.ndarray:
    """(length, 2, D/2): cosine and sine of position x frequency, of each pair of a head. Made in float64 and rounded once."""
    angles = np.arange(length)[:, None] * np.array(frequencies)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rope(t: Tape, x: Tensor, num_heads: int, frequencies: tuple[float, ...]) -> Tensor:
    """Rotary positions: turns the first num_heads heads of x (B, T, heads D), in place, by position x frequency."""
    table, heads = rotations(t.context or x.shape[1], frequencies), x.shape[2] // (2 * len(frequencies))
    flow = x.gradient

    def turn(buffer, back):
        t.s.rope(in_heads(buffer, heads), table, t.position, num_heads, back)

    turn(x.data, 0)
    t.on_backward(lambda: turn(flow.read(), 1))
    return x


def head_norm(t: Tape, x: Tensor, qw: Tensor, kw: Tensor, num_heads: int, num_kv_heads: int, *, eps: float, name: str) -> Tensor:
    """RMS norm of each head of queries, with gains qw, and of keys, with kw; values stay as they are."""
    heads = num_heads + 2 * num_kv_heads
    out, rstd = t.new(x.shape, name), t.buffer((*x.shape[:-1], num_heads + num_kv_heads), f"{name}_rstd")
    t.s.head_norm_forward(in_heads(out.data, heads), rstd, in_heads(x.data, heads), qw.data, kw.data, num_heads, eps)
    flow = out.gradient

    def backward():
        (dx, add), dout = x.sink(), in_heads(flow.read(), heads)
        dqw, dkw, values = qw.grad, kw.grad, in_heads(x.data, heads)
        t.s.head_norm_backward(in_heads(dx, heads), dqw, dkw, dout, values, qw.data, kw.data, rstd, num_heads, add)

    t.on_backward(backward)
    return out
