"""Cases of kernels/embedding.c."""

import numpy as np

from cases.case import case, gamma, normal, single, stored, unset
from gpt2c import _core
from gpt2c import reference as ref

STORED = [(2, 3, 256, positions, kind) for kind in _core.STORED for positions in (False, True)]


@case((0, 3, 5), (1, 1, 1), (2, 7, 3), (1, 5, 17), (3, 4, 65), (2, 7, 5, False), *STORED, large=(4, 32, 1801))
def embedding_forward(rng, B, T, C, positions=True, kind="f32"):
    V, S, pos = 37, T + 5, rng.integers(6, size=B, dtype=np.int32)
    tokens = rng.integers(V, size=(B, T), dtype=np.int32)
    (wte, numbers, _), wpe = stored(rng, kind, V, C), normal(rng, S, C)
    args = unset(B, T, C), tokens, wte, wpe if positions else None, pos
    numbers = single(numbers)  # which it is to the bit: the first of two roundings
    exact = ref.embedding_forward(tokens, numbers, wpe, pos) if positions else numbers[tokens]
    return args, [(single(exact), 0)]


@case((0, 3, 5), (1, 1, 1), (2, 7, 3), (1, 5, 17), (3, 4, 65), (2, 7, 5, False), large=(4, 32, 1801))
def embedding_backward(rng, B, T, C, positions=True):
    V, S, pos = 5, T + 5, rng.integers(6, size=B, dtype=np.int32)  # most tokens occur more than once
    tokens = rng.integers(V, size=(B, T), dtype=np.int32)
    dwte, dwpe, dout = normal(rng, V, C), normal(rng, S, C), normal(rng, B, T, C)
    exact = ref.embedding_backward(dout, tokens, V, S, pos)
    sizes = ref.embedding_backward(abs(dout), tokens, V, S, pos)
    args = dwte, dwpe if positions else None, dout, tokens, pos
    tables = (dwte, dwpe) if positions else (dwte,)
    return args, [(old + e, gamma(B * T) * (abs(old) + s)) for old, e, s in zip(tables, exact, sizes)]
