"""The oracles of kernels/optim.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- optimizer


@in_float64
def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, t, grad_scale=1.0):
    """Update number t (from 1) -> new p, m, v."""
    g = g * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return p - lr * (step + weight_decay * p), m, v


@in_float64
def sgd(p, g, m, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, first=False, grad_scale=1.0):
    """PyTorch's SGD -> new p, m; without momentum m is None."""
    d = g * grad_scale + weight_decay * p
    if m is None:
        return p - lr * d, None
    m = d if first else momentum * m + (1 - dampening) * d
    return p - lr * (d + momentum * m if nesterov else m), m


@in_float64
def global_norm(x):
    return np.sqrt((x**2).sum())


@in_float64
def add_scaled(y, x, a):
    return y + a * x


@in_float64
def clamp(x, limit):
    return np.clip(x, -limit, limit)
