"""The hybrid as it should be computed: naive float64 NumPy, forward and backward side by side, beside reference.py.

A layer's weights are a dict by their names without the layer; time mixing, experts and router are there or not. Shapes:
B batch, T time, H hidden, E embed, N experts, M = N - 1 routed ones, R rows. `test_reference_hybrid.py` proves the
backward functions by finite differences and the whole model against PyTorch.
"""

import numpy as np

from gpt2c.reference.ops import (
    crossentropy_backward,
    crossentropy_forward,
    in_float64,
    matmul_backward,
    matmul_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    sigmoid,
)

EPS = 1e-6
CLAMP = 10
TIME_MIXING = ("wk", "wv", "wo", "wdecay", "wfirst", "time_decay", "time_first", "mu_k", "mu_v", "mu_r")
EXPERTS = ("moe_norm", "expert_g", "expert_u", "expert_d", "router")


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
    """The derivative of balance_loss by the probabilities of any row: the fractions count as constants."""
    return picked.shape[1] * picked.mean(axis=0) / len(picked)  # (M)


def balance_loss(p, picked):
    """M sum_j (share of the rows that chose j) (mean probability of j); 1 where all are used alike and top_k is 1."""
    return p.shape[1] * (picked.mean(axis=0) * p.mean(axis=0)).sum()


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


# ---- the recurrent layer, from the products with its input on


@in_float64
def wkv_forward(k, v, u, w, num, den):
    d, ek, euk = np.exp(-np.exp(w)), np.exp(k), np.exp(u + k)
    return (euk * v + num) / (euk + den + 1e-8), d * num + ek * v, d * den + ek


@in_float64
def wkv_backward(dwkv, dnum1, dden1, k, v, u, w, num, den):
    """-> dk, dv, du, dw, dnum, dden"""
    d, ek, euk = np.exp(-np.exp(w)), np.exp(k), np.exp(u + k)
    D = euk + den + 1e-8
    wkv = (euk * v + num) / D
    dN, dD = dwkv / D, -dwkv * wkv / D
    du = (dN * v + dD) * euk
    dk = du + (dnum1 * v + dden1) * ek
    dv = dN * euk + dnum1 * ek
    dw = -(dnum1 * num + dden1 * den) * d * np.exp(w)
    return dk, dv, du, dw, dN + dnum1 * d, dD + dden1 * d


def gru_forward(az, ar, ah, xr, state, weights, top_k=1, skip=0.0):
    """az, ar, ah, xr (B,T,H) -> out (B,T,H), the state after the last step, a cache of one dict for each step."""
    (az, ar, ah), w = (np.asarray(x, float) for x in (az, ar, ah)), {n: x.astype(float) for n, x in weights.items()}
    state, steps = {name: x.astype(float) for name, x in state.items()}, []
    for t in range(az.shape[1]):
        s = {"state": state}
        s["hn"], s["h_rstd"] = rmsnorm_forward(state["h"], w["hid_norm"], EPS)
        s["z"] = sigmoid(az[:, t] + s["hn"] @ w["uz"].T)
        s["r"] = sigmoid(ar[:, t] + s["hn"] @ w["ur"].T)
        s["rh"] = s["r"] * s["hn"]
        s["c"] = s["c2"] = np.tanh(ah[:, t] + s["rh"] @ w["uh"].T)
        state = {}
        if "wk" in w:
            step, last = s["c"] - s["state"]["xprev"], s["state"]["xprev"]
            s["shift_k"], s["shift_v"] = last + w["mu_k"] * step, last + w["mu_v"] * step
            s["q"] = sigmoid(last + w["mu_r"] * step)
            s["k"], s["v"] = np.clip(s["shift_k"] @ w["wk"].T, -CLAMP, CLAMP), s["shift_v"] @ w["wv"].T
            s["decay"], s["first"] = np.tanh(s["c"] @ w["wdecay"].T), np.tanh(s["c"] @ w["wfirst"].T)
            s["w"], s["u"] = w["time_decay"] + 0.5 * s["decay"], w["time_first"] + 0.3 * s["first"]
            s["wkv"], num, den = wkv_forward(s["k"], s["v"], s["u"], s["w"], s["state"]["num"], s["state"]["den"])
            s["gated"] = s["q"] * s["wkv"]
            s["c2"] = s["c"] + s["gated"] @ w["wo"].T
            state = {"num": num, "den": den, "xprev": s["c"]}
        s["blend"] = (1 - s["z"]) * s["state"]["h"] + s["z"] * s["c2"]
        if xr is not None:
            s["blend"] = s["blend"] + xr[:, t]
        s["out"] = s["blend"] if xr is None else s["blend"] + skip * xr[:, t].astype(float)
        if "expert_g" in w:
            s["n"], s["n_rstd"] = rmsnorm_forward(s["blend"], w["moe_norm"], EPS)
            moe, s["moe"] = moe_forward(s["n"], *(w.get(name) for name in EXPERTS[1:]), top_k)
            s["out"] = s["out"] + moe
        state = {"h": s["out"], **state}
        steps.append(s)
    return np.stack([s["out"] for s in steps], axis=1), state, dict(steps=steps, weights=w, skip=skip)


def gru_kept(cache, last):
    """What the kernel keeps: acts (6,B,T,H), mixed (11,B,T,H) or None, n (B,T,H), and as moe_kept of (B,T), or None."""
    steps = cache["steps"]

    def over_time(name):
        return np.stack([s[name] for s in steps], axis=1)

    acts = np.stack([over_time(name) for name in ("hn", "rh", "z", "r", "c", "blend")])
    mixed, n, kept = None, None, [None] * 5
    if "wk" in cache["weights"]:
        after = [s["state"] for s in steps[1:]] + [last]
        num, den = (np.stack([state[name] for state in after], axis=1) for name in ("num", "den"))
        parts = [over_time(name) for name in ("shift_k", "shift_v", "q", "k", "v", "decay", "first")]
        mixed = np.stack([*parts, num, den, over_time("gated"), over_time("c2")])
    if "expert_g" in cache["weights"]:
        n = over_time("n")
        by_step = [moe_kept(s["moe"]) for s in steps]
        kept = [np.stack(parts, axis=axis) for parts, axis in zip(zip(*by_step), (2, 2, 1, 1, 1))]
    return acts, mixed, n, *kept


def gru_backward(dout, dstate, cache, balance=0.0):
    """-> daz, dar, dah, dxr, the gradients of the incoming state and of the weights. dstate: of the state that went on."""
    w, skip, steps = cache["weights"], cache["skip"], cache["steps"]
    grads = {name: np.zeros(x.shape) for name, x in w.items()}
    dstate = {name: x.astype(float) for name, x in dstate.items()}
    slope = 0.0
    if "router" in w:  # the fractions are those of all rows together
        slope = balance * balance_slope(np.concatenate([s["moe"]["picked"] for s in steps]))
    found = []
    for t, s in reversed(list(enumerate(steps))):
        dtotal = dout[:, t] + dstate["h"]
        dblend = dtotal
        if "expert_g" in w:
            dn, dexperts, s["dgates"] = moe_backward(dtotal, s["moe"], *(w.get(name) for name in EXPERTS[1:]), slope)
            for name, g in dexperts.items():
                if name in w:
                    grads[name] += g
            d, dw = rmsnorm_backward(dn, s["blend"], w["moe_norm"], s["n_rstd"])
            dblend, grads["moe_norm"] = dtotal + d, grads["moe_norm"] + dw
        dz = dblend * (s["c2"] - s["state"]["h"]) * s["z"] * (1 - s["z"])
        dc2, dh = dblend * s["z"], dblend * (1 - s["z"])
        dc, dlast = dc2, {}
        if "wk" in w:
            last = s["state"]["xprev"]
            dgated, dwo, _ = matmul_backward(dc2, s["gated"], w["wo"])
            dk, dv, du, dw, dnum, dden = wkv_backward(
                dgated * s["q"], dstate["num"], dstate["den"], s["k"], s["v"], s["u"], s["w"],
                s["state"]["num"], s["state"]["den"])  # fmt: skip
            dk = np.where(abs(s["k"]) < CLAMP, dk, 0)
            dq = dgated * s["wkv"] * s["q"] * (1 - s["q"])
            ddecay, dfirst = dw * 0.5 * (1 - s["decay"] ** 2), du * 0.3 * (1 - s["first"] ** 2)
            dshift_k, dwk, _ = matmul_backward(dk, s["shift_k"], w["wk"])
            dshift_v, dwv, _ = matmul_backward(dv, s["shift_v"], w["wv"])
            from_decay, dwdecay, _ = matmul_backward(ddecay, s["c"], w["wdecay"])
            from_first, dwfirst, _ = matmul_backward(dfirst, s["c"], w["wfirst"])
            fresh = w["mu_k"] * dshift_k + w["mu_v"] * dshift_v + w["mu_r"] * dq
            dc = dc2 + from_decay + from_first + fresh + dstate["xprev"]
            dlast = {"num": dnum, "den": dden, "xprev": dshift_k + dshift_v + dq - fresh}
            step = s["c"] - last
            for name, g in {
                "wk": dwk, "wv": dwv, "wo": dwo, "wdecay": dwdecay, "wfirst": dwfirst,
                "time_decay": dw.sum(axis=0), "time_first": du.sum(axis=0),
                "mu_k": (dshift_k * step).sum(axis=0), "mu_v": (dshift_v * step).sum(axis=0), "mu_r": (dq * step).sum(axis=0),
            }.items():  # fmt: skip
                grads[name] += g
            s["mixed_deltas"] = dk, dv, ddecay, dfirst, dc2
        dc = dc * (1 - s["c"] ** 2)
        drh, duh, _ = matmul_backward(dc, s["rh"], w["uh"])
        dr = drh * s["hn"] * s["r"] * (1 - s["r"])
        from_z, duz, _ = matmul_backward(dz, s["hn"], w["uz"])
        from_r, dur, _ = matmul_backward(dr, s["hn"], w["ur"])
        d, dnorm = rmsnorm_backward(drh * s["r"] + from_z + from_r, s["state"]["h"], w["hid_norm"], s["h_rstd"])
        for name, g in {"uz": duz, "ur": dur, "uh": duh, "hid_norm": dnorm}.items():
            grads[name] += g
        dstate = {"h": dh + d, **dlast}
        s["dtotal"] = dtotal
        found.append((dz, dr, dc, dblend + skip * dtotal))
    daz, dar, dah, dxr = (np.stack(x[::-1], axis=1) for x in zip(*found))
    return daz, dar, dah, dxr, dstate, grads


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


def hybrid_forward(params, cfg, tokens, targets, state=None, balance=0.0):
    """-> loss, logits (B,T,V), cache. The loss is the cross-entropy plus `balance` times the layers' balance losses."""
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
            rows = [s["moe"] for s in a["gru"]["steps"]] if inside else [a["moe"]]
            balances.append(balance_loss(*(np.concatenate([r[name] for r in rows]) for name in ("p", "picked"))))
        x = a["out"] = out
        layers.append(a)
    xn, rstd = rmsnorm_forward(x, params["out_norm"], EPS)
    logits = xn @ params["head"].T
    losses, _, loss = crossentropy_forward(logits.reshape(-1, cfg["vocab_size"]), targets.reshape(-1), cfg["vocab_size"])
    state = {name: np.stack([s[name] for s in after]) for name in state}
    return loss + balance * sum(balances), logits, dict(
        params=params, cfg=cfg, tokens=tokens, targets=targets, layers=layers, x=x, xn=xn, rstd=rstd, logits=logits,
        state=state, balances=balances, balance=balance)  # fmt: skip


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
                slope = balance * balance_slope(a["moe"]["picked"]) if "router" in p else 0.0
                dn, dexperts, _ = moe_backward(dout.reshape(-1, dout.shape[-1]), a["moe"], *experts_of(p, l), slope)
                for name, g in dexperts.items():
                    if name in grads:
                        grads[name][l] = g
                d, grads["moe_norm"][l] = rmsnorm_backward(dn.reshape(dout.shape), a["blend"], p["moe_norm"][l], a["n_rstd"])
                dblend = dout + d
            dxr, dout = dblend + skip * dout, dblend
        daz, dar, dah, from_layer, dlast, own = gru_backward(
            dout, {name: s[l] for name, s in dstate.items()}, a["gru"], balance if inside else 0.0
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
