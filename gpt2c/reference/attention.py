"""The oracles of kernels/attention.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- attention: causal, qkv is (B, T, (H + 2K) hs): H heads of q, K of k, K of v (K = 0: as many as H), which H / K heads of q
# in a row share


def split_heads(x, H):
    B, T, C = x.shape
    return x.reshape(B, T, H, C // H).transpose(0, 2, 1, 3)  # (B, H, T, hs)


def merge_heads(x):
    B, H, T, hs = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * hs)


def parts_of(qkv, H, K=0):
    """-> q (B, T, H hs), k and v (B, T, K hs)"""
    K = K or H
    hs = qkv.shape[-1] // (H + 2 * K)
    return np.split(qkv, [H * hs, (H + K) * hs], axis=-1)


def shared(x, H, K=0):
    """k or v (B, T, K hs) as each head of q sees them: (B, H, T, hs)"""
    return split_heads(x, K or H).repeat(H // (K or H), axis=1)


def heads_of(qkv, H, K=0):
    """-> q, k, v, each (B, H, T, hs)"""
    q, k, v = parts_of(qkv, H, K)
    return split_heads(q, H), shared(k, H, K), shared(v, H, K)


def merge_gradients(dq, dk, dv, K=0):
    """What flows into qkv, from what flows into `heads_of` it: what several heads see gets the sum."""
    B, H, T, hs = dq.shape
    dk, dv = (d.reshape(B, K or H, H // (K or H), T, hs).sum(axis=2) for d in (dk, dv))
    return np.concatenate([merge_heads(d) for d in (dq, dk, dv)], axis=-1)


@in_float64
def attention_forward(qkv, H, K=0):
    q, k, v = heads_of(qkv, H, K)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # (B, H, T, T)
    seen = np.tri(qkv.shape[1], dtype=bool)  # position t sees j <= t
    scores = np.where(seen, scores, -np.inf)
    lse = np.logaddexp.reduce(scores, axis=-1)  # (B, H, T)
    att = np.exp(scores - lse[..., None])
    return merge_heads(att @ v), np.where(seen, scores, 0), att, lse


@in_float64
def attention_backward(dout, qkv, att, H, K=0):
    q, k, v = heads_of(qkv, H, K)
    dy = split_heads(dout, H)
    datt = dy @ v.swapaxes(-1, -2)
    dscores = att * (datt - (att * datt).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return merge_gradients(dscores @ k, dscores.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy, K)


@in_float64
def attention_cached_forward(qkv, kcache, vcache, pos, slot, H, K=0):
    """Queries of b at pos[b].. over keys and values that row slot[b] of the caches (N, S, K hs) has up to them, the new ones
    included -> out, caches."""
    T = qkv.shape[1]
    q, k, v = parts_of(qkv, H, K)
    kcache, vcache = kcache.copy(), vcache.copy()
    for b, (first, row) in enumerate(zip(pos, slot)):
        kcache[row, first : first + T], vcache[row, first : first + T] = k[b], v[b]
    out = np.zeros_like(q)
    for b, (first, row) in enumerate(zip(pos, slot)):
        query = split_heads(q[b, None], H)  # (1, H, T, hs)
        keys, values = shared(kcache[row, None, : first + T], H, K), shared(vcache[row, None, : first + T], H, K)
        scores = query @ keys.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        scores = np.where(np.tri(T, first + T, first, dtype=bool), scores, -np.inf)  # (1, H, T, first + T)
        att = np.exp(scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True))
        out[b] = merge_heads(att @ values)[0]
    return out, kcache, vcache


def attention_decode_forward(qkv, kcache, vcache, pos, slot, H, K=0):
    """The same of one position for each b: qkv is (B, (H + 2K) hs)."""
    out, kcache, vcache = attention_cached_forward(qkv[:, None], kcache, vcache, pos, slot, H, K)
    return out[:, 0], kcache, vcache
