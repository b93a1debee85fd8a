"""Cases of kernels/activation.c."""

import numpy as np

from cases.case import CASES, LENGTHS, U, case, gamma, normal, single, unset
from gpt2c import reference as ref


def gelu_argument(x):
    """2u"""
    x = x.astype(float)
    return 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def gelu_bound(x, exact):
    """4 + 2 |2u| units of 2^-23 of the value; where exp(-2u) leaves the range of float32, 0 is as good."""
    u2 = gelu_argument(x)
    return abs(exact) * np.where(u2 < -126 * np.log(2), 1, (4 + 2 * abs(u2)) * 2 * U)


@case(*LENGTHS, large=(30011,))
def gelu_forward(rng, R):
    x = 4 * normal(rng, R)
    exact = ref.gelu_forward(x)
    return (unset(R), x), [(exact, gelu_bound(x, exact))]


CASES["gelu_forward_scalar"] = CASES["gelu_forward"]


@case(*LENGTHS, large=(30011,))
def gelu_backward(rng, R):
    """exp(-2u) is as far off as in the forward; 1 - s by that times s (1 - s), and by the roundings of s."""
    dx, dout, x = normal(rng, R), normal(rng, R), 3 * normal(rng, R)
    u2 = gelu_argument(x)
    s, rest = ref.sigmoid(u2), ref.sigmoid(-u2)
    inner = abs(x) * 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x.astype(float) ** 2)
    off_s = s * (rest * (4 + 2 * abs(u2)) + 2) * 2 * U
    off_slope = off_s * (1 + rest * inner) + s * inner * off_s + gamma(8) * s * (1 + (rest + U) * inner)
    exact = ref.gelu_backward(dout, x)
    return (dx, dout, x), [(dx + exact, abs(dout) * off_slope + gamma(2) * (abs(dx) + abs(exact)))]


def gelu_erf_bound(x, exact):
    """6 + x²/4 units of 2^-23 of the value; where exp(-x²/2) leaves the range of float32, 0 is as good."""
    half_square = x.astype(float) ** 2 / 2
    small = (x < 0) & (half_square > 126 * np.log(2))
    return abs(exact) * np.where(small, 1, (6 + np.minimum(half_square / 2, 50) * (x < 0)) * 2 * U)


@case(*LENGTHS, large=(30011,))
def gelu_erf_forward(rng, R):
    x = 4 * normal(rng, R)
    exact = ref.gelu_erf_forward(x)
    return (unset(R), x), [(exact, gelu_erf_bound(x, exact))]


@case(*LENGTHS, large=(30011,))
def gelu_erf_backward(rng, R):
    """Φ is as far off as in the forward, φ by the rounding of x²/2 and exp's."""
    dx, dout, x = normal(rng, R), normal(rng, R), 3 * normal(rng, R)
    half_square = x.astype(float) ** 2 / 2
    off = gelu_erf_bound(x, ref.normal_cdf(x)) + gamma(8) * (
        ref.normal_cdf(x) + (1 + half_square) * abs(x) * np.exp(-half_square) / np.sqrt(2 * np.pi)
    )
    exact = ref.gelu_erf_backward(dout, x)
    return (dx, dout, x), [(dx + exact, abs(dout) * off + gamma(2) * (abs(dx) + abs(exact)))]


@case(*LENGTHS, large=(80021,))
def squared_relu_forward(rng, R):
    x = 4 * normal(rng, R)
    return (unset(R), x), [(single(ref.squared_relu_forward(x)), 0)]  # one rounding: exact


@case(*LENGTHS, large=(50021,))
def squared_relu_backward(rng, R):
    dx, dout, x = normal(rng, R), normal(rng, R), 4 * normal(rng, R)
    exact = ref.squared_relu_backward(dout, x)
    return (dx, dout, x), [(dx + exact, gamma(2) * (abs(dx) + abs(exact)))]


def swiglu_bound(a, exact):
    """6 units of 2^-23 of the value; where exp(-a) leaves the range of float32, 0 is as good."""
    return abs(exact) * np.where(a < -87, 1, 6 * 2 * U)


@case(*LENGTHS, large=(30011,))
def swiglu_forward(rng, R):
    a, b = 8 * normal(rng, R), normal(rng, R)
    exact = ref.swiglu_forward(a, b)
    return (unset(R), a, b), [(exact, swiglu_bound(a, exact))]


@case(*LENGTHS, large=(20011,))
def swiglu_backward(rng, R):
    """s is off by 4 units of its value; 1 - s by that times s and a rounding of 1."""
    da, db, dout, a, b = (normal(rng, R) for _ in range(5))
    a *= 4
    s, rest = ref.sigmoid(a.astype(float)), ref.sigmoid(-a.astype(float))
    off_slope = s * (8 * U * (1 + abs(a) * rest) + abs(a) * (8 * U * s + U)) + gamma(4) * s * (1 + abs(a) * rest)
    exact_a, exact_b = ref.swiglu_backward(dout, a, b)
    bound_a = abs(dout * b).astype(float) * (1 + gamma(1)) * off_slope + gamma(4) * (abs(da) + abs(exact_a))
    return (da, db, dout, a, b), [
        (da + exact_a, bound_a),
        (db + exact_b, swiglu_bound(a, exact_b) + gamma(2) * (abs(db) + abs(exact_b))),
    ]
