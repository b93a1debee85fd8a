"""The oracles of kernels/elementwise.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- residual: out = a + scale b


@in_float64
def residual_forward(a, b, scale=1.0):
    return a + scale * b


@in_float64
def residual_backward(dout, scale=1.0):
    return dout, scale * dout


# ---- what moves numbers


def last_position_forward(x):
    return x[:, -1]  # (B, T, C) -> (B, C)


def gather(x, slot):
    return x[slot]


def scatter(x, rows, slot):
    x = x.copy()
    x[slot] = rows
    return x


def copy(x):
    return x


def zero(x):
    return np.zeros(x.shape)
