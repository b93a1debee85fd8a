"""Cases of kernels/rope.c: B, T, heads, how many of them turn, half their width, the first row's first
position, and which way."""

import numpy as np

from cases.case import case, gamma, normal, single
from gpt2c import reference as ref

TURNED = [
    (0, 3, 2, 1, 4, 0), (1, 1, 1, 1, 1, 0), (2, 1, 3, 2, 3, 8), (1, 2, 1, 0, 3, 0), (2, 7, 5, 3, 5, 2), (1, 8, 2, 2, 8, 1),
    (1, 9, 4, 3, 7, 0), (3, 5, 1, 1, 16, 9), (1, 6, 3, 2, 15, 0), (1, 3, 2, 1, 17, 0), (1, 4, 5, 4, 31, 3), (2, 5, 4, 3, 32, 1),
    (1, 3, 3, 2, 33, 7), (1, 2, 2, 1, 64, 0),
]  # fmt: skip


@case(*TURNED, *[(*sizes, 1) for sizes in TURNED[1:6]], large=(2, 65, 12, 9, 33, 2))
def rope(rng, B, T, G, N, E, pos, back=0):
    """Each number is a sum of two products."""
    x, angles, pos = normal(rng, B, T, G, 2 * E), 3 * normal(rng, pos + T + 1, E), np.maximum(pos - np.arange(B), 0)
    rotations = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    a, b = np.split(abs(x.astype(float)), 2, axis=-1)
    cos, sin = abs(rotations[pos[:, None] + np.arange(T)].astype(float)).transpose(2, 0, 1, 3)[:, :, :, None]
    size = np.concatenate([a * cos + b * sin, a * sin + b * cos], axis=-1)
    size[:, :, N:] = 0
    args = x, single(rotations), pos.astype(np.int32), N, back
    return args, [(ref.rope(x, rotations, pos, N, back), gamma(3) * size)]
