"""The oracle of kernels/embedding.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64

# ---- embedding: out[b, t] = wte[tokens[b, t]] + wpe[pos[b] + t]; pos may be one number for all b


def positions(tokens, pos):
    """(B, T)"""
    return np.reshape(pos, (-1, 1)) + np.arange(tokens.shape[1]) + np.zeros_like(tokens)


@in_float64
def embedding_forward(tokens, wte, wpe, pos=0):
    return wte[tokens] + wpe[positions(tokens, pos)]  # (B, T, C)


@in_float64
def embedding_backward(dout, tokens, V, S, pos=0):
    C = dout.shape[-1]
    dwte, dwpe = np.zeros((V, C)), np.zeros((S, C))
    np.add.at(dwte, tokens, dout)  # a token that occurs twice receives both gradients
    np.add.at(dwpe, positions(tokens, pos), dout)
    return dwte, dwpe
