"""The whole Tiny Recursive Model, forward and backward."""

import numpy as np

from gpt2c.reference.activation import swiglu_backward, swiglu_forward
from gpt2c.reference.cope import cope_backward, cope_forward
from gpt2c.reference.dyt import dyt_backward, dyt_forward
from gpt2c.reference.embedding import embedding_backward
from gpt2c.reference.float64 import sigmoid
from gpt2c.reference.loss import crossentropy_backward, crossentropy_forward
from gpt2c.reference.matmul import matmul_backward, matmul_forward
from gpt2c.reference.recursion import (
    halting_backward,
    halting_forward,
    ponder_backward,
    ponder_forward,
    scaled_residual_backward,
    scaled_residual_forward,
)

# ---- the whole model: cfg has the fields of gpt2c.models.trm.Config


def trm_shapes(cfg):
    V, C, H, NH = cfg["vocab_size"], cfg["channels"], cfg["hidden"], cfg["num_heads"]
    steps = num_steps(cfg)
    shapes = {
        "emb": (V, C), "pos": (cfg["max_seq_len"], C), "dyt1_a": (1,), "dyt1_g": (C,), "dyt1_b": (C,), "qkvw": (3 * C, C),
        "attprojw": (C, C), "cope": (NH, cfg["cope_max_pos"] + 1, C // NH), "dyt2_a": (1,), "dyt2_g": (C,), "dyt2_b": (C,),
        "ffw1": (H, C), "ffw2": (H, C), "ffw3": (C, H), "alpha": (steps,), "beta": (steps,),
        "dytf_a": (1,), "dytf_g": (C,), "dytf_b": (C,), "head": (V, C), "halt_w": (C,), "halt_b": (1,),
    }  # fmt: skip
    absent = ([] if cfg["pos_emb"] == "learned" else ["pos"]) + ([] if cfg["adaptive"] else ["halt_w", "halt_b"])
    return {name: shape for name, shape in shapes.items() if name not in absent}


def num_steps(cfg):
    return cfg["max_depth"] if cfg["adaptive"] else cfg["depth"]


def trm_forward(p, cfg, tokens, targets):
    """-> loss, logits (B, T, V), cache; the metrics are in it."""
    B, T = tokens.shape
    x = p["emb"][tokens].astype(float)
    if "pos" in p:
        x = x + p["pos"][:T]
    steps, xs, depth = [], [], None
    running, sums = np.ones((B, T)), np.zeros((B, T))
    for s in range(num_steps(cfg)):
        a = {"x": x, "depth": depth}
        a["n1"] = dyt_forward(x, p["dyt1_a"], p["dyt1_g"], p["dyt1_b"])
        a["atty"], a["attention"] = cope_forward(matmul_forward(a["n1"], p["qkvw"]), p["cope"], cfg["num_heads"])
        a["y1"] = matmul_forward(a["atty"], p["attprojw"])
        a["x2"] = scaled_residual_forward(x, a["y1"], p["alpha"][s], depth, s + 1)
        a["n2"] = dyt_forward(a["x2"], p["dyt2_a"], p["dyt2_g"], p["dyt2_b"])
        a["a"], a["b"] = matmul_forward(a["n2"], p["ffw1"]), matmul_forward(a["n2"], p["ffw2"])
        a["h"] = swiglu_forward(a["a"], a["b"])
        a["y2"] = matmul_forward(a["h"], p["ffw3"])
        x = scaled_residual_forward(a["x2"], a["y2"], p["beta"][s], depth, s + 1)
        steps.append(a)
        xs.append(x.reshape(B * T, -1))
        if cfg["adaptive"]:  # who takes part in the next step: depth is s + 2 there
            sums = sums + sigmoid(x @ p["halt_w"].astype(float) + p["halt_b"])
            running = running * (sums < cfg["halt_threshold"])
            depth = np.where(running, s + 2, 0)
    cache = {"p": p, "cfg": cfg, "tokens": tokens, "targets": targets, "steps": steps, "xs": xs, "metrics": {}}
    if cfg["adaptive"]:
        cache["halting"] = halting_forward(xs, p["halt_w"], p["halt_b"], cfg["halt_threshold"])
        x = cache["halting"][0].reshape(x.shape)
    cache["x"] = x
    cache["nf"] = dyt_forward(x, p["dytf_a"], p["dytf_g"], p["dytf_b"])
    cache["logits"] = logits = matmul_forward(cache["nf"], p["head"])
    loss = crossentropy_forward(logits.reshape(B * T, -1), targets.reshape(-1), cfg["vocab_size"])[2]
    cache["metrics"]["cross_entropy"] = loss
    if cfg["adaptive"]:
        *_, depth, total = cache["halting"]
        ponder, mean_depth, _ = ponder_forward(depth, total, targets.reshape(-1))
        cache["metrics"].update(ponder=ponder, mean_depth=mean_depth)
        loss = loss + cfg["ponder_weight"] * ponder
    return loss, logits, cache


def trm_backward(cache):
    """-> gradients of the loss, named and shaped like the parameters."""
    p, cfg, tokens, targets = (cache[name] for name in ("p", "cfg", "tokens", "targets"))
    g = {name: np.zeros(shape) for name, shape in trm_shapes(cfg).items()}

    def through_dyt(dout, x, which):
        dx, da, dg, db = dyt_backward(dout, x, p[f"{which}_a"], p[f"{which}_g"])
        for name, gradient in (("a", da), ("g", dg), ("b", db)):
            g[f"{which}_{name}"] += gradient
        return dx

    def through_matmul(dout, x, name):
        dx, dw, _ = matmul_backward(dout, x, p[name])
        g[name] += dw
        return dx

    rows = cache["logits"].reshape(-1, cfg["vocab_size"])
    dlogits = crossentropy_backward(rows, targets.reshape(-1), cfg["vocab_size"]).reshape(cache["logits"].shape)
    dx = through_dyt(through_matmul(dlogits, cache["nf"], "head"), cache["x"], "dytf")
    dxs = [0] * len(cache["xs"])
    if cfg["adaptive"]:
        _, prob, weight, depth, _ = cache["halting"]
        dtotal = ponder_backward(targets.reshape(-1), cfg["ponder_weight"])
        dmixed = dx.reshape(-1, cfg["channels"])
        dxs, g["halt_w"][:], g["halt_b"][:] = halting_backward(dmixed, dtotal, cache["xs"], p["halt_w"], prob, weight, depth)
        dxs, dx = [d.reshape(dx.shape) for d in dxs], 0
    for s, a in reversed(list(enumerate(cache["steps"]))):
        dx = dx + dxs[s]
        dx2, dy2, dbeta = scaled_residual_backward(dx, a["y2"], p["beta"][s], a["depth"], s + 1)
        g["beta"][s] += dbeta
        da, db = swiglu_backward(through_matmul(dy2, a["h"], "ffw3"), a["a"], a["b"])
        dn2 = through_matmul(da, a["n2"], "ffw1") + through_matmul(db, a["n2"], "ffw2")
        dx2 = dx2 + through_dyt(dn2, a["x2"], "dyt2")
        dx, dy1, dalpha = scaled_residual_backward(dx2, a["y1"], p["alpha"][s], a["depth"], s + 1)
        g["alpha"][s] += dalpha
        dqkv, dtable = cope_backward(through_matmul(dy1, a["atty"], "attprojw"), a["attention"])
        g["cope"] += dtable
        dx = dx + through_dyt(through_matmul(dqkv, a["n1"], "qkvw"), a["x"], "dyt1")
    demb, dpos = embedding_backward(dx, tokens, cfg["vocab_size"], cfg["max_seq_len"])
    g["emb"] += demb
    if "pos" in g:
        g["pos"] += dpos
    return g


def trm_random_params(cfg, seed):
    """float32; gains, biases and scales are far enough from 1 and 0 to matter, tokens halt at different steps."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in trm_shapes(cfg).items():
        noise = rng.standard_normal(shape)
        if name in ("alpha", "beta") or name.endswith(("_a", "_g")):
            params[name] = 0.7 + 0.2 * noise
        elif name.endswith("_b"):
            params[name] = 0.2 * noise - (1 if name == "halt_b" else 0)
        elif name == "cope":
            params[name] = noise
        else:
            params[name] = noise / np.sqrt(shape[-1])
    return {name: x.astype(np.float32) for name, x in params.items()}
