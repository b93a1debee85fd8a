"""Cases of kernels/attention.c: B, T, H, D, how large the entries of q and k are, and how many heads k and v have (0: H)."""

import numpy as np

from cases.case import U, case, gamma, normal, single, unset
from gpt2c import _core
from gpt2c import reference as ref

HEADS = [
    (0, 3, 1, 4), (1, 1, 1, 1), (2, 1, 3, 2), (1, 2, 1, 3), (2, 7, 2, 5), (1, 8, 2, 8), (1, 9, 1, 7),
    (3, 15, 1, 16), (1, 16, 2, 15), (1, 17, 1, 17), (1, 31, 2, 33), (1, 32, 1, 31), (2, 33, 1, 64),
    (1, 67, 1, 13), (1, 257, 1, 65), (1, 515, 2, 64), (1, 33, 1, 4, 30),
    (1, 1, 2, 1, 1, 1), (2, 7, 4, 5, 1, 2), (1, 40, 3, 33, 1, 1), (1, 259, 6, 65, 1, 3),
]  # fmt: skip


def attention_inputs(rng, B, T, H, D, scale=1, K=0):
    """-> qkv, the oracle's results, the sizes of scores and out, by what share a probability may be off.

    A score s is off by gamma(D + 3) of its size; exp turns that, and the rounding of s - max or s - lse, into
    a share, and adds three roundings of its own.
    """
    K = K or H
    qkv = normal(rng, B, T, (H + 2 * K) * D)
    qkv[..., : (H + K) * D] *= scale
    return qkv, *attention_results(qkv, H, D, K)


def attention_results(qkv, H, D, K):
    T = qkv.shape[1]
    out, scores, att, lse = ref.attention_forward(qkv, H, K)
    q, k, v = ref.heads_of(abs(qkv.astype(float)), H, K)
    size = q @ k.swapaxes(-1, -2) / np.sqrt(D) * np.tri(T)
    off = gamma(D + 3) * size.max(initial=0) + U * (2 * abs(scores).max(initial=0) + abs(lse).max(initial=0) + 3)
    return (out, scores, att, lse), size, ref.merge_heads(att @ v), off


def in_heads(D, *arrays):
    """(B, T, heads D) -> (B, T, heads, D)"""
    return [array.reshape(*array.shape[:2], array.shape[2] // D, D) for array in arrays]


@case(*HEADS, large=(2, 129, 8, 33, 1, 4))
def attention_forward(rng, B, T, H, D, scale=1, K=0):
    qkv, (out, _, _, lse), _, size_out, off = attention_inputs(rng, B, T, H, D, scale, K)
    qkv, out, size_out = in_heads(D, qkv, out, size_out)
    share = 2 * off + gamma(2 * T + 8)  # of the weighted sum and of the sum of weights
    args = unset(*out.shape), unset(*lse.shape), qkv, K or H
    return args, [(out, share * size_out), (lse, off + gamma(T + 8) * (1 + abs(lse)))]


def backward_of(rng, kept, B, T, H, D, scale, K):
    """The kernels get what the forward keeps as the oracle has it, rounded: `kept` takes out, lse and att."""
    qkv, (out, _, att, lse), _, _, off = attention_inputs(rng, B, T, H, D, scale, K)
    dqkv, dout = normal(rng, *qkv.shape), normal(rng, *out.shape)
    q, k, v = ref.heads_of(abs(qkv.astype(float)), H, K)
    dy = ref.split_heads(abs(dout.astype(float)), H)
    datt = dy @ v.swapaxes(-1, -2)
    ds = att * (datt + (att * datt).sum(-1, keepdims=True)) / np.sqrt(D)
    size = ref.merge_gradients(ds @ k, ds.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dy, K)
    terms = 2 * T * (H // (K or H))  # of the sums over all queries that see a key
    bound = (off + gamma(terms + D + 16)) * size + gamma(2) * abs(dqkv)
    exact = dqkv + ref.attention_backward(dout, qkv, att, H, K)
    dqkv, dout, qkv, out, exact, bound = in_heads(D, dqkv, dout, qkv, out, exact, bound)
    return (dqkv, dout, qkv, *map(single, kept(out, lse, att)), K or H), [(exact, bound)]


@case(*HEADS, large=(2, 129, 8, 33, 1, 4))
def attention_backward(rng, B, T, H, D, scale=1, K=0):
    return backward_of(rng, lambda out, lse, att: (out, lse), B, T, H, D, scale, K)


DECODED = [(0, 1, 1, 3, 0), (1, 1, 1, 1, 0), (2, 1, 3, 5, 8), (2, 3, 2, 8, 13), (1, 17, 1, 33, 2)]
KINDS = [(2, 3, 2, 64, 40), (3, 5, 3, 32, 18), (1, 17, 2, 96, 3)]  # the same for each type that a cache may have
HALVES = [(2, 3, 2, 5, 9), (1, 9, 1, 35, 20)]


def each_kind(*more):
    """Sizes with each type of a cache: heads of whole blocks, and others where numbers are stored one by one."""
    return [(*sizes, *more, kind) for kind in _core.CACHED for sizes in (KINDS if kind == "q8_0" else KINDS + HALVES)]


def stored(qkv, H, K, D, kind):
    """qkv with keys and values as a cache holds them: what is attended to."""
    there = qkv.astype(float).reshape(*qkv.shape[:2], H + 2 * K, D)
    rows = ref.cached(kind, there[:, :, H:].reshape(-1, D))
    there[:, :, H:] = ref.stored_numbers(kind, rows).reshape(*qkv.shape[:2], 2 * K, D)
    return there.reshape(qkv.shape)


def decoding(qkv, out, off, size_out, T, H, K, kind, *last_arguments):
    """(args, expected) for T positions of each row, qkv (B, end, H + 2K, D), which end where the first row's text does, and the
    others' earlier and earlier. Those before are in the caches already, in slots of any order; beyond them lies rubbish."""
    B, end = qkv.shape[:2]
    pos, slot = np.maximum(end - T - np.arange(B), 0).astype(np.int32), np.arange(B + 1, 1, -1).astype(np.int32)
    new = pos[:, None] + np.arange(T), np.arange(B)[:, None]  # positions and rows, (B, T)
    k, v = (ref.cached(kind, part) for part in np.split(qkv[:, :, H:], 2, axis=2))
    after = np.full((2, B + 3, end + 3, *k.shape[2:]), 0x7B, np.uint8)
    before = after.copy()
    for b, (first, row) in enumerate(zip(pos, slot)):
        for caches, last in (before, first), (after, first + T):
            caches[0, row, :last], caches[1, row, :last] = k[b, :last], v[b, :last]
    exact, bound = (array[new[1], new[0]] for array in (out, (2 * off + gamma(2 * end + 8)) * size_out))
    args = unset(*exact.shape), *before, qkv[new[1], new[0]], pos, slot, *last_arguments, list(_core.STORED).index(kind)
    return args, [(exact, bound), (after[0], 0), (after[1], 0)]


@case(*DECODED, (2, 3, 4, 8, 13, 2), (2, 9, 3, 5, 13, 1), *each_kind(0), large=(2, 65, 8, 33, 64, 4))
def attention_cached_forward(rng, B, T, H, D, pos, K=0, kind="f32"):
    K = K or H
    qkv = normal(rng, B, pos + T, (H + 2 * K) * D)
    (out, *_), _, size_out, off = attention_results(stored(qkv, H, K, D, kind), H, D, K)
    return decoding(*in_heads(D, qkv, out), off, *in_heads(D, size_out), T, H, K, kind)


DECODED_ONE = [(0, 1, 3, 0), (1, 1, 1, 0), (2, 3, 5, 8), (3, 2, 8, 13), (3, 4, 33, 5, 2)]


@case(*DECODED_ONE, *[(B, *sizes) for B, _, *sizes in each_kind(0)], large=(7, 8, 33, 64, 4))
def attention_decode_forward(rng, B, H, D, pos, K=0, kind="f32"):
    made = attention_cached_forward(rng, B, 1, H, D, pos, K, kind)
    (out, *caches, qkv, pos, slot, kv), [(exact, bound), *expected] = made
    return (out[:, 0].copy(), *caches, qkv[:, 0].copy(), pos, slot, kv), [(exact[:, 0], bound[:, 0]), *expected]
