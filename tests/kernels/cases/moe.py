"""Cases of kernels/moe.c: B, T, H, experts N, chosen besides the first K.

Every value is off by the roundings of the sums behind it; they are bounded by the largest value of its tensor.
"""

import numpy as np

from cases.case import case, gamma, normal, single, unset
from gpt2c import reference as ref


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
    out, cache = ref.moe_forward(n.reshape(-1, H), *weights, K)
    kept = [a.reshape(*a.shape[:-2], B, T, a.shape[-1]) for a in ref.moe_kept(cache)]
    return n, weights, out.reshape(B, T, H), cache, kept


@case(*MIXTURES, large=(9, 7, 48, 4, 1))
def moe_forward(rng, B, T, H, N, K):
    n, weights, out, _, kept = mixture_of(rng, B, T, H, N, K)
    expected = [(out, behind(6 * H + 30, out)), *((a, behind(6 * H + 30, a) * (a.dtype != np.int32)) for a in kept)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast([out, *kept])]
    return (*outputs, n, *weights), [pair for pair, output in zip(expected, outputs) if output is not None]


@case(*MIXTURES, (3, 5, 17, 3, 2, 0.5), (3, 5, 17, 3, 2, 0.5, 2), (2, 3, 5, 4, 1, 0.5, 3), large=(9, 7, 48, 4, 1))
def moe_backward(rng, B, T, H, N, K, balance=0.0, first_new=0):
    n, weights, _, cache, kept = mixture_of(rng, B, T, H, N, K)
    dout, slope, fraction = normal(rng, B, T, H), 0.0, None
    if balance:
        new = np.tile(np.arange(T) >= first_new, B)
        picked = cache["picked"][new]
        fraction = single(picked.sum(axis=0) / max(len(picked), 1))
        slope = balance * new[:, None] * (ref.balance_slope(picked) if len(picked) else 0.0)
    dn, _, (da, db, dlogits) = ref.moe_backward(dout.reshape(-1, H), cache, *weights, slope)
    dgates = ref.by_slot(np.concatenate([da, db], axis=-1), kept[-1].reshape(B * T, kept[-1].shape[-1]))
    exact = [a.reshape(shape) for a, shape in zip((dn, dgates, dlogits), (dout.shape, kept[0].shape, kept[2].shape))]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    args = *outputs, dout, *cast(kept), *weights, fraction, balance, first_new
    return args, [(a, behind(9 * H + 60, a, terms=0.5)) for a, output in zip(exact, outputs) if output is not None]


@case(*MIXTURES, (3, 400, 2, 3, 1), large=(9, 7, 48, 4, 1))
def moe_backward_w(rng, B, T, H, N, K):
    """More rows of an expert than are gathered at a time are among the sizes."""
    n, _, _, _, kept = mixture_of(rng, B, T, H, N, K)
    gates, _, _, shares, chosen = cast(kept)
    dout, dgates = normal(rng, B, T, H), normal(rng, *gates.shape)
    old = normal(rng, N, 2 * H, H), normal(rng, N, 2 * H, H), normal(rng, N, H, 2 * H)
    kept = dout, dgates, gates, n, shares
    exact = ref.moe_backward_w(*kept, chosen, N)
    size = [ref.by_expert(abs(left), abs(right), chosen, N) for left, right in ref.moe_factors(*kept)]
    args = *old, dout, dgates, gates, n, shares, chosen
    return args, [(o + e, gamma(B * T * len(gates) + 24) * (abs(o) + s)) for o, e, s in zip(old, exact, size)]


@case((1, 1, 1, 1), (3, 1, 2, 1), (17, 3, 5, 2), (0, 1, 3, 1), (2, 7, 3, 1, 4), (2, 3, 3, 1, 3), large=(3001, 2, 3, 2))
def balance_forward(rng, B, T, M, K, first_new=0):
    probs, chosen = single(ref.softmax(normal(rng, B, T, M))), rng.permuted(np.tile(np.arange(M), (B, T, 1)), axis=2)[..., :K]
    chosen = np.concatenate([np.zeros((B, T, 1), int), chosen + 1], axis=2).astype(np.int32)
    loss, fraction = ref.balance_forward(probs, chosen, first_new)
    return (unset(1), unset(M), probs, chosen, first_new), [(loss, gamma(8) * loss), (fraction, gamma(2) * fraction)]
