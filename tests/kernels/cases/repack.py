"""Cases of kernels/repack.c."""

import numpy as np

from cases.case import as_stored, case, rows_of_blocks
from gpt2c import _core
from gpt2c import reference as ref

SIZES = [(1, 256, kind) for kind in _core.STORED] + [(N, 512, kind) for kind in _core.STORED for N in (15, 33)]


@case(*SIZES, (3, 96, "q8_0"), (17, 160, "q5_1"), (2, 7, "bf16"), large=(100, 4096, "q4_1"))
def repack(rng, N, C, kind):
    rows = rows_of_blocks(rng, kind, N, C)
    exact = ref.repack(kind, rows)
    assert exact.nbytes == _core.nbytes(kind, (N, C))
    w = as_stored(kind, (N, C), np.zeros_like(exact))
    return (w, rows), [(exact.view(np.float32).reshape(N, C) if kind == "f32" else exact.astype(int), 0)]
