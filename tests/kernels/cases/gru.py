"""Cases of kernels/gru.c, the recurrent layer: B, T, H, experts N (0: none), K; time mixing; xr; the balance loss; how many
times as large the keys are, of which some are then clamped and others nearly; skip and a gradient from later steps.

Each step starts from the roundings of the one before, so that bounds grow with T.
"""

import numpy as np

from cases.case import U, case, normal, single
from cases.moe import behind, cast
from gpt2c import reference as ref
from gpt2c._core import DOORS

LAYERS = [
    (1, 1, 1, 0, 1), (1, 1, 1, 1, 1), (2, 3, 5, 4, 1), (3, 4, 16, 4, 2), (2, 4, 17, 3, 2), (5, 2, 33, 2, 1), (2, 5, 9, 0, 1),
    (2, 3, 5, 4, 1, False), (3, 3, 7, 0, 1, False), (2, 3, 31, 0, 1, True, False), (2, 3, 6, 4, 2, True, True, 0.5),
    (70, 2, 4, 4, 1), (3, 4, 16, 0, 1, True, True, 0.0, 10), (2, 4, 6, 4, 2, True, True, 0.5, 1, 1),
    (3, 5, 8, 3, 1, False, True, 0.5, 1, 3),
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


def named(prefix, arrays, suffix=""):
    return {f"{prefix}{name}{suffix}": array for name, array in arrays.items()}


def rounded(arrays):
    """As the kernels receive them, without those that are absent."""
    return {name: a for name, a in zip(arrays, cast(arrays.values())) if a is not None}


def kept_by(cache, last):
    return dict(zip(("acts", "mixed", "n", "gates", "y", "probs", "weights", "chosen"), ref.gru_kept(cache, last)))


def layer_weights(weights):
    names = "hid_norm", "uz", "ur", "uh", *ref.TIME_MIXING, *ref.EXPERTS
    return {name: weights[name] for name in names if name in weights}


def in_order(kernel, arguments):
    """Arguments by name as the kernel takes them by position, up to the last of them."""
    names = list(DOORS[kernel].defaults)
    return DOORS[kernel].bind((), arguments)[: max(map(names.index, arguments)) + 1]


def steps_bound(T, H, exact):
    return behind(T * (24 * H + 200), exact, terms=0.1)


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_forward(rng, B, T, H, N, K, mixing=True, with_xr=True, _=0.0, keys=1, first_new=0):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    exact = {"out": out} | kept_by(cache, last) | named("", last, "1")
    outputs = {name: np.full_like(a, -7) for name, a in rounded(exact).items()}
    bounds = {name: 0 if a.dtype == np.int32 else steps_bound(T, H, exact[name]) for name, a in outputs.items()}
    inputs = dict(zip(("az", "ar", "ah", "xr"), inputs)) | named("", state, "0") | layer_weights(weights)
    args = in_order("gru_forward", outputs | inputs | {"skip": skip})
    return args, [(exact[name], bounds[name]) for name in DOORS["gru_forward"].defaults if name in bounds]


@case(*LAYERS, large=(9, 3, 48, 4, 1))
def gru_backward(rng, B, T, H, N, K, mixing=True, with_xr=True, balance=0.0, keys=1, first_new=0):
    inputs, state, weights, (out, last, cache), skip = layer_of(rng, B, T, H, N, K, mixing, with_xr, keys)
    kept = kept_by(cache, last)
    dout, flow = normal(rng, B, T, H), {name: normal(rng, B, H) for name in state}
    *deltas, dxr, dstate, grads = ref.gru_backward(dout, flow, cache, balance, first_new)
    steps = cache["steps"]
    exact, fraction = {"deltas": np.stack(deltas)} | named("d", dstate, "0"), None
    if mixing:
        exact["mixed_deltas"] = np.stack([np.stack(d, axis=1) for d in zip(*(s["mixed_deltas"] for s in steps))])
    if N:
        exact["dtotal"] = np.stack([s["dtotal"] for s in steps], axis=1)
        da, db, dlogits = (np.stack(d, axis=1).reshape(B * T, *d[0].shape[1:]) for d in zip(*(s["dgates"] for s in steps)))
        chosen = kept["chosen"].reshape(B * T, kept["chosen"].shape[-1])
        exact["dgates"] = ref.by_slot(np.concatenate([da, db], axis=-1), chosen).reshape(kept["gates"].shape)
        exact["dlogits"] = dlogits.reshape(B, T, N - 1)
        if balance:
            fraction = single(np.concatenate([s["moe"]["picked"] for s in steps[first_new:]]).mean(axis=0))
    outputs = {name: np.full_like(a, -7) for name, a in rounded(exact).items()}
    expected = {name: (exact[name], steps_bound(T, H, exact[name])) for name in outputs}
    old = {"dxr": normal(rng, B, T, H)} if with_xr else {}
    old |= {f"d{name}": normal(rng, H) for name in VECTORS if name in weights}
    for name, added in ({"dxr": dxr} | named("d", grads)).items():
        if name in old:
            sum = old[name] + added
            expected[name] = sum, steps_bound(T, H, added) + U * abs(sum)
    kept = rounded({"out": out} | kept)
    kept.pop("n", None)  # which the backward does not need
    inputs = {"dout": dout} | named("d", flow, "1") | kept | named("", state, "0") | layer_weights(weights)
    args = in_order(
        "gru_backward", old | outputs | inputs | {"fraction": fraction, "skip": skip, "balance": balance, "first_new": first_new}
    )
    return args, [expected[name] for name in DOORS["gru_backward"].defaults if name in expected]
