"""The oracles of kernels/scan.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64, sigmoid

# ---- scan: out_t = a_t out_{t-1} + b_t from out_{-1} = h0; its last state goes on


@in_float64
def scan_forward(a, b, h0):
    out = np.empty_like(a)  # (B, T, I)
    h = h0  # (B, I)
    for t in range(a.shape[1]):
        out[:, t] = h = a[:, t] * h + b[:, t]
    return out, h


@in_float64
def scan_backward(dout, dlast, a, out, h0):
    """-> da, db, dh0; dlast is the gradient of the last state."""
    da, db = np.empty_like(a), np.empty_like(a)
    d = dlast
    for t in reversed(range(a.shape[1])):
        d = d + dout[:, t]
        da[:, t], db[:, t] = d * (out[:, t - 1] if t else h0), d
        d = a[:, t] * d
    return da, db, d


# ---- the minimal GRU's gates: x = c | gate, z = sigmoid(gate), g(c) = c + 1/2 or sigmoid(c), a = 1 - z, b = z g(c)


def mingru_candidate(c):
    return np.where(c >= 0, c + 0.5, sigmoid(c))


@in_float64
def mingru_gates_forward(x):
    c, gate = np.split(x, 2, axis=-1)
    return sigmoid(-gate), sigmoid(gate) * mingru_candidate(c)


@in_float64
def mingru_gates_backward(da, db, x):
    c, gate = np.split(x, 2, axis=-1)
    slope = np.where(c >= 0, 1, sigmoid(c) * sigmoid(-c))
    z = sigmoid(gate)
    return np.concatenate([db * z * slope, (db * mingru_candidate(c) - da) * z * sigmoid(-gate)], axis=-1)


@in_float64
def mingru_log_forward(x, h0):
    """Gates and scan in one: log out_t = A_t + log(h0 + sum_s exp(log b_s - A_s)), A_t the sum of log a_s."""
    c, gate = np.split(x, 2, axis=-1)
    log_a, log_z = -np.logaddexp(0, gate), -np.logaddexp(0, -gate)
    log_g = np.where(c >= 0, np.log(np.maximum(c, 0) + 0.5), -np.logaddexp(0, -c))
    A = np.cumsum(log_a, axis=1)
    terms = np.concatenate([np.log(np.maximum(h0, 1e-10))[:, None], log_z + log_g - A], axis=1)
    return np.exp(A + np.logaddexp.accumulate(terms, axis=1)[:, 1:])
