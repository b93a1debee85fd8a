"""The oracles of kernels/attention.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- attention: causal, qkv is (B, T, 3C) with thirds q | k | v and head h at offset h * hs of each third


def split_heads(x, H):
    B, T, C = x.shape
    return x.reshape(B, T, H, C // H).transpose(0, 2, 1, 3)  # (B, H, T, hs)


def merge_heads(x):
    B, H, T, hs = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * hs)


@in_float64
def attention_forward(qkv, H):
    q, k, v = (split_heads(x, H) for x in np.split(qkv, 3, axis=-1))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # (B, H, T, T)
    seen = np.tri(qkv.shape[1], dtype=bool)  # position t sees j <= t
    scores = np.where(seen, scores, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=-1)  # (B, H, T)
    att = np.exp(scores - lse[..., None])
    return merge_heads(att @ v), np.where(seen, scores, 0), att, lse


@in_float64
def attention_backward(dout, qkv, att, H):
    q, k, v = (split_heads(x, H) for x in np.split(qkv, 3, axis=-1))
    dy = split_heads(dout, H)
    datt = dy @ v.swapaxes(-1, -2)
    dscores = att * (datt - (att * datt).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq, dk, dv = dscores @ k, dscores.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)  # (B, T, 3C)


@in_float64
def attention_cached_forward(qkv, kcache, vcache, pos, H):
    """Queries at pos..pos+T-1 over keys and values at 0..pos+T-1; caches are (B, S, C) -> out, caches."""
    q, k, v = np.split(qkv, 3, axis=-1)
    end = pos + q.shape[1]
    kcache, vcache = kcache.copy(), vcache.copy()
    kcache[:, pos:end], vcache[:, pos:end] = k, v
    out = np.zeros_like(q)
    for t in range(pos, end):
        query = split_heads(q[:, t - pos, None], H)  # (B, H, 1, hs)
        keys, values = split_heads(kcache[:, : t + 1], H), split_heads(vcache[:, : t + 1], H)
        scores = query @ keys.swapaxes(-1, -2) / np.sqrt(query.shape[-1])  # (B, H, 1, t + 1)
        att = np.exp(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))
        out[:, t - pos, None] = merge_heads(att @ values)
    return out, kcache, vcache
