"""Writes the trm_*.npz files beside it: a Tiny Recursive Model in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_trm_goldens.py`. The tests only read the files.
Each file holds cfg/*, params/* (float32, exactly the numbers computed with), tokens, targets, loss, metrics/*, and, as
float32, logits and grads/*; `curve` is the loss before each of ten AdamW updates on that batch.
"""

import numpy as np
import one_batch
import torch
import torch.nn.functional as F
from torch import nn


class DyT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.g, self.b = (nn.Parameter(torch.empty(n)) for n in (1, width, width))

    def forward(self, x):
        return self.g * torch.tanh(self.a * x) + self.b


class Attention(nn.Module):
    """Contextual positions as the paper's listing has them: gates, their sum from the right, the table read between rows."""

    def __init__(self, channels, num_heads, max_pos):
        super().__init__()
        self.num_heads, self.max_pos = num_heads, max_pos
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.attproj = nn.Linear(channels, channels, bias=False)
        self.cope = nn.Parameter(torch.empty(num_heads, max_pos + 1, channels // num_heads))

    def forward(self, x):  # (B, T, C)
        T, hs = x.shape[1], x.shape[2] // self.num_heads
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, hs)).permute(2, 0, 3, 1, 4)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        logits = (q @ k.transpose(-1, -2)).masked_fill(future, -torch.inf)  # (B, NH, T, T)
        positions = torch.sigmoid(logits).flip(-1).cumsum(-1).flip(-1).clamp(max=self.max_pos)
        low, high = positions.floor().long(), positions.ceil().long()
        table = q @ self.cope.transpose(-1, -2)  # (B, NH, T, max_pos + 1)
        part = positions - low
        read = table.gather(-1, high) * part + table.gather(-1, low) * (1 - part)
        att = torch.softmax(logits / hs**0.5 + read, dim=-1)
        return self.attproj((att @ v).transpose(1, 2).flatten(2))


class TRM(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, C, H = cfg, cfg["channels"], cfg["hidden"]
        self.steps = cfg["max_depth"] if cfg["adaptive"] else cfg["depth"]
        self.emb = nn.Embedding(cfg["vocab_size"], C)
        if cfg["pos_emb"] == "learned":
            self.pos = nn.Embedding(cfg["max_seq_len"], C)
        self.dyt1, self.dyt2, self.dytf = DyT(C), DyT(C), DyT(C)
        self.attention = Attention(C, cfg["num_heads"], cfg["cope_max_pos"])
        self.ff1, self.ff2 = nn.Linear(C, H, bias=False), nn.Linear(C, H, bias=False)
        self.ff3 = nn.Linear(H, C, bias=False)
        self.alpha, self.beta = (nn.Parameter(torch.empty(self.steps)) for _ in range(2))
        self.head = nn.Linear(C, cfg["vocab_size"], bias=False)
        if cfg["adaptive"]:
            self.halt = nn.Linear(C, 1)

    def block(self, x, s):
        x = x + self.alpha[s] * self.attention(self.dyt1(x))
        h = self.dyt2(x)
        return x + self.beta[s] * self.ff3(F.silu(self.ff1(h)) * self.ff2(h))

    def adapt(self, x):
        """-> the mixture, N and R of every token; N is no function of the parameters."""
        B, T, _ = x.shape
        running, total, N = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T), torch.zeros(B, T)
        mixed = torch.zeros_like(x)
        for s in range(self.steps):
            x = torch.where(running[..., None], self.block(x, s), x)
            p = torch.sigmoid(self.halt(x))[..., 0]
            N = N + running
            stops = running & ((total + p >= self.cfg["halt_threshold"]) | torch.tensor(s + 1 == self.steps))
            goes_on = running & ~stops
            weight = torch.where(stops, 1 - total, torch.where(goes_on, p, 0.0))
            mixed = mixed + weight[..., None] * x
            total = total + torch.where(goes_on, p, 0.0)
            running = goes_on
        return mixed, N, 1 - total

    def forward(self, tokens, targets):  # (B, T)
        x = self.emb(tokens)
        if self.cfg["pos_emb"] == "learned":
            x = x + self.pos.weight[: tokens.shape[1]]
        metrics = {}
        if self.cfg["adaptive"]:
            x, N, R = self.adapt(x)
            counted = targets != -1
            metrics = {"ponder": (N + R)[counted].mean(), "mean_depth": N[counted].mean()}
        else:
            for s in range(self.steps):
                x = self.block(x, s)
        logits = self.head(self.dytf(x))
        metrics["cross_entropy"] = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        loss = metrics["cross_entropy"] + self.cfg["ponder_weight"] * metrics.get("ponder", 0.0)
        return loss, logits, metrics


RENAMED = {"attention.cope": "cope", "attention.qkv.weight": "qkvw", "attention.attproj.weight": "attprojw",
           "ff1.weight": "ffw1", "ff2.weight": "ffw2", "ff3.weight": "ffw3", "halt.weight": "halt_w", "halt.bias": "halt_b",
           "emb.weight": "emb", "pos.weight": "pos", "head.weight": "head"}  # fmt: skip


def name_of(key):
    return RENAMED.get(key, key.replace(".", "_"))


@torch.no_grad()
def randomize(model):
    """Gains and scales near 0.7, weights that keep variance; all are float32 numbers held in float64."""
    for key, p in model.named_parameters():
        name, noise = name_of(key), torch.randn(p.shape, dtype=torch.float32)
        if name in ("alpha", "beta") or name.endswith(("_a", "_g")):
            noise = 0.7 + 0.2 * noise
        elif name.endswith("_b"):
            noise = 0.2 * noise - float(name == "halt_b")
        elif name != "cope":
            noise = noise / p.shape[-1] ** 0.5
        p.copy_(noise)


def by_name(prefix, model, value):
    """{prefix/name: float32 array}, in the order of the parameters' names in gpt2c."""
    arrays = {name_of(key): value(p).detach().numpy().astype(np.float32) for key, p in model.named_parameters()}
    if "halt_w" in arrays:
        arrays["halt_w"] = arrays["halt_w"][0]
    return {f"{prefix}/{name}": a for name, a in arrays.items()}


def make(name, cfg, B, T, ignored=0, steps=0):
    torch.manual_seed(1337)
    torch.set_default_dtype(torch.float64)
    model = TRM(cfg)
    randomize(model)
    one_batch.write(name, model, cfg, by_name, B, T, ignored, steps)


def config(**changes):
    return {
        "vocab_size": 31, "channels": 24, "hidden": 40, "num_heads": 3, "max_seq_len": 24, "depth": 3, "cope_max_pos": 5,
        "pos_emb": "learned", "adaptive": False, "max_depth": 6, "halt_threshold": 0.95, "ponder_weight": 0.05,
    } | changes  # fmt: skip


if __name__ == "__main__":
    make("trm_one_step", config(depth=1, pos_emb="none"), B=2, T=17, ignored=5)
    make("trm_curve", config(), B=3, T=19, steps=10)
    make("trm_adaptive", config(adaptive=True), B=3, T=19, ignored=9, steps=10)
    make("trm_adaptive_none", config(adaptive=True, pos_emb="none", max_depth=4, halt_threshold=0.7, cope_max_pos=64), B=2, T=24)
