"""Cases of kernels/recursion.c: residuals with a scale, adaptive depth and its price."""

import numpy as np

from cases.case import ROWS, U, case, gamma, normal, single, unset
from gpt2c import reference as ref


@case(*ROWS, (5, 9, False), large=(64, 1031))
def scaled_residual_forward(rng, R, C, adaptive=True):
    x, y, scale = normal(rng, R, C), normal(rng, R, C), single([0.3])
    depth = rng.integers(1, 5, R).astype(np.float32) if adaptive else None
    exact = ref.scaled_residual_forward(x, y, scale, depth, 3)
    bound = gamma(2) * (abs(x) + abs(scale * y)) * (1 if depth is None else (depth >= 3)[:, None])  # else: exact
    return (unset(R, C), x, y, scale, depth, 3), [(exact, bound)]


@case(*ROWS, (5, 9, False), large=(64, 1031))
def scaled_residual_backward(rng, R, C, adaptive=True):
    y, scale, dout = normal(rng, R, C), single([0.3]), normal(rng, R, C)
    old = normal(rng, R, C), normal(rng, R, C), normal(rng, 1)
    depth = rng.integers(1, 5, R).astype(np.float32) if adaptive else None
    exact = ref.scaled_residual_backward(dout, y, scale, depth, 3)
    sizes = ref.scaled_residual_backward(abs(dout), abs(y), scale, depth, 3)
    roundings = 1, 2, R * C + 2
    expected = [(o + e, gamma(n) * (abs(o) + size)) for o, e, n, size in zip(old, exact, roundings, sizes)]
    return (*old, dout, y, scale, depth, 3), expected


def halting_inputs(rng, R, C, steps=4):
    """x after each step, w, b, and what the oracle makes of them; no row is near the threshold."""
    xs = [normal(rng, R, C) for _ in range(steps)]
    w, b = single(normal(rng, C) / np.sqrt(max(C, 1))), single([-0.7])
    mixed, prob, weight, depth, total = ref.halting_forward(xs, w, b, 0.9)
    assert abs(np.cumsum(prob, axis=0) - 0.9).min(initial=1) > 1e-5
    return xs, w, b, mixed, prob, weight, depth, total


def halting_state(prob, depth, step):
    """depth and total as they are before a step, from what they are after the last."""
    now = np.minimum(depth, step)
    return now, np.array([prob[: n - 1, r].sum() for r, n in enumerate(now)])


@case(*ROWS, (5, 9, 1), (5, 9, 4), large=(64, 1031))
def halting_forward(rng, R, C, step=2):
    xs, w, b, _, prob, weight, depth, _ = halting_inputs(rng, R, C)
    (before, total), (after, _), x = halting_state(prob, depth, step), halting_state(prob, depth, step + 1), xs[step - 1]
    prob, weight = prob[step - 1], weight[step - 1]
    off_p = 0.25 * gamma(C + 3) * (abs(x.astype(float)) @ abs(w) + 1) + 8 * U
    off_weight = (weight > 0) * (off_p + 4 * U)
    old = normal(rng, R, C)
    args = unset(R), unset(R), single(total), single(before), old, x, w, b, step, 4, 0.9
    if step == 1:  # what is there does not count
        args, old = (*args[:2], *(np.full_like(a, np.nan) for a in args[2:5]), *args[5:]), 0 * old
    new_total = single(total) + np.where(depth > step, prob, 0)
    bounds = off_p, off_weight, off_p + 2 * U, 0, off_weight[:, None] * abs(x) + gamma(2) * (abs(old) + abs(x))
    return args, zip((prob, weight, new_total, after, old + weight[:, None] * x), bounds)


@case(*ROWS, (5, 9, 1), (5, 9, 4), large=(64, 1031))
def halting_backward(rng, R, C, step=2):
    xs, w, b, _, prob, weight, depth, _ = halting_inputs(rng, R, C)
    old, dmixed, x = (normal(rng, R, C), normal(rng, C), normal(rng, 1)), normal(rng, R, C), xs[step - 1]
    dtotal = normal(rng, R)
    p = single(prob[step - 1]).astype(float)
    goes_on = depth > step
    share = single(weight[step - 1])
    size_dweight = (abs(dmixed.astype(float)) * abs(x)).sum(-1)
    size_d = np.where(goes_on, (abs(dtotal) + size_dweight) * p * (1 - p), 0)
    off_d = gamma(C + 6) * size_d + np.where(goes_on, 2 * U * p * (abs(dtotal) + size_dweight), 0)
    *exact, after = ref.halting_step_backward(dmixed, dtotal, x, w, p, share, depth, step)
    off = off_d[:, None] * abs(w), off_d @ abs(x), off_d.sum()
    sizes = abs(share[:, None] * dmixed) + size_d[:, None] * abs(w), size_d @ abs(x), size_d.sum()
    expected = [
        (o + e, far + gamma(n) * (abs(o) + size)) for o, e, far, n, size in zip(old, exact, off, (4, R + 2, R + 2), sizes)
    ]
    expected.append((after, gamma(C + 2) * (abs(dtotal) + size_dweight) * (depth == step)))
    args = *old, dtotal, dmixed, x, w, single(prob[step - 1]), share, single(depth), step
    return args, expected


@case((0,), (1,), (7,), (33, 33), large=(5003,))
def ponder_forward(rng, R, ignored=1):
    depth, total = rng.integers(1, 7, R).astype(np.float32), single(rng.random(R))
    targets = rng.integers(3, size=R, dtype=np.int32)
    targets[:ignored] = -1
    ponder, mean_depth, count = ref.ponder_forward(depth, total, targets)
    args = unset(1), unset(1), unset(1), depth, total, targets
    return args, [(ponder, gamma(2) * ponder), (mean_depth, gamma(2) * mean_depth), (count, 0)]


@case((0,), (1,), (7,), (33, 33), large=(5003,))
def ponder_backward(rng, R, ignored=1):
    targets = rng.integers(3, size=R, dtype=np.int32)
    targets[:ignored] = -1
    exact = ref.ponder_backward(targets, float(single(0.05)))
    return (unset(R), targets, single([(targets >= 0).sum()]), 0.05), [(exact, gamma(1) * abs(exact))]
