"""The oracles of kernels/activation.c."""

import math

import numpy as np

from gpt2c.reference.float64 import in_float64, sigmoid

# ---- gelu: x/2 (1 + tanh u) = x sigmoid(2u), u = √(2/π) (x + 0.044715 x³); far below zero 1 + tanh u cancels


@in_float64
def gelu_forward(x):
    return x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


@in_float64
def gelu_backward(dout, x):
    u2 = 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    du2 = 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return dout * (sigmoid(u2) + x * sigmoid(u2) * sigmoid(-u2) * du2)


# ---- gelu, the exact form: x Φ(x)


def normal_cdf(x):
    """erfc loses nothing in the lower tail."""
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(x)


@in_float64
def gelu_erf_forward(x):
    return x * normal_cdf(x)


@in_float64
def gelu_erf_backward(dout, x):
    return dout * (normal_cdf(x) + x * np.exp(-np.minimum(x**2 / 2, 700)) / np.sqrt(2 * np.pi))


# ---- squared relu: max(x, 0)²


@in_float64
def squared_relu_forward(x):
    return np.maximum(x, 0) ** 2


@in_float64
def squared_relu_backward(dout, x):
    return dout * 2 * np.maximum(x, 0)


# ---- swiglu: silu(a) b, silu(a) = a sigmoid(a)


@in_float64
def swiglu_forward(a, b):
    return a * sigmoid(a) * b


@in_float64
def swiglu_backward(dout, a, b):
    return dout * b * sigmoid(a) * (1 + a * sigmoid(-a)), dout * a * sigmoid(a)
