"""The oracles of kernels/moe.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64, sigmoid

# ---- mixture of experts: every expert computed for every row, and weighted 0 where the row did not choose it


def softmax(x):
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))


@in_float64
def moe_forward(n, expert_g, expert_u, expert_d, router, top_k):
    """n (R,H) -> out (R,H), what the backward needs. A row's best top_k of the routed experts, ties to the lowest."""
    a = np.einsum("rh,nfh->rnf", n, expert_g)  # (R, N, 2H)
    b = np.einsum("rh,nfh->rnf", n, expert_u)
    hidden = a * sigmoid(a) * b
    e = np.einsum("rnf,nhf->rnh", hidden, expert_d)  # (R, N, H)
    p = softmax(n @ router.T) if router is not None else np.zeros((len(n), 0))
    chosen = np.argsort(-p, axis=-1, kind="stable")[:, :top_k]  # (R, k), the likeliest first
    picked = np.zeros(p.shape)
    np.put_along_axis(picked, chosen, 1, axis=-1)
    total = 1 + (picked * p).sum(axis=-1, keepdims=True)
    w = np.concatenate([np.ones((len(n), 1)), picked * p], axis=-1) / total  # (R, N)
    out = np.einsum("rn,rnh->rh", w, e)
    return out, dict(n=n, a=a, b=b, hidden=hidden, e=e, p=p, chosen=chosen, picked=picked, w=w, out=out)


@in_float64
def moe_backward(dout, cache, expert_g, expert_u, expert_d, router, slope=0.0):
    """-> dn, gradients of the four weights, and of a, b and the logits. `slope` is added to the probabilities' gradient."""
    c = cache
    along = np.einsum("rh,rnh->rn", dout, c["e"])
    mean = (dout * c["out"]).sum(axis=-1, keepdims=True)
    dp = c["picked"] * (along[:, 1:] - mean) * c["w"][:, :1] + slope
    dlogits = c["p"] * (dp - (dp * c["p"]).sum(axis=-1, keepdims=True))
    de = c["w"][:, :, None] * dout[:, None]  # (R, N, H)
    dhidden = np.einsum("rnh,nhf->rnf", de, expert_d)
    s = sigmoid(c["a"])
    da, db = dhidden * c["b"] * s * (1 + c["a"] * (1 - s)), dhidden * c["a"] * s
    dn = np.einsum("rnf,nfh->rh", da, expert_g) + np.einsum("rnf,nfh->rh", db, expert_u)
    if router is not None:
        dn = dn + dlogits @ router
    grads = {
        "expert_g": np.einsum("rnf,rh->nfh", da, c["n"]), "expert_u": np.einsum("rnf,rh->nfh", db, c["n"]),
        "expert_d": np.einsum("rnh,rnf->nhf", de, c["hidden"]), "router": dlogits.T @ c["n"],
    }  # fmt: skip
    return dn, grads, (da, db, dlogits)


def balance_slope(picked):
    """The derivative of balance_loss by the probabilities of any of these rows: the fractions count as constants."""
    return picked.shape[1] * picked.mean(axis=0) / len(picked)  # (M)


def balance_loss(p, picked):
    """M sum_j (share of the rows that chose j) (mean probability of j); 1 where all are used alike and top_k is 1."""
    rows = max(len(p), 1)
    return p.shape[1] * (picked.sum(axis=0) / rows * p.sum(axis=0) / rows).sum()


@in_float64
def balance_forward(probs, chosen, first_new=0):
    """From chosen (B, T, S), whose first slot is expert 0's -> the loss, the share of the rows that chose each of the others;
    of the rows from position first_new on."""
    probs, chosen = (a[:, first_new:].reshape(-1, a.shape[-1]) for a in (probs, chosen))
    picked = (chosen[:, 1:, None] == 1 + np.arange(probs.shape[1])).sum(axis=1)
    return balance_loss(probs, picked), picked.sum(axis=0) / max(len(probs), 1)


def by_slot(x, chosen):
    """Of (R, N, ...) what belongs to the experts in each slot, as the kernels keep it: (S, R, ...)."""
    return np.stack([x[np.arange(len(x)), expert] for expert in chosen.T])


def moe_kept(cache):
    """-> gates (S,R,4H), y (S,R,H), probs (R,M), weights (R,S), chosen (R,S), expert 0 in the first slot."""
    c = cache
    chosen = np.concatenate([np.zeros((len(c["n"]), 1), int), c["chosen"] + 1], axis=-1)
    gates = by_slot(np.concatenate([c["a"], c["b"]], axis=-1), chosen)
    weights = np.take_along_axis(c["w"], chosen, axis=-1)
    return gates, by_slot(c["e"], chosen), c["p"], weights, chosen.astype(np.int32)


# ---- the gradients of the experts' weights, from what is kept


@in_float64
def moe_factors(dout, dgates, gates, n, weights):
    """-> a pair for each weight, (S, B, T, ...) both, whose products summed over the rows of an expert are its gradient"""
    (a, b), (da, db) = np.split(gates, 2, axis=-1), np.split(dgates, 2, axis=-1)
    n = np.broadcast_to(n, (len(gates), *n.shape))
    dy = np.moveaxis(weights, -1, 0)[..., None] * dout
    return (da, n), (db, n), (dy, a * sigmoid(a) * b)


def by_expert(left, right, chosen, N):
    """(S, B, T, F), (S, B, T, G) -> (N, F, G)"""
    chosen = np.moveaxis(chosen, -1, 0)
    return np.stack([left[chosen == expert].T @ right[chosen == expert] for expert in range(N)])


def moe_backward_w(dout, dgates, gates, n, weights, chosen, N):
    """-> dexpert_g, dexpert_u (N, 2H, H), dexpert_d (N, H, 2H)"""
    return [by_expert(*pair, chosen, N) for pair in moe_factors(dout, dgates, gates, n, weights)]
