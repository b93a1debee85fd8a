"""Cases of kernels/attention.c: B, T, H, D, and how large the entries of q and k are."""

import numpy as np

from cases.case import U, case, gamma, normal, single, unset
from gpt2c import reference as ref

HEADS = [
    (0, 3, 1, 4), (1, 1, 1, 1), (2, 1, 3, 2), (1, 2, 1, 3), (2, 7, 2, 5), (1, 8, 2, 8), (1, 9, 1, 7),
    (3, 15, 1, 16), (1, 16, 2, 15), (1, 17, 1, 17), (1, 31, 2, 33), (1, 32, 1, 31), (2, 33, 1, 64),
    (1, 67, 1, 13), (1, 257, 1, 65), (1, 515, 2, 64), (1, 33, 1, 4, 30),
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
    off = gamma(D + 3) * size.max(initial=0) + U * (2 * abs(scores).max(initial=0) + abs(lse).max(initial=0) + 3)
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
