"""The whole hybrid, forward and backward."""

import numpy as np

from gpt2c.reference.gru import EPS, EXPERTS, TIME_MIXING, gru_backward, gru_forward
from gpt2c.reference.loss import crossentropy_backward, crossentropy_forward
from gpt2c.reference.matmul import matmul_backward, matmul_forward
from gpt2c.reference.moe import balance_loss, balance_slope, moe_backward, moe_forward
from gpt2c.reference.norm import rmsnorm_backward, rmsnorm_forward

# ---- the whole model: cfg has vocab_size, hidden, num_layers, embed, num_experts, top_k, fast_mode, use_rwkv, carry


def hybrid_shapes(cfg):
    V, H, L, E, N = (cfg[name] for name in ("vocab_size", "hidden", "num_layers", "embed", "num_experts"))
    shapes = {"emb": (V, E), "in0_norm": (E,), "in0_z": (H, E), "in0_r": (H, E), "in0_h": (H, E)}
    if E != H:
        shapes["in0_proj"] = (H, E)
    if L > 1:
        shapes |= {"in_norm": (L - 1, H), "in_z": (L - 1, H, H), "in_r": (L - 1, H, H), "in_h": (L - 1, H, H)}
    shapes |= {"hid_norm": (L, H), "uz": (L, H, H), "ur": (L, H, H), "uh": (L, H, H), "bz": (L, H), "br": (L, H), "bh": (L, H)}
    if cfg["use_rwkv"]:
        shapes |= {name: (L, H, H) if name.startswith("w") else (L, H) for name in TIME_MIXING}
    if not cfg["fast_mode"]:
        shapes |= {"moe_norm": (L, H), "expert_g": (L, N, 2 * H, H), "expert_u": (L, N, 2 * H, H), "expert_d": (L, N, H, 2 * H)}
        if N > 1:
            shapes["router"] = (L, N - 1, H)
    return shapes | {"out_norm": (H,), "head": (V, H)}


def hybrid_random_params(cfg, seed):
    """float32; gains, biases and mixing far enough from where they start to matter."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in hybrid_shapes(cfg).items():
        noise = rng.standard_normal(shape)
        if name.endswith("norm"):
            params[name] = 1 + 0.2 * noise
        elif name in ("bz", "br", "bh", "time_first"):
            params[name] = 0.3 * noise
        elif name == "time_decay":
            params[name] = -0.7 + 0.3 * noise
        elif name.startswith("mu_"):
            params[name] = 0.5 + 0.2 * noise
        else:
            params[name] = noise / np.sqrt(shape[-1])
    return {name: p.astype(np.float32) for name, p in params.items()}


def zero_state(cfg, B):
    names = ("h", "num", "den", "xprev") if cfg["use_rwkv"] else ("h",)
    return {name: np.zeros((cfg["num_layers"], B, cfg["hidden"])) for name in names}


def layer_weights(params, cfg, l):
    """The recurrent layer's own; with carry="cell" the experts come after it."""
    names = ["hid_norm", "uz", "ur", "uh", *TIME_MIXING, *(EXPERTS if cfg["carry"] == "layer" else ())]
    return {name: params[name][l] for name in names if name in params}


def input_weights(params, l):
    """in_norm, in_z, in_r, in_h, in_proj of a layer, by those names, and the names and places they have in the model"""
    places = {f"in_{part}": (f"in0_{part}", ...) if l == 0 else (f"in_{part}", l - 1) for part in ("norm", "z", "r", "h", "proj")}
    places = {name: place for name, place in places.items() if place[0] in params}
    return {name: params[key][at] for name, (key, at) in places.items()}, places


def hybrid_forward(params, cfg, tokens, targets, state=None, balance=0.0, first_new=0):
    """-> loss, logits (B,T,V), cache. The loss is the cross-entropy plus `balance` times the layers' balance losses, which are
    over the positions from first_new on."""
    params = {name: p.astype(float) for name, p in params.items()}
    state = state or zero_state(cfg, tokens.shape[0])
    x, layers = params["emb"][tokens], []
    after, balances = [], []
    for l in range(cfg["num_layers"]):
        a, w = {"x": x}, input_weights(params, l)[0]
        a["xn"], a["x_rstd"] = rmsnorm_forward(x, w["in_norm"], EPS)
        az, ar, ah = (matmul_forward(a["xn"], w[f"in_{part}"], params[f"b{part}"][l]) for part in "zrh")
        xr = x @ w["in_proj"].T if "in_proj" in w else x
        skip, inside = 0.5 * (l > 0), cfg["carry"] == "layer"
        out, last, a["gru"] = gru_forward(
            az,
            ar,
            ah,
            xr if inside else None,
            {name: s[l] for name, s in state.items()},
            layer_weights(params, cfg, l),
            cfg["top_k"],
            skip,
        )
        after.append(last)
        if not inside:
            a["blend"] = out + xr
            out = a["blend"] + skip * xr
            if not cfg["fast_mode"]:
                n, a["n_rstd"] = rmsnorm_forward(a["blend"], params["moe_norm"][l], EPS)
                moe, a["moe"] = moe_forward(n.reshape(-1, n.shape[-1]), *experts_of(params, l), cfg["top_k"])
                out = out + moe.reshape(out.shape)
        if not cfg["fast_mode"] and cfg["num_experts"] > 1:
            new = np.tile(np.arange(tokens.shape[1]) >= first_new, tokens.shape[0])
            rows = [s["moe"] for s in a["gru"]["steps"][first_new:]] if inside else [a["moe"]]
            parts = (np.concatenate([r[name] for r in rows]) for name in ("p", "picked"))
            balances.append(balance_loss(*(part if inside else part[new] for part in parts)))
        x = a["out"] = out
        layers.append(a)
    xn, rstd = rmsnorm_forward(x, params["out_norm"], EPS)
    logits = xn @ params["head"].T
    losses, _, loss = crossentropy_forward(logits.reshape(-1, cfg["vocab_size"]), targets.reshape(-1), cfg["vocab_size"])
    state = {name: np.stack([s[name] for s in after]) for name in state}
    return loss + balance * sum(balances), logits, dict(
        params=params, cfg=cfg, tokens=tokens, targets=targets, layers=layers, x=x, xn=xn, rstd=rstd, logits=logits,
        state=state, balances=balances, balance=balance, first_new=first_new)  # fmt: skip


def experts_of(params, l):
    return [params[name][l] if name in params else None for name in EXPERTS[1:]]


def hybrid_backward(cache, dstate=None):
    """-> gradients of the loss by parameter, and of the incoming state; dstate: what flows back into the outgoing one."""
    p, cfg, balance = cache["params"], cache["cfg"], cache["balance"]
    B = cache["tokens"].shape[0]
    grads = {name: np.zeros(shape) for name, shape in hybrid_shapes(cfg).items()}
    dstate = dstate or zero_state(cfg, B)
    dfirst = zero_state(cfg, B)
    V = cfg["vocab_size"]
    dlogits = crossentropy_backward(cache["logits"].reshape(-1, V), cache["targets"].reshape(-1), V)
    dxn, grads["head"], _ = matmul_backward(dlogits.reshape(cache["logits"].shape), cache["xn"], p["head"])
    dx, grads["out_norm"] = rmsnorm_backward(dxn, cache["x"], p["out_norm"], cache["rstd"])
    for l, a in reversed(list(enumerate(cache["layers"]))):
        w, places = input_weights(p, l)
        skip, inside, dout = 0.5 * (l > 0), cfg["carry"] == "layer", dx
        if not inside:
            dblend = dout
            if not cfg["fast_mode"]:
                new = np.tile(np.arange(cache["tokens"].shape[1]) >= cache["first_new"], B)
                slope = balance * new[:, None] * balance_slope(a["moe"]["picked"][new]) if "router" in p else 0.0
                dn, dexperts, _ = moe_backward(dout.reshape(-1, dout.shape[-1]), a["moe"], *experts_of(p, l), slope)
                for name, g in dexperts.items():
                    if name in grads:
                        grads[name][l] = g
                d, grads["moe_norm"][l] = rmsnorm_backward(dn.reshape(dout.shape), a["blend"], p["moe_norm"][l], a["n_rstd"])
                dblend = dout + d
            dxr, dout = dblend + skip * dout, dblend
        daz, dar, dah, from_layer, dlast, own = gru_backward(
            dout, {name: s[l] for name, s in dstate.items()}, a["gru"], balance if inside else 0.0, cache["first_new"]
        )
        if inside:
            dxr = from_layer
        for name, g in own.items():
            grads[name][l] = g
        for name, g in dlast.items():
            dfirst[name][l] = g
        dxn, din = 0, {}
        for part, d in zip("zrh", (daz, dar, dah)):
            back, din[f"in_{part}"], grads[f"b{part}"][l] = matmul_backward(d, a["xn"], w[f"in_{part}"])
            dxn = dxn + back
        dx, din["in_norm"] = rmsnorm_backward(dxn, a["x"], w["in_norm"], a["x_rstd"])
        if "in_proj" in w:
            dxr, din["in_proj"], _ = matmul_backward(dxr, a["x"], w["in_proj"])
        dx = dx + dxr
        for name, (key, at) in places.items():
            grads[key][at] = din[name]
    np.add.at(grads["emb"], cache["tokens"], dx)
    return grads, dfirst
