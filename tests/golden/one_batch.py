"""What the makers of goldens share: a model's loss, logits and gradients on one batch, and its curve."""

from pathlib import Path

import numpy as np
import torch
from adamw_curve import adamw_curve


def write(name, model, cfg, by_name, B, T, ignored=0, steps=0):
    """Writes NAME.npz: cfg/*, params/*, grads/*, tokens, targets, loss, logits, metrics/* where the model has them, and with
    `steps` the curve of as many updates. model(tokens, targets) gives loss, logits and, where there are any, metrics by name;
    by_name(prefix, model, value) gives arrays under gpt2c's names. Some targets are `ignored`."""
    tokens, targets = torch.randint(cfg["vocab_size"], (2, B, T))
    targets.view(-1)[torch.randperm(B * T)[:ignored]] = -1
    loss, logits, *metrics = model(tokens, targets)
    loss.backward()
    metrics = {metric: value.item() for found in metrics for metric, value in found.items()}
    arrays = {
        **{f"cfg/{field}": value for field, value in cfg.items()},
        **by_name("params", model, lambda p: p),
        **by_name("grads", model, lambda p: p.grad),
        **{f"metrics/{metric}": value for metric, value in metrics.items()},
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "loss": loss.item(),
        "logits": logits.detach().numpy().astype(np.float32),
    }
    if steps:
        arrays["curve"] = adamw_curve(model.parameters(), lambda: model(tokens, targets)[0], steps)
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)
    print(name, {metric: round(value, 3) for metric, value in metrics.items()})
