"""One training step of llama in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_llama.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's llama

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds. The head is tied;
there are no biases, no norms of queries and keys, and no scaled frequencies.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch_gpt2 import serve


def rope(x, cosines, sines):  # (B, heads, T, D): halves of a head turn together
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosines - b * sines, a * sines + b * cosines), dim=-1)


class Block(nn.Module):
    def __init__(self, channels, hidden, num_heads, num_kv_heads, head_dim, norm_eps):
        super().__init__()
        self.heads, self.head_dim = (num_heads, num_kv_heads, num_kv_heads), head_dim
        self.ln1, self.ln2 = nn.RMSNorm(channels, eps=norm_eps), nn.RMSNorm(channels, eps=norm_eps)
        self.qkv = nn.Linear(channels, sum(self.heads) * head_dim, bias=False)
        self.attproj = nn.Linear(num_heads * head_dim, channels, bias=False)
        self.gate, self.up = nn.Linear(channels, hidden, bias=False), nn.Linear(channels, hidden, bias=False)
        self.down = nn.Linear(hidden, channels, bias=False)

    def forward(self, x, rotations):  # (B, T, C)
        heads = self.qkv(self.ln1(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)  # (B, heads, T, D)
        grouped = len(q[0]) != len(k[0])
        attended = F.scaled_dot_product_attention(rope(q, *rotations), rope(k, *rotations), v, is_causal=True, enable_gqa=grouped)
        x = x + self.attproj(attended.transpose(1, 2).flatten(-2))
        h = self.ln2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, vocab_size, channels, num_layers, head_dim, max_seq_len, rope_theta, norm_eps, **fields):
        super().__init__()
        hidden, num_heads, num_kv_heads = (fields[name] for name in ("hidden", "num_heads", "num_kv_heads"))
        self.wte = nn.Embedding(vocab_size, channels)
        self.blocks = nn.ModuleList(
            Block(channels, hidden, num_heads, num_kv_heads, head_dim, norm_eps) for _ in range(num_layers)
        )
        self.lnf = nn.RMSNorm(channels, eps=norm_eps)
        nn.init.normal_(self.wte.weight, std=0.02)
        frequencies = rope_theta ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(max_seq_len)[:, None] * frequencies
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())

    def forward(self, tokens, targets):
        x, T = self.wte(tokens), tokens.shape[1]
        for block in self.blocks:
            x = block(x, (self.cosines[:T], self.sines[:T]))
        return F.cross_entropy(F.linear(self.lnf(x), self.wte.weight).flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    serve(Llama, *sys.argv[1:])
