"""One training step of GPT-2 in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_gpt2.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's GPT-2

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.attproj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.fc, self.fcproj = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):  # (B, T, C)
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attproj(attended.transpose(1, 2).flatten(-2))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, max_seq_len, vocab_size, padded_vocab_size, num_layers, num_heads, channels):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(padded_vocab_size, channels), nn.Embedding(max_seq_len, channels)
        self.blocks = nn.Sequential(*(Block(channels, num_heads) for _ in range(num_layers)))
        self.lnf = nn.LayerNorm(channels)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        logits = F.linear(self.lnf(self.blocks(x)), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def serve(family, mode, threads, config):
    """A step of the model family(**config) for each line of standard input."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    config = json.loads(config)
    B, T, vocab_size = config.pop("B"), config.pop("T"), config["vocab_size"]
    model = family(**config)
    loss_of = torch.compile(model) if "compile" in mode else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    tokens, targets = torch.randint(vocab_size, (2, B, T))
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode):
            loss = loss_of(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    serve(GPT2, *sys.argv[1:])
