"""Writes the gpt2_*.npz files beside it: a GPT-2 in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_gpt2_goldens.py`. The tests only read the files.
Each file holds cfg/*, params/* (float32, exactly the numbers computed with), tokens, targets, loss, and, as
float32, logits and grads/*; `curve` is the loss before each of ten AdamW updates on that batch.
"""

import numpy as np
import one_batch
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        C, self.num_heads = cfg["channels"], cfg["num_heads"]
        self.ln1 = nn.LayerNorm(C)
        self.qkv = nn.Linear(C, 3 * C)
        self.attproj = nn.Linear(C, C)
        self.ln2 = nn.LayerNorm(C)
        self.fc = nn.Linear(C, 4 * C)
        self.fcproj = nn.Linear(4 * C, C)

    def forward(self, x):  # (B, T, C)
        heads = self.qkv(self.ln1(x)).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, NH, hs)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, NH, T, hs)
        x = x + self.attproj(y.transpose(1, 2).flatten(2))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.vocab_size = cfg["vocab_size"]
        self.wte = nn.Embedding(cfg["padded_vocab_size"], cfg["channels"])
        self.wpe = nn.Embedding(cfg["max_seq_len"], cfg["channels"])
        self.blocks = nn.Sequential(*(Block(cfg) for _ in range(cfg["num_layers"])))
        self.lnf = nn.LayerNorm(cfg["channels"])

    def forward(self, tokens, targets):  # (B, T)
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        logits = F.linear(self.lnf(self.blocks(x)), self.wte.weight)  # (B, T, Vp)
        rows = logits[..., : self.vocab_size].flatten(0, 1)  # the softmax leaves the padding out
        return F.cross_entropy(rows, targets.flatten(), ignore_index=-1), logits


@torch.no_grad()
def randomize(model):
    """Gains near 1, biases near 0, weights that keep variance; all are float32 numbers held in float64."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape)
        if name.endswith("bias"):
            values = 0.2 * noise
        elif p.ndim == 1:
            values = 1 + 0.2 * noise
        else:
            values = noise / p.shape[-1] ** 0.5
        p.copy_(values)
    model.wte.weight[model.vocab_size :] = 0


def by_name(prefix, model, value):
    """{prefix/name: float32 array}; blocks.l.qkv.weight goes to qkvw[l], wte.weight to wte."""
    layers = {}
    for key, p in model.named_parameters():
        module, kind = key.split(".")[-2:]
        name = module if module in ("wte", "wpe") else module + kind[0]
        layers.setdefault(name, []).append(value(p).detach().numpy().astype(np.float32))
    single = ("wte", "wpe", "lnfw", "lnfb")
    return {f"{prefix}/{name}": a[0] if name in single else np.stack(a) for name, a in layers.items()}


def make(name, cfg, B, T, ignored=0, steps=0):
    torch.manual_seed(1337)
    model = GPT2(cfg).double()
    randomize(model)
    one_batch.write(name, model, cfg, by_name, B, T, ignored, steps)


def config(max_seq_len, vocab_size, num_layers, num_heads, channels):
    return {
        "max_seq_len": max_seq_len,
        "vocab_size": vocab_size, "padded_vocab_size": -(-vocab_size // 128) * 128,
        "num_layers": num_layers, "num_heads": num_heads, "channels": channels,
    }  # fmt: skip


if __name__ == "__main__":
    make("gpt2_curve", config(16, 97, num_layers=2, num_heads=5, channels=60), B=3, T=7, steps=10)
    make("gpt2_one_token", config(1, 31, num_layers=3, num_heads=3, channels=15), B=5, T=1)
    make("gpt2_ignored", config(16, 50, num_layers=1, num_heads=1, channels=20), B=2, T=16, ignored=9)
