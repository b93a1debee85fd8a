"""Writes the mingru_*.npz files beside it: a minimal GRU in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_mingru_goldens.py`. The tests only read the files.
Each file holds cfg/*, params/* (float32, exactly the numbers computed with), tokens and targets (chunks, B, T), and of each
chunk, run one after the other with the state carried on: loss, logits, h (the state it leaves) and grads<window>/*, the
gradients of its loss through that many chunks, for every window up to the number of chunks. `curve` is the loss before
each of ten AdamW updates on the first chunk. windows_mingru.npz is of windows.py.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from adamw_curve import adamw_curve
from windows import CHUNKS, windows


def g(x):
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def rms(x, gain):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain


def forward(p, cfg, tokens, h):
    """tokens (B, T), h (L, B, I) -> logits (B, T, V), the new h."""
    x, left = p["emb"][tokens], []
    for l in range(cfg["depth"]):
        candidate, gate = (rms(x, p["norm1"][l]) @ p["inw"][l].T).chunk(2, dim=-1)
        z, hs, state = torch.sigmoid(gate), [], h[l]
        for t in range(tokens.shape[1]):
            state = (1 - z[:, t]) * state + z[:, t] * g(candidate[:, t])
            hs.append(state)
        left.append(state)
        x = x + torch.stack(hs, dim=1) @ p["outw"][l].T
        inner = F.gelu(rms(x, p["norm2"][l]) @ p["ff1w"][l].T + p["ff1b"][l])
        x = x + inner @ p["ff2w"][l].T + p["ff2b"][l]
    return rms(x, p["normf"]) @ p["head"].T, torch.stack(left)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def random_params(cfg):
    L, V, D = cfg["depth"], cfg["vocab_size"], cfg["dim"]
    I, H = int(D * cfg["expansion"]), int(D * cfg["ff_mult"])
    shapes = {
        "emb": (V, D),
        "norm1": (L, D),
        "inw": (L, 2 * I, D),
        "outw": (L, D, I),
        "norm2": (L, D),
        "ff1w": (L, H, D),
        "ff1b": (L, H),
        "ff2w": (L, D, H),
        "ff2b": (L, D),
        "normf": (D,),
        "head": (V, D),
    }
    params = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape)
        values = (
            1 + 0.2 * noise
            if name.startswith("norm")
            else 0.2 * noise
            if name.endswith("b")
            else noise
            if name == "emb"
            else noise / shape[-1] ** 0.5
        )
        params[name] = values.float().double().requires_grad_()
    return params


def make(name, cfg, B, T, chunks=1, ignored=0, steps=0):
    torch.manual_seed(1337)
    p = random_params(cfg)
    tokens, targets = torch.randint(cfg["vocab_size"], (2, chunks, B, T))
    targets.view(-1)[torch.randperm(targets.numel())[:ignored]] = -1
    arrays = {f"cfg/{field}": value for field, value in cfg.items()} | {
        f"params/{n}": a.detach().numpy().astype(np.float32) for n, a in p.items()
    }
    start = torch.zeros(cfg["depth"], B, int(cfg["dim"] * cfg["expansion"]), dtype=torch.float64)
    states = [start]
    loss, logits = [], []
    for chunk in range(chunks):
        out, h = forward(p, cfg, tokens[chunk], states[-1])
        states.append(h.detach())
        logits.append(out.detach().numpy())
        loss.append(loss_of(out, targets[chunk]).item())
        for window in range(1, chunks + 1):
            first = max(0, chunk + 1 - window)
            h = states[first]
            for earlier in range(first, chunk + 1):
                out, h = forward(p, cfg, tokens[earlier], h)
            for n, gradient in zip(p, torch.autograd.grad(loss_of(out, targets[chunk]), list(p.values()))):
                arrays.setdefault(f"grads{window}/{n}", []).append(gradient.numpy())
    arrays = {n: np.asarray(a, np.float32) if isinstance(a, list) else a for n, a in arrays.items()}
    arrays |= {
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "loss": loss,
        "logits": np.asarray(logits, np.float32),
        "h": torch.stack(states[1:]).numpy().astype(np.float32),
    }
    if steps:
        arrays["curve"] = adamw_curve(p.values(), lambda: loss_of(forward(p, cfg, tokens[0], start)[0], targets[0]), steps)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)


def make_windows(name, cfg, B, T):
    torch.manual_seed(1337)
    p = random_params(cfg)
    tokens, targets = torch.randint(cfg["vocab_size"], (2, CHUNKS, B, T))
    start = (torch.zeros(cfg["depth"], B, int(cfg["dim"] * cfg["expansion"]), dtype=torch.float64),)

    def run(params, tokens, state):
        logits, h = forward(params, cfg, tokens, state[0])
        return logits, (h,)

    arrays = {f"cfg/{field}": value for field, value in cfg.items()} | {
        f"params/{n}": a.detach().numpy().astype(np.float32) for n, a in p.items()
    }
    arrays |= {"tokens": tokens.numpy().astype(np.int32), "targets": targets.numpy().astype(np.int32)}
    arrays |= windows(p, run, tokens, targets, start)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)


if __name__ == "__main__":
    make_windows("windows_mingru", dict(vocab_size=13, dim=9, depth=2, expansion=1.5, ff_mult=2.0), B=2, T=3)
    make("mingru_curve", dict(vocab_size=31, dim=20, depth=2, expansion=1.5, ff_mult=2.0), B=3, T=7, chunks=3, steps=10)
    make("mingru_one_token", dict(vocab_size=11, dim=5, depth=1, expansion=1.2, ff_mult=1.0), B=2, T=1, chunks=2)
    make("mingru_ignored", dict(vocab_size=13, dim=9, depth=1, expansion=2.0, ff_mult=1.5), B=2, T=19, ignored=9)
