"""Writes the hybrid_*.npz files beside it: the hybrid in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_hybrid_goldens.py`. The tests only read the files.
Each file holds cfg/*, params/* (float32, exactly the numbers computed with), tokens, targets, loss, and, as float32, logits
and grads/*; `curve` is the loss before each of ten AdamW updates on that batch. windows_hybrid_*.npz are of windows.py.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from adamw_curve import adamw_curve
from windows import CHUNKS, windows


def shapes(cfg):
    V, H, L, E, N = (cfg[name] for name in ("vocab_size", "hidden", "num_layers", "embed", "num_experts"))
    yield "emb", (V, E)
    yield "in0_norm", (E,)
    for part in "zrh":
        yield f"in0_{part}", (H, E)
    if E != H:
        yield "in0_proj", (H, E)
    if L > 1:
        yield "in_norm", (L - 1, H)
        for part in "zrh":
            yield f"in_{part}", (L - 1, H, H)
    yield "hid_norm", (L, H)
    for part in "zrh":
        yield f"u{part}", (L, H, H)
    for part in "zrh":
        yield f"b{part}", (L, H)
    if cfg["use_rwkv"]:
        for name in ("wk", "wv", "wo", "wdecay", "wfirst"):
            yield name, (L, H, H)
        for name in ("time_decay", "time_first", "mu_k", "mu_v", "mu_r"):
            yield name, (L, H)
    if not cfg["fast_mode"]:
        yield "moe_norm", (L, H)
        yield "expert_g", (L, N, 2 * H, H)
        yield "expert_u", (L, N, 2 * H, H)
        yield "expert_d", (L, N, H, 2 * H)
        if N > 1:
            yield "router", (L, N - 1, H)
    yield "out_norm", (H,)
    yield "head", (V, H)


def random_params(cfg):
    """Gains near 1, mixing near 1/2, weights that keep variance; all are float32 numbers held in float64."""
    params = {}
    for name, shape in shapes(cfg):
        noise = torch.randn(shape)
        if name.endswith("norm"):
            noise = 1 + 0.2 * noise
        elif name.startswith("mu_"):
            noise = 0.5 + 0.2 * noise
        elif name == "time_decay":
            noise = 0.3 * noise - 0.7
        elif name in ("bz", "br", "bh", "time_first"):
            noise = 0.3 * noise
        else:
            noise = noise / shape[-1] ** 0.5
        params[name] = noise.double().requires_grad_()
    return params


def rms(x, gain):
    return F.rms_norm(x, x.shape[-1:], gain, 1e-6)


def experts_of_token(n, p, l, cfg):
    """One token's mixture, as one would explain it."""

    def expert(j):
        return p["expert_d"][l, j] @ (F.silu(p["expert_g"][l, j] @ n) * (p["expert_u"][l, j] @ n))

    if cfg["num_experts"] == 1:
        return expert(0)
    best, chosen = (p["router"][l] @ n).softmax(0).topk(min(cfg["top_k"], cfg["num_experts"] - 1))
    mixed = expert(0)
    for probability, j in zip(best, chosen.tolist()):
        mixed = mixed + probability * expert(j + 1)
    return mixed / (1 + best.sum())


def experts(x, p, l, cfg):
    rows = rms(x, p["moe_norm"][l]).flatten(0, -2)
    return torch.stack([experts_of_token(n, p, l, cfg) for n in rows]).view(x.shape)


def layer(xs, p, l, cfg, state=None):
    """A list of (B, width), one for each step -> a list of (B, H), the state."""

    def entry(part):
        return p[f"in0_{part}"] if l == 0 else p[f"in_{part}"][l - 1]

    zero = torch.zeros(xs[0].shape[0], cfg["hidden"], dtype=torch.float64)
    (h, num, den, last), outs = state or (zero, zero, zero, zero), []
    for x in xs:
        xn, hn = rms(x, entry("norm")), rms(h, p["hid_norm"][l])
        z = torch.sigmoid(F.linear(xn, entry("z"), p["bz"][l]) + F.linear(hn, p["uz"][l]))
        r = torch.sigmoid(F.linear(xn, entry("r"), p["br"][l]) + F.linear(hn, p["ur"][l]))
        c = c2 = torch.tanh(F.linear(xn, entry("h"), p["bh"][l]) + F.linear(r * hn, p["uh"][l]))
        if cfg["use_rwkv"]:
            shift_k, shift_v, shift_r = ((1 - p[mu][l]) * last + p[mu][l] * c for mu in ("mu_k", "mu_v", "mu_r"))
            k, v = F.linear(shift_k, p["wk"][l]).clamp(-10, 10), F.linear(shift_v, p["wv"][l])
            w = p["time_decay"][l] + 0.5 * torch.tanh(F.linear(c, p["wdecay"][l]))
            u = p["time_first"][l] + 0.3 * torch.tanh(F.linear(c, p["wfirst"][l]))
            wkv = (torch.exp(u + k) * v + num) / (torch.exp(u + k) + den + 1e-8)
            d = torch.exp(-torch.exp(w))
            num, den, last = d * num + k.exp() * v, d * den + k.exp(), c
            c2 = c + F.linear(torch.sigmoid(shift_r) * wkv, p["wo"][l])
        cell = (1 - z) * h + z * c2
        out = cell + (F.linear(x, p["in0_proj"]) if l == 0 and "in0_proj" in p else x)
        if not cfg["fast_mode"]:
            out = out + experts(out, p, l, cfg)
        if l > 0:
            out = out + 0.5 * x
        h = out if cfg["carry"] == "layer" else cell
        outs.append(out)
    return outs, (h, num, den, last)


def forward(p, cfg, tokens, targets):
    xs = list(p["emb"][tokens].unbind(1))
    for l in range(cfg["num_layers"]):
        xs, _ = layer(xs, p, l, cfg)
    logits = F.linear(rms(torch.stack(xs, 1), p["out_norm"]), p["head"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), logits


def numbers(tensors):
    return {name: p.detach().numpy().astype(np.float32) for name, p in tensors.items()}


def make(name, B=3, T=6, ignored=2, **fields):
    cfg = (
        dict(
            vocab_size=11, hidden=8, num_layers=2, embed=6, num_experts=4, top_k=1, fast_mode=False, use_rwkv=True, carry="layer"
        )
        | fields
    )
    torch.manual_seed(1337)
    params = random_params(cfg)
    tokens, targets = torch.randint(cfg["vocab_size"], (2, B, T))
    targets.view(-1)[torch.randperm(B * T)[:ignored]] = -1
    loss, logits = forward(params, cfg, tokens, targets)
    loss.backward()
    arrays = {
        **{f"cfg/{field}": value for field, value in cfg.items()},
        **{f"params/{key}": p for key, p in numbers(params).items()},
        **{f"grads/{key}": g for key, g in numbers({key: p.grad for key, p in params.items()}).items()},
        "tokens": tokens.numpy().astype(np.int32), "targets": targets.numpy().astype(np.int32),
        "loss": loss.item(), "logits": logits.detach().numpy().astype(np.float32),
    }  # fmt: skip
    arrays["curve"] = adamw_curve(params.values(), lambda: forward(params, cfg, tokens, targets)[0], 10)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)


def make_windows(name, B=2, T=2, **fields):
    cfg = (
        dict(vocab_size=7, hidden=5, num_layers=2, embed=4, num_experts=3, top_k=1, fast_mode=False, use_rwkv=True, carry="layer")
        | fields
    )
    torch.manual_seed(1337)
    params = random_params(cfg)
    tokens, targets = torch.randint(cfg["vocab_size"], (2, CHUNKS, B, T))
    start = tuple(torch.zeros(B, cfg["hidden"], dtype=torch.float64) for _ in range(4 * cfg["num_layers"]))

    def run(p, tokens, state):
        xs, after = list(p["emb"][tokens].unbind(1)), ()
        for l in range(cfg["num_layers"]):
            xs, left = layer(xs, p, l, cfg, state[4 * l : 4 * l + 4])
            after += left
        return F.linear(rms(torch.stack(xs, 1), p["out_norm"]), p["head"]), after

    arrays = {f"cfg/{field}": value for field, value in cfg.items()} | {f"params/{key}": p for key, p in numbers(params).items()}
    arrays |= {"tokens": tokens.numpy().astype(np.int32), "targets": targets.numpy().astype(np.int32)}
    arrays |= windows(params, run, tokens, targets, start)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)


if __name__ == "__main__":
    make_windows("windows_hybrid_layer")
    make_windows("windows_hybrid_cell", carry="cell", top_k=2)
    make("hybrid_layer")
    make("hybrid_cell", carry="cell", top_k=2)
    make("hybrid_one_layer", num_layers=1, num_experts=5, top_k=2, embed=8)
    make("hybrid_one_layer_cell", num_layers=1, num_experts=5, carry="cell")
    make("hybrid_one_expert", num_experts=1)
    make("hybrid_no_rwkv", use_rwkv=False, num_experts=5, top_k=2)
    make("hybrid_no_rwkv_cell", use_rwkv=False, carry="cell")
    make("hybrid_fast", fast_mode=True)
    make("hybrid_fast_cell", fast_mode=True, carry="cell", use_rwkv=False, num_layers=1)
