"""Writes chargpt.npz beside it: the chargpt family in plain PyTorch, differentiated by autograd in float64.

Run with any PyTorch 2 on the CPU: `python tests/golden/make_chargpt_goldens.py`. The tests only read the file, which
has what make_gpt2_goldens.py describes; nothing is dropped.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from adamw_curve import adamw_curve

CONFIG = {"max_seq_len": 16, "vocab_size": 31, "num_layers": 2, "num_heads": 4, "channels": 36}
B, T, STEPS = 3, 13, 10


def parameters(cfg):
    """float32 numbers held in float64, large enough that every activation matters."""
    L, C, V = cfg["num_layers"], cfg["channels"], cfg["vocab_size"]
    shapes = {
        "wte": (V, C),
        "wpe": (cfg["max_seq_len"], C),
        "qkvw": (L, 3 * C, C),
        "attprojw": (L, C, C),
        "fcw": (L, 4 * C, C),
        "fcprojw": (L, C, 4 * C),
        "lm_head": (V, C),
    }
    return {name: (torch.randn(shape) / shape[-1] ** 0.5).double().requires_grad_() for name, shape in shapes.items()}


def normalised(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def forward(p, cfg, tokens, targets):
    x = p["wte"][tokens] + p["wpe"][: tokens.shape[1]]
    for l in range(cfg["num_layers"]):
        heads = (normalised(x) @ p["qkvw"][l].T).unflatten(-1, (3, cfg["num_heads"], -1))  # (B, T, 3, NH, hs)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, NH, T, hs)
        x = x + y.transpose(1, 2).flatten(2) @ p["attprojw"][l].T
        x = x + F.relu(normalised(x) @ p["fcw"][l].T).square() @ p["fcprojw"][l].T
    logits = x @ p["lm_head"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), logits


def single(tensor):
    return tensor.detach().numpy().astype(np.float32)


if __name__ == "__main__":
    torch.manual_seed(1337)
    p = parameters(CONFIG)
    tokens, targets = torch.randint(CONFIG["vocab_size"], (2, B, T))
    targets[0, 3] = targets[2, 12] = -1
    loss, logits = forward(p, CONFIG, tokens, targets)
    loss.backward()
    arrays = {
        **{f"cfg/{field}": size for field, size in CONFIG.items()},
        **{f"params/{name}": single(w) for name, w in p.items()},
        **{f"grads/{name}": single(w.grad) for name, w in p.items()},
        "tokens": tokens.numpy().astype(np.int32), "targets": targets.numpy().astype(np.int32),
        "loss": loss.item(), "logits": single(logits),
    }  # fmt: skip
    arrays["curve"] = adamw_curve(p.values(), lambda: forward(p, CONFIG, tokens, targets)[0], STEPS)
    np.savez_compressed(Path(__file__).parent / "chargpt.npz", **arrays)
