"""Cases of kernels/cope.c, attention with contextual positions: B, T, H, D, rows of the table, and how large the entries of q
and k are.
"""

import numpy as np

from cases.attention import DECODED, decoding, each_kind, in_heads, stored
from cases.case import U, case, gamma, normal, single, unset
from gpt2c import reference as ref

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
    return qkv, table, *cope_results(qkv, table, H, D)


def cope_results(qkv, table, H, D):
    T = qkv.shape[1]
    out, c = ref.cope_forward(qkv, table, H)
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
    return out, c, size_out, (off_gate, off_p, off_score, off, size_read)


@case(*COPE_HEADS, large=(2, 129, 7, 33, 40))
def cope_forward(rng, B, T, H, D, M, scale=1):
    qkv, table, out, c, size_out, (_, _, off_score, off, _) = cope_inputs(rng, B, T, H, D, M, scale)
    args = unset(*out.shape), unset(B, H, T), unset(B, H, T, T), unset(B, H, T, T), qkv, table
    share = 2 * off + gamma(2 * T + 8)
    return args, [
        (out, share * size_out),
        (c["lse"], off + gamma(T + 8) * (1 + abs(c["lse"]))),
        (c["preatt"], off_score * np.tri(T) + gamma(2) * abs(c["preatt"])),
        (c["att"], share * c["att"]),
    ]


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
    exact = ref.cope_backward(dout, c)
    args = dqkv, dtable, dout, qkv, single(out), single(c["lse"]), table
    return args, [(dqkv + exact[0], off_dqkv), (dtable + exact[1], off_dtable)]


TABLES = [(B, T, H, D, pos, M) for (B, T, H, D, pos), M in zip(DECODED, (3, 1, 2, 30, 5))]


@case(*TABLES, *each_kind(7), large=(2, 65, 7, 33, 64, 40))
def cope_cached_forward(rng, B, T, H, D, pos, M, kind="f32"):
    qkv, table = normal(rng, B, pos + T, 3 * H * D), normal(rng, H, M, D)
    out, _, size_out, (_, _, _, off, _) = cope_results(stored(qkv, H, H, D, kind), table, H, D)
    (part, *caches, new, pos, slot, table, kv), expected = decoding(*in_heads(D, qkv), out, off, size_out, T, H, H, kind, table)
    return (part, *caches, new.reshape(B, T, 3 * H * D), pos, slot, table, kv), expected
