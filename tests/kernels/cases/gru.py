"""Cases of kernels/gru.c, the recurrent layer: B, T, H, experts N (0: none), K; time mixing; xr; the balance loss; how many
times as large the keys are, of which some are then clamped and others nearly; skip and a gradient from later steps.

Each step starts from the roundings of the one before, so that bounds grow with T.
"""

import numpy as np

from cases.case import U, case, normal, single
from cases.moe import behind, cast
from gpt2c import reference as ref

LAYERS = [
    (1, 1, 1, 0, 1), (1, 1, 1, 1, 1), (2, 3, 5, 4, 1), (3, 4, 16, 4, 2), (2, 4, 17, 3, 2), (5, 2, 33, 2, 1), (2, 5, 9, 0, 1),
    (2, 3, 5, 4, 1, False), (3, 3, 7, 0, 1, False), (2, 3, 31, 0, 1, True, False), (2, 3, 6, 4, 2, True, True, 0.5),
    (70, 2, 4, 4, 1), (3, 4, 16, 0, 1, True, True, 0.0, 10),
]  # fmt: skip
VECTORS = ("hid_norm", *ref.TIME_MIXING[5:], "moe_norm")


def layer_of(rng, B, T, H, N, K, mixing=True, with_xr=True, keys=1):
    """-> inputs, state, weights by name, the oracle's (out, last state, cache), skip"""
    cfg = dict(
        vocab_size=1,
        hidden=H,
        num_layers=1,
        embed=H,
        num_experts=max(N, 1),
        top_k=K,
        fast_mode=not N,
        use_rwkv=mixing,
        carry="layer",
    )
    weights = ref.layer_weights(ref.hybrid_random_params(cfg, 1), cfg, 0)
    if keys > 1:
        weights["wk"] = keys * weights["wk"]
    inputs = [normal(rng, B, T, H) for _ in range(3)] + [normal(rng, B, T, H) if with_xr else None]
    state = {name: abs(normal(rng, B, H)) for name in ref.zero_state(cfg, B)}
    skip = 0.5 if with_xr else 0.0
    return inputs, state, weights, ref.gru_forward(*inputs, state, weights, K, skip), skip


def states(arrays):
    return [arrays.get(name) for name in ("h", "num", "den", "xprev")]


def layer_weights(weights):
    names = "hid_norm", "uz", "ur", "uh", *ref.TIME_MIXING, *ref.EXPERTS
    return [weights.get(name) for name in names]


def steps_bound(T, H, exact):
    return behind(T * (24 * H + 200), exact, terms=0.1)


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_forward(rng, B, T, H, N, K, mixing=True, with_xr=True, _=0.0, keys=1):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    exact = [out, *ref.gru_kept(cache, last), *states(last)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    expected = [(a, 0 if a.dtype == np.int32 else steps_bound(T, H, a)) for a, o in zip(exact, outputs) if o is not None]
    return (*outputs, *inputs, *states(state), *layer_weights(weights), 1e-6, skip), expected


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_backward(rng, B, T, H, N, K, mixing=True, with_xr=True, balance=0.0, keys=1):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    acts, mixed, _, *kept = ref.gru_kept(cache, last)
    dout, flow = normal(rng, B, T, H), {name: normal(rng, B, H) for name in state}
    *deltas, dxr, dstate, grads = ref.gru_backward(dout, flow, cache, balance)
    fraction = single(np.concatenate([s["moe"]["picked"] for s in cache["steps"]]).mean(axis=0)) if N and balance else None
    exact = [np.stack(deltas), *ref.gru_deltas(cache), *states(dstate)]
    outputs = [None if a is None else np.full_like(a, -7) for a in cast(exact)]
    old = [normal(rng, B, T, H) if with_xr else None] + [normal(rng, H) if name in weights else None for name in VECTORS]
    added = [dxr, *(grads.get(name) for name in VECTORS)]
    expected = [(a, steps_bound(T, H, a)) for a, o in zip(exact, outputs) if o is not None]
    sums = [(o + a, steps_bound(T, H, a) + U * abs(o + a)) for o, a in zip(old, added) if o is not None]
    args = (
        old[0],
        *outputs,
        *old[1:],
        dout,
        *states(flow),
        *cast([out, acts, mixed, *kept]),
        *states(state),
        *layer_weights(weights),
        fraction,
        1e-6,
        skip,
        balance,
    )
    return args, sums[:with_xr] + expected + sums[with_xr:]
