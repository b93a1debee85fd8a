"""Writes the llama_*.npz files beside it: Llama, Qwen2 and Qwen3 in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_llama_goldens.py`. The tests only read the files, whose
content is that of make_gpt2_goldens.py. The linear layers of q, k, v are apart, as in Hugging Face's files, and rotary
positions are cosines times x plus sines times x with its halves exchanged, as in its code.
"""

import math

import numpy as np
import one_batch
import torch
import torch.nn.functional as F
from torch import nn


def inverse_frequencies(cfg):
    D = cfg["head_dim"]
    f = cfg["rope_theta"] ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    form, _, numbers = cfg["rope_scaling"].partition(":")
    if form == "factors":
        return f / torch.tensor([float(word) for word in numbers.split(",")])
    if form == "llama3":
        factor, low, high, original = (float(word) for word in numbers.split(","))
        wavelength = 2 * math.pi / f
        smooth = (original / wavelength - low) / (high - low)
        between = (1 - smooth) * f / factor + smooth * f
        f = torch.where(wavelength > original / low, f / factor, torch.where(wavelength < original / high, f, between))
    return f


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C, D, self.H, self.K = cfg["channels"], cfg["head_dim"], cfg["num_heads"], cfg["num_kv_heads"]
        self.q, self.k, self.v = (nn.Linear(C, n * D, bias=cfg["qkv_bias"]) for n in (self.H, self.K, self.K))
        self.attproj = nn.Linear(self.H * D, C, bias=False)
        if cfg["qk_norm"]:
            self.qnorm, self.knorm = Norm(D, cfg["norm_eps"]), Norm(D, cfg["norm_eps"])
        self.qk_norm, self.f = cfg["qk_norm"], inverse_frequencies(cfg)

    def rope(self, x):  # (B, heads, T, D)
        angles = torch.arange(x.shape[2])[:, None] * torch.cat([self.f, self.f])
        a, b = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-b, a], dim=-1) * angles.sin()

    def forward(self, h):
        q, k, v = (linear(h).unflatten(-1, (n, -1)) for linear, n in ((self.q, self.H), (self.k, self.K), (self.v, self.K)))
        if self.qk_norm:
            q, k = self.qnorm(q), self.knorm(k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(self.H // self.K, dim=1) for x in (self.rope(k), v))
        y = F.scaled_dot_product_attention(self.rope(q), k, v, is_causal=True)
        return self.attproj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C, hidden = cfg["channels"], cfg["hidden"]
        self.ln1, self.ln2 = Norm(C, cfg["norm_eps"]), Norm(C, cfg["norm_eps"])
        self.attention = Attention(cfg)
        self.gate, self.up, self.down = (nn.Linear(*n, bias=False) for n in ((C, hidden), (C, hidden), (hidden, C)))

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        h = self.ln2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wte = nn.Embedding(cfg["vocab_size"], cfg["channels"])
        self.blocks = nn.Sequential(*(Block(cfg) for _ in range(cfg["num_layers"])))
        self.lnf = Norm(cfg["channels"], cfg["norm_eps"])
        self.lm_head = None if cfg["tied"] else nn.Linear(cfg["channels"], cfg["vocab_size"], bias=False)

    def forward(self, tokens, targets):  # (B, T)
        head = self.lm_head or self.wte
        logits = F.linear(self.lnf(self.blocks(self.wte(tokens))), head.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), logits


@torch.no_grad()
def randomize(model):
    """Gains near 1, biases near 0, weights that keep variance; all are float32 numbers held in float64."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, dtype=torch.float32).double()
        scale = 0.2 if p.ndim == 1 else float(np.float32(p.shape[-1] ** -0.5))
        p.copy_((noise * scale + (p.ndim == 1 and not name.endswith("bias"))).float())


def by_name(prefix, model, value):
    """{prefix/name: float32 array}: q, k and v are the rows of qkvw, and layers are stacked."""
    layers = {}
    for key, p in model.named_parameters():
        module, kind = key.split(".")[-2:]
        name = {"wte": "wte", "lm_head": "lm_head"}.get(module, module + kind[0])
        layers.setdefault(name, []).append(value(p).detach().numpy().astype(np.float32))
    for kind in "wb":
        if parts := [layers.pop(part + kind) for part in "qkv" if part + kind in layers]:
            layers[f"qkv{kind}"] = [np.concatenate(rows) for rows in zip(*parts)]
    single = ("wte", "lm_head", "lnfw")
    return {f"{prefix}/{name}": a[0] if name in single else np.stack(a) for name, a in layers.items()}


def make(name, cfg, B, T, ignored=0, steps=0):
    torch.manual_seed(1337)
    model = Llama(cfg).double()
    randomize(model)
    one_batch.write(name, model, cfg, by_name, B, T, ignored, steps)


def config(**fields):
    return {
        "vocab_size": 61, "channels": 24, "hidden": 40, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6,
        "max_seq_len": 32, "rope_theta": 10000.0, "rope_scaling": "", "norm_eps": 1e-5, "tied": True, "qkv_bias": False,
        "qk_norm": False, **fields,
    }  # fmt: skip


if __name__ == "__main__":
    make("llama_curve", config(), B=3, T=7, steps=10)
    make("llama_untied", config(num_heads=3, num_kv_heads=1, head_dim=8, tied=False), B=1, T=32, ignored=9)
    make("llama_scaled", config(rope_theta=100.0, rope_scaling="llama3:8.0,1.0,4.0,16.0", head_dim=12), B=2, T=32)
    make("llama_factors", config(rope_scaling="factors:1.0,2.5,8.0", num_kv_heads=4), B=2, T=9)
    make("llama_qwen2", config(rope_theta=1000000.0, norm_eps=1e-6, qkv_bias=True), B=2, T=17)
    make("llama_qwen3", config(rope_theta=1000000.0, norm_eps=1e-6, qk_norm=True, head_dim=10), B=2, T=17, ignored=5)
