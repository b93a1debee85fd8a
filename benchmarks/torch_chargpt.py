"""One training step of chargpt in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_chargpt.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's chargpt

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds.
"""

import sys

import torch.nn.functional as F
from torch import nn
from torch_gpt2 import serve


def normalised(x):
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


class Block(nn.Module):
    def __init__(self, channels, num_heads, dropout):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.attproj = nn.Linear(channels, channels, bias=False)
        self.fc = nn.Linear(channels, 4 * channels, bias=False)
        self.fcproj = nn.Linear(4 * channels, channels, bias=False)

    def forward(self, x):  # (B, T, C)
        q, k, v = self.qkv(normalised(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.attproj(attended.transpose(1, 2).flatten(-2)), self.dropout)
        return x + F.dropout(self.fcproj(F.relu(self.fc(normalised(x))).square()), self.dropout)


class CharGPT(nn.Module):
    def __init__(self, max_seq_len, vocab_size, num_layers, num_heads, channels, dropout):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, channels), nn.Embedding(max_seq_len, channels)
        self.blocks = nn.Sequential(*(Block(channels, num_heads, dropout) for _ in range(num_layers)))
        self.lm_head = nn.Linear(channels, vocab_size, bias=False)
        for p in self.parameters():
            nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        return F.cross_entropy(self.lm_head(self.blocks(x)).flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    serve(CharGPT, *sys.argv[1:])
