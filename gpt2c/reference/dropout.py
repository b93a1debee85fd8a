"""The oracle of kernels/dropout.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- dropout: the mask is a function of seed, counter, stream and index, in arithmetic modulo 2^64 and 2^32


def mix64(x):
    for _ in range(2):
        x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return x ^ x >> 32


def dropout_mask(R, seed, counter, stream, p):
    """(R) of 0 and 1."""
    key = mix64(mix64((seed << 32) + counter) ^ mix64(stream + 0x9E3779B97F4A7C15))
    mask = []
    for group in range(-(-R // 1024)):
        low, high = (part := mix64((key + group) % 2**64)) % 2**32, part >> 32
        x = (np.arange(1024, dtype=np.uint64) * 0x9E3779B9 + low) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ high ^ x >> 13) * 0xC2B2AE35 % 2**32
        mask.append((x ^ x >> 16) >> 8 >= int(p * 2**24))
    return np.concatenate([np.zeros(0, bool), *mask])[:R].astype(float)


@in_float64
def dropout_residual_forward(a, b, mask, p):
    return a + mask * b / (1 - p)


@in_float64
def dropout_residual_backward(dout, mask, p):
    return dout, mask * dout / (1 - p)
