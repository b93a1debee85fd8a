"""The oracles of kernels/recursion.c."""

import numpy as np

from gpt2c.reference.float64 import in_float64, sigmoid

# ---- residual with a learned scale; rows whose depth is below step are left as they are


@in_float64
def scaled_residual_forward(x, y, scale, depth=None, step=1):
    part = 1 if depth is None else (depth >= step)[..., None]
    return x + scale * y * part


@in_float64
def scaled_residual_backward(dout, y, scale, depth=None, step=1):
    """-> dx, dy, dscale"""
    part = 1 if depth is None else (depth >= step)[..., None]
    return dout, scale * dout * part, (dout * y * part).sum()


# ---- adaptive depth: xs holds x (R, C) after each step, frozen where a row has halted


@in_float64
def halting_forward(xs, w, b, threshold):
    """-> mixed (R, C), and per step prob and weight (N, R), and depth, total (R)."""
    prob = np.stack([sigmoid(x @ w + b) for x in xs])
    R = len(xs[0])
    depth, total, weight = np.zeros(R, int), np.zeros(R), np.zeros(prob.shape)
    for r in range(R):
        for n in range(len(xs)):
            if n + 1 == len(xs) or total[r] + prob[n, r] >= threshold:
                weight[n, r], depth[r] = 1 - total[r], n + 1
                break
            weight[n, r] = prob[n, r]
            total[r] += prob[n, r]
    return np.einsum("nr,nrc->rc", weight, np.stack(xs)), prob, weight, depth, total


@in_float64
def halting_backward(dmixed, dtotal, xs, w, prob, weight, depth):
    """dtotal (R) is the gradient of the last total -> one dx per step, dw, db."""
    dxs, dw, db = [None] * len(xs), 0, 0
    for n in reversed(range(len(xs))):
        dxs[n], own_dw, own_db, dtotal = halting_step_backward(dmixed, dtotal, xs[n], w, prob[n], weight[n], depth, n + 1)
        dw, db = dw + own_dw, db + own_db
    return dxs, dw, db


@in_float64
def halting_step_backward(dmixed, dtotal, x, w, prob, weight, depth, step):
    """-> dx, dw, db of one step, and dtotal for the step before"""
    dweight = (dmixed * x).sum(-1)
    dtotal = dtotal - np.where(depth == step, dweight, 0)  # the weight of the halting step is 1 - total
    dlogit = np.where(depth > step, (dtotal + dweight) * prob * (1 - prob), 0)
    return weight[:, None] * dmixed + dlogit[:, None] * w, dlogit @ x, dlogit.sum(), dtotal


@in_float64
def ponder_forward(depth, total, targets):
    """-> ponder, mean depth, how many count"""
    counted = targets != -1
    count = max(counted.sum(), 1)
    ponder = np.where(counted, depth + 1 - total, 0).sum() / count
    return ponder, np.where(counted, depth, 0).sum() / count, counted.sum()


@in_float64
def ponder_backward(targets, weight):
    """-> dtotal, of weight * ponder"""
    counted = targets != -1
    return np.where(counted, -weight / max(counted.sum(), 1), 0)
