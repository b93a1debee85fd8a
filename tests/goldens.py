"""The numbers of other programs in golden/, made by the scripts there."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


def golden(name):
    """A file of golden/ -> {cfg, params, grads and maybe metrics (dicts), tokens, targets, loss, logits and maybe curve}."""
    golden = {"cfg": {}, "params": {}, "grads": {}, "metrics": {}}
    with np.load(FOLDER / f"{name}.npz") as file:
        for key in file:
            group, _, entry = key.rpartition("/")
            if group:
                golden.setdefault(group, {})[entry] = file[key].item() if file[key].ndim == 0 else file[key]
            else:
                golden[key] = file[key]
    return golden


def names(beginning):
    """The goldens whose names begin so."""
    return sorted(path.stem for path in FOLDER.glob(f"{beginning}*.npz"))


def assert_curve(model, golden):
    """Ten AdamW updates on the batch have PyTorch's losses."""
    losses = []
    for t in range(1, 11):
        losses.append(model.loss_and_grad(golden["tokens"], golden["targets"]))
        model.update(lr=1e-3, weight_decay=0.01, t=t)
    np.testing.assert_allclose(losses, golden["curve"], rtol=1e-4)
