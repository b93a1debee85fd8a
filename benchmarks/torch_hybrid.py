"""One training step of the hybrid in plain PyTorch: what `gpt2c bench --compare torch` takes turns with.

    python torch_hybrid.py MODE THREADS CONFIG      CONFIG: JSON with B, T and the fields of gpt2c's hybrid

MODE is eager, compile or bf16+compile. For each line of standard input it does a step and prints its seconds. A layer
carries its result, experts included, so the loop over time is Python's (compiling it takes very long); what does not wait
for the step before is done for all steps at once.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch_gpt2 import serve


class Layer(nn.Module):
    def __init__(self, first, width, hidden, num_experts, top_k):
        super().__init__()
        H, self.top_k, self.skip = hidden, min(top_k, num_experts - 1), 0.0 if first else 0.5
        self.in_norm, self.hid_norm, self.moe_norm = (nn.RMSNorm(n, 1e-6) for n in (width, H, H))
        self.inputs = nn.Linear(width, 3 * H)
        self.proj = nn.Linear(width, H, bias=False) if width != H else nn.Identity()
        self.gates, self.candidate = nn.Linear(H, 2 * H, bias=False), nn.Linear(H, H, bias=False)
        self.wk, self.wv, self.wo = (nn.Linear(H, H, bias=False) for _ in range(3))
        self.decay_first = nn.Linear(H, 2 * H, bias=False)
        self.time_decay, self.time_first = nn.Parameter(torch.full((H,), -0.6)), nn.Parameter(torch.full((H,), 0.4))
        self.mu = nn.Parameter(torch.full((3, 1, H), 0.5))
        self.expert_gu = nn.ModuleList(nn.Linear(H, 4 * H, bias=False) for _ in range(num_experts))
        self.expert_d = nn.ModuleList(nn.Linear(2 * H, H, bias=False) for _ in range(num_experts))
        self.router = nn.Linear(H, num_experts - 1, bias=False)

    def expert(self, j, n):
        g, u = self.expert_gu[j](n).chunk(2, -1)
        return self.expert_d[j](F.silu(g) * u)

    def experts(self, n):
        top, chosen = self.router(n).softmax(-1).topk(self.top_k, -1)
        out = self.expert(0, n)
        for j in range(1, len(self.expert_d)):
            rows, slot = (chosen == j - 1).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, top[rows, slot, None] * self.expert(j, n[rows]))
        return out / (1 + top.sum(-1, keepdim=True))

    def step(self, inputs, xr, state):
        h, num, den, last = state
        az, ar, ah = inputs.chunk(3, -1)
        hn = self.hid_norm(h)
        uz, ur = self.gates(hn).chunk(2, -1)
        z, r = torch.sigmoid(az + uz), torch.sigmoid(ar + ur)
        c = torch.tanh(ah + self.candidate(r * hn))
        shift_k, shift_v, shift_r = torch.lerp(last, c, self.mu)
        k, v = self.wk(shift_k).clamp(-10, 10), self.wv(shift_v)
        decay, first = torch.tanh(self.decay_first(c)).chunk(2, -1)
        w, u = self.time_decay + 0.5 * decay, self.time_first + 0.3 * first
        euk, ek, d = torch.exp(u + k), torch.exp(k), torch.exp(-torch.exp(w))
        wkv = (euk * v + num) / (euk + den + 1e-8)
        c2 = c + self.wo(torch.sigmoid(shift_r) * wkv)
        blend = torch.lerp(h, c2, z) + xr
        out = blend + self.experts(self.moe_norm(blend)) + self.skip * xr
        return out, d * num + ek * v, d * den + ek, c

    def forward(self, x):  # (B, T, width) -> (B, T, H)
        inputs, xr = self.inputs(self.in_norm(x)).unbind(1), self.proj(x).unbind(1)
        state = 4 * (torch.zeros(x.shape[0], self.candidate.in_features),)
        outs = []
        for i, skip in zip(inputs, xr):
            state = self.step(i, skip, state)
            outs.append(state[0])
        return torch.stack(outs, 1)


class Hybrid(nn.Module):
    def __init__(self, vocab_size, hidden, num_layers, embed, num_heads, num_experts, top_k, fast_mode, use_rwkv, carry):
        super().__init__()
        if fast_mode or not use_rwkv or carry != "layer" or num_experts == 1:
            raise SystemExit("torch_hybrid.py has experts, time mixing and carry=layer only")
        self.emb = nn.Embedding(vocab_size, embed)
        self.layers = nn.Sequential(
            *(Layer(l == 0, hidden if l else embed, hidden, num_experts, top_k) for l in range(num_layers))
        )
        self.out_norm, self.head = nn.RMSNorm(hidden, 1e-6), nn.Linear(hidden, vocab_size, bias=False)

    def forward(self, tokens, targets):
        logits = self.head(self.out_norm(self.layers(self.emb(tokens))))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


if __name__ == "__main__":
    serve(Hybrid, *sys.argv[1:])
