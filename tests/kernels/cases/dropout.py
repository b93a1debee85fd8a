"""Cases of kernels/dropout.c."""

import numpy as np

from cases.case import LENGTHS, case, gamma, normal, single, unset
from gpt2c import reference as ref

NOISE = np.array([1337, 5], np.int32)
DROPPED = [(n, 3, 0.1) for (n,) in LENGTHS] + [(1024, 0, 0.5), (1025, 1, 0.0), (2100, 7, 1.0), (3000, 2**40, 0.25)]


@case(*DROPPED, large=(80021, 4, 0.1))
def dropout_residual_forward(rng, R, stream, p):
    a, b, p = normal(rng, R), normal(rng, R), float(single(p))
    mask = ref.dropout_mask(R, *NOISE.tolist(), stream, p)
    out = ref.dropout_residual_forward(a, b, mask, p) if p < 1 else a
    return (unset(R), a, b, NOISE, stream, p), [(out, gamma(4) * (abs(a) + abs(out)))]


@case(*DROPPED, large=(50021, 4, 0.1))
def dropout_residual_backward(rng, R, stream, p):
    da, db, dout, p = normal(rng, R), normal(rng, R), normal(rng, R), float(single(p))
    mask = ref.dropout_mask(R, *NOISE.tolist(), stream, p)
    _, added = ref.dropout_residual_backward(dout, mask, p) if p < 1 else (dout, 0 * db)
    return (da, db, dout, NOISE, stream, p), [(da + dout, 0), (db + added, gamma(4) * (abs(db) + abs(added)))]
