"""The oracle of kernels/gru.c.

A layer's weights are a dict by their names without the layer; time mixing, experts and router are there or not.
"""

import numpy as np

from gpt2c.reference.float64 import in_float64, sigmoid
from gpt2c.reference.matmul import matmul_backward
from gpt2c.reference.moe import balance_slope, by_slot, moe_backward, moe_forward, moe_kept
from gpt2c.reference.norm import rmsnorm_backward, rmsnorm_forward

EPS = 1e-6
CLAMP = 10
TIME_MIXING = ("wk", "wv", "wo", "wdecay", "wfirst", "time_decay", "time_first", "mu_k", "mu_v", "mu_r")
EXPERTS = ("moe_norm", "expert_g", "expert_u", "expert_d", "router")


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


def gru_backward(dout, dstate, cache, balance=0.0, first_new=0):
    """-> daz, dar, dah, dxr, the gradients of the incoming state and of the weights. dstate: of the state that went on."""
    w, skip, steps = cache["weights"], cache["skip"], cache["steps"]
    grads = {name: np.zeros(x.shape) for name, x in w.items()}
    dstate = {name: x.astype(float) for name, x in dstate.items()}
    slope = 0.0
    if "router" in w and steps[first_new:]:  # the fractions are those of all rows together
        slope = balance * balance_slope(np.concatenate([s["moe"]["picked"] for s in steps[first_new:]]))
    found = []
    for t, s in reversed(list(enumerate(steps))):
        dtotal = dout[:, t] + dstate["h"]
        dblend = dtotal
        if "expert_g" in w:
            own = slope if t >= first_new else 0.0
            dn, dexperts, s["dgates"] = moe_backward(dtotal, s["moe"], *(w.get(name) for name in EXPERTS[1:]), own)
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


def gru_deltas(cache):
    """What the kernel's backward leaves for the products outside, once gru_backward has been there.

    mixed (5,B,T,H), the gradient of what comes out (B,T,H), of gates (S,B,T,4H) and of logits (B,T,M); None where absent.
    """
    steps, mixed, found = cache["steps"], None, [None] * 3
    if "wk" in cache["weights"]:
        mixed = np.stack([np.stack(d, axis=1) for d in zip(*(s["mixed_deltas"] for s in steps))])
    if "expert_g" in cache["weights"]:
        gates = []
        for s in steps:
            (da, db, _), chosen = s["dgates"], moe_kept(s["moe"])[-1]
            gates.append(by_slot(np.concatenate([da, db], axis=-1), chosen))
        over_time = [np.stack([s["dtotal"] for s in steps], axis=1), np.stack(gates, axis=2)]
        found = [*over_time, np.stack([s["dgates"][-1] for s in steps], axis=1)]
    return mixed, *found
