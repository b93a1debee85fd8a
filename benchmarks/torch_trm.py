"""One training step of the Tiny Recursive Model in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_trm.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's trm (not adaptive)

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch_gpt2 import serve


class DyT(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.g, self.b = (nn.Parameter(x) for x in (torch.ones(1), torch.ones(width), torch.zeros(width)))

    def forward(self, x):
        return torch.tanh(self.a * x) * self.g + self.b


class Attention(nn.Module):
    """With contextual positions; the table is read between its rows from all products of queries with it."""

    def __init__(self, channels, num_heads, max_pos):
        super().__init__()
        self.num_heads, self.max_pos, self.width = num_heads, max_pos, channels // num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.attproj = nn.Linear(channels, channels, bias=False)
        self.table = nn.Parameter(0.02 * torch.randn(num_heads, max_pos + 1, self.width))

    def forward(self, x, seen):  # (B, T, C), (T, T)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.width)).permute(2, 0, 3, 1, 4)
        r = q @ k.transpose(-1, -2)  # (B, H, T, T)
        p = (torch.sigmoid(r) * seen).flip(-1).cumsum(-1).flip(-1).clamp(max=self.max_pos)
        low = p.long()
        f = p - low
        z = q @ self.table.transpose(-1, -2)  # (B, H, T, max_pos + 1)
        read = (1 - f) * z.gather(-1, low) + f * z.gather(-1, (low + 1).clamp(max=self.max_pos))
        scores = (r * self.width**-0.5 + read).masked_fill(seen == 0, -torch.inf)
        return self.attproj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TRM(nn.Module):
    def __init__(self, vocab_size, channels, hidden, num_heads, max_seq_len, depth, cope_max_pos, **_):
        super().__init__()
        self.emb, self.pos = nn.Embedding(vocab_size, channels), nn.Embedding(max_seq_len, channels)
        self.dyt1, self.dyt2, self.dytf = DyT(channels), DyT(channels), DyT(channels)
        self.attention = Attention(channels, num_heads, cope_max_pos)
        self.ff12, self.ff3 = nn.Linear(channels, 2 * hidden, bias=False), nn.Linear(hidden, channels, bias=False)
        self.alpha, self.beta = (nn.Parameter(torch.full((depth,), 0.01)) for _ in range(2))
        self.head = nn.Linear(channels, vocab_size, bias=False)
        self.register_buffer("seen", torch.tril(torch.ones(max_seq_len, max_seq_len)))

    def forward(self, tokens, targets):
        T = tokens.shape[1]
        x = self.emb(tokens) + self.pos.weight[:T]
        for alpha, beta in zip(self.alpha, self.beta):
            x = x + alpha * self.attention(self.dyt1(x), self.seen[:T, :T])
            a, b = self.ff12(self.dyt2(x)).chunk(2, -1)
            x = x + beta * self.ff3(F.silu(a) * b)
        return F.cross_entropy(self.head(self.dytf(x)).flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    serve(TRM, *sys.argv[1:])
