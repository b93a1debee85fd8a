"""The oracles of kernels/loss.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- cross entropy of the softmax over the first V columns; the mean is over targets that are not -1


@in_float64
def crossentropy_forward(logits, targets, V):
    lse = np.logaddexp.reduce(logits[:, :V], axis=-1)  # (R)
    counted = targets != -1
    losses = np.where(counted, lse - logits[np.arange(len(targets)), targets], 0)
    return losses, lse, losses.sum() / max(counted.sum(), 1)


@in_float64
def crossentropy_backward(logits, targets, V, weights=None):
    """Of the mean loss, or of the mean of weights * losses."""
    counted = targets != -1
    dlogits = np.zeros_like(logits)
    dlogits[:, :V] = np.exp(logits[:, :V] - np.logaddexp.reduce(logits[:, :V], axis=-1, keepdims=True))
    dlogits[np.arange(len(targets)), targets] -= 1
    if weights is not None:
        dlogits *= weights[:, None]
    return np.where(counted[:, None], dlogits, 0) / max(counted.sum(), 1)


# ---- the mean's two parts, where the rows come in pieces


def count_targets(targets):
    return (targets != -1).sum()


@in_float64
def mean_loss(losses, count):
    return losses.sum() / max(count, 1)
