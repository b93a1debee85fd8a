"""One training step of the minimal GRU in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_mingru.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's mingru

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds. The scan is
in log space, as PyTorch has it fastest (logcumsumexp).
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch_gpt2 import serve


def log_g(x):
    return torch.where(x >= 0, (F.relu(x) + 0.5).log(), -F.softplus(-x))


class Layer(nn.Module):
    def __init__(self, dim, inner, hidden):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.into, self.out = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)
        self.ff1, self.ff2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):  # (B, T, D), from a state of zeros
        candidate, gate = self.into(self.norm1(x)).chunk(2, dim=-1)
        decay = torch.cumsum(-F.softplus(gate), dim=1)
        h = torch.exp(decay + torch.logcumsumexp(log_g(candidate) - F.softplus(-gate) - decay, dim=1))
        x = x + self.out(h)
        return x + self.ff2(F.gelu(self.ff1(self.norm2(x))))


class MinGRU(nn.Module):
    def __init__(self, vocab_size, dim, depth, expansion, ff_mult):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, dim)
        self.layers = nn.Sequential(*(Layer(dim, int(dim * expansion), int(dim * ff_mult)) for _ in range(depth)))
        self.normf, self.head = nn.RMSNorm(dim, eps=1e-5), nn.Linear(dim, vocab_size, bias=False)

    def forward(self, tokens, targets):
        logits = self.head(self.normf(self.layers(self.emb(tokens))))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    serve(MinGRU, *sys.argv[1:])
