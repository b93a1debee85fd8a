"""Cases of kernels/scan.c. It cuts into stretches from LONG = 65536 steps on, where there are fewer than SIDE = 4 vectors of
recurrences.
"""

import numpy as np

from cases.case import ROWS, case, gamma, normal, single, unset
from gpt2c import reference as ref

SCANS = [
    (0, 3, 2), (1, 1, 1), (1, 2, 5), (2, 7, 16), (1, 5, 17), (3, 9, 33), (2, 4, 97), (5, 13, 3), (1, 511, 3), (3, 600, 2),
    (1, 65535, 5), (1, 65536, 5), (1, 65547, 16), (1, 65537, 19),
]  # fmt: skip


def scan_inputs(rng, B, T, I):
    a = single(rng.uniform(0, 1, (B, T, I)) ** 0.1)
    a[:, ::37] *= -1  # the recurrence is not for gates alone
    return a, normal(rng, B, T, I), normal(rng, B, I)


def steps_of(T):
    """Roundings behind a state after T steps, either form: two a step, and a stretch's product and sum."""
    return 4 * T + 40


@case(*SCANS, large=(2, 701, 133))
def scan_forward(rng, B, T, I):
    a, b, h0 = scan_inputs(rng, B, T, I)
    out, last = ref.scan_forward(a, b, h0)
    bound = gamma(steps_of(T)) * ref.scan_forward(abs(a), abs(b), abs(h0))[0]
    return (unset(B, T, I), unset(B, I), a, b, h0), [(out, bound), (last, bound[:, -1])]


@case(*SCANS, (2, 7, 3, False), large=(2, 701, 133))
def scan_backward(rng, B, T, I, continued=True):
    a, b, h0 = scan_inputs(rng, B, T, I)
    out, dout, dlast = single(ref.scan_forward(a, b, h0)[0]), normal(rng, B, T, I), normal(rng, B, I)
    if not continued:
        dlast = np.zeros_like(dlast)
    exact = ref.scan_backward(dout, dlast, a, out, h0)
    sizes = ref.scan_backward(abs(dout), abs(dlast), abs(a), abs(out), abs(h0))
    args = unset(B, T, I), unset(B, T, I), unset(B, I), dout, dlast if continued else None, a, out, h0
    return args, [(e, gamma(steps_of(T)) * s) for e, s in zip(exact, sizes)]


@case(*ROWS, large=(64, 1031))
def mingru_gates_forward(rng, R, I):
    x = 4 * normal(rng, R, 2 * I)
    a, b = ref.mingru_gates_forward(x)
    return (unset(R, I), unset(R, I), x), [(a, gamma(8) * a), (b, gamma(17) * b)]


@case(*ROWS, large=(64, 1031))
def mingru_gates_backward(rng, R, I):
    dx, da, db, x = normal(rng, R, 2 * I), normal(rng, R, I), normal(rng, R, I), 4 * normal(rng, R, 2 * I)
    exact = ref.mingru_gates_backward(da, db, x)
    size = ref.mingru_gates_backward(-abs(da), abs(db), x)
    return (dx, da, db, x), [(dx + exact, gamma(32) * size + gamma(2) * abs(dx))]


@case((0, 3, 2), (1, 1, 1), (2, 5, 3), (1, 33, 17), large=(2, 65, 31))
def mingru_log_forward(rng, B, T, I):
    x, h0 = 2 * normal(rng, B, T, 2 * I), abs(normal(rng, B, I))
    out = ref.mingru_log_forward(x, h0)
    return (unset(B, T, I), x, h0), [(out, gamma(1) * out + 1e-12)]
