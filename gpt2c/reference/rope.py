"""The oracle of kernels/rope.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64


@in_float64
def rope(x, rotations, pos, N, back=0):
    """The first N heads of x (B, T, heads, hs), at positions pos[b].., turned: rotations (S, 2, hs / 2) are cosines and sines.

    `back` turns by the opposite angles: that is the inverse, and the backward.
    """
    half = x.shape[-1] // 2
    at = np.reshape(pos, (-1, 1)) + np.arange(x.shape[1])
    cos, sin = rotations[at, 0][:, :, None], rotations[at, 1][:, :, None]  # (B or 1, T, 1, half) each
    sin = -sin if back else sin
    a, b = x[..., :half], x[..., half:]
    turned = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    turned[:, :, N:] = x[:, :, N:]
    return turned
