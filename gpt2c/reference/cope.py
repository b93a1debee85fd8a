"""The oracle of kernels/cope.c."""

import numpy as np

from gpt2c.reference.attention import merge_heads, split_heads
from gpt2c.reference.float64 import in_float64, sigmoid

# ---- attention with contextual positions: table is (H, M, hs)


@in_float64
def cope_forward(qkv, table, H):
    """-> out (B, T, C) and a cache; preatt, att (B, H, T, T) and lse (B, H, T) are in it."""
    T, last = qkv.shape[1], table.shape[1] - 1
    q, k, v = (split_heads(x, H) for x in np.split(qkv, 3, axis=-1))
    seen = np.tri(T, dtype=bool)  # position i sees j <= i
    r = q @ k.swapaxes(-1, -2)  # (B, H, T, T)
    gate = np.where(seen, sigmoid(r), 0)
    total = np.flip(np.flip(gate, -1).cumsum(-1), -1)  # of the gates of j..i
    p = np.minimum(total, last)
    m = np.floor(p).astype(int)
    f = p - m
    z = np.einsum("bhid,hmd->bhim", q, table)
    z = np.concatenate([z, np.zeros_like(z[..., :1])], -1)  # the neighbour of the last row, read with f = 0
    low, high = np.take_along_axis(z, m, -1), np.take_along_axis(z, m + 1, -1)
    scores = np.where(seen, r / np.sqrt(q.shape[-1]) + (1 - f) * low + f * high, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=-1)
    att = np.exp(scores - lse[..., None])
    cache = {
        "q": q, "k": k, "v": v, "gate": gate, "total": total, "m": m, "f": f, "step": high - low, "table": table,
        "preatt": np.where(seen, scores, 0), "att": att, "lse": lse,
    }  # fmt: skip
    return merge_heads(att @ v), cache


@in_float64
def cope_backward(dout, cache):
    """-> dqkv, dtable"""
    q, k, v, att, table = (cache[name] for name in ("q", "k", "v", "att", "table"))
    gate, total, m, f = (cache[name] for name in ("gate", "total", "m", "f"))
    M = table.shape[1]
    dy = split_heads(dout, q.shape[1])
    datt = dy @ v.swapaxes(-1, -2)
    ds = att * (datt - (att * datt).sum(axis=-1, keepdims=True))
    dz = np.zeros((*q.shape[:3], M + 1))
    b, h, i, _ = np.ogrid[tuple(map(slice, ds.shape))]
    np.add.at(dz, (b, h, i, m), (1 - f) * ds)  # several keys may read the same row
    np.add.at(dz, (b, h, i, m + 1), f * ds)
    dz = dz[..., :M]
    dp = np.where(total < M - 1, ds * cache["step"], 0)
    dgate = dp.cumsum(-1)  # the gate of key k is part of the position of every key j <= k
    dr = ds / np.sqrt(q.shape[-1]) + dgate * gate * (1 - gate)
    dq = dr @ k + np.einsum("bhim,hmd->bhid", dz, table)
    dk, dv = dr.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy
    dqkv = np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)
    return dqkv, np.einsum("bhim,bhid->hmd", dz, q)
