"""Cases of kernels/loss.c. Of cross-entropy: R, columns P of which V count, how large the logits are, how many targets are
ignored.
"""

import numpy as np

from cases.case import U, case, gamma, normal, single, unset
from gpt2c import reference as ref

LOGITS = [
    (0, 5, 5), (1, 1, 1), (3, 2, 1), (1, 3, 3), (5, 8, 3), (2, 5, 4), (7, 16, 8), (3, 17, 9), (2, 20, 15),
    (5, 16, 16), (4, 31, 17), (3, 64, 33), (5, 211, 199), (6, 33, 29, 1e4), (5, 9, 7, 1, 5),
    (9, 40, 37, 30, 2),
]  # fmt: skip


def crossentropy_inputs(rng, R, P, V, scale, ignored):
    logits, targets = scale * normal(rng, R, P), rng.integers(V, size=R, dtype=np.int32)
    logits[:, V:] = np.inf  # columns that only pad do not count
    targets[:ignored] = -1
    return logits, targets, ref.crossentropy_forward(logits, targets, V)


@case(*LOGITS, large=(101, 337, 331))
def crossentropy_forward(rng, R, P, V, scale=1, ignored=0):
    logits, targets, (losses, lse, _) = crossentropy_inputs(rng, R, P, V, scale, ignored)
    off = gamma(V + 9) * (1 + abs(logits[:, :V].astype(float)).max(-1, initial=0))
    args = unset(R), unset(R), logits, targets, V
    return args, [(losses, 2 * off * (targets >= 0)), (lse, off)]


@case(*LOGITS, (9, 40, 37, 30, 2, True), (4, 31, 17, 1, 0, True), (9, 40, 37, 1, 2, True, 3), large=(101, 337, 331))
def crossentropy_backward(rng, R, P, V, scale=1, ignored=0, weighted=False, factor=1):
    logits, targets, (_, lse, _) = crossentropy_inputs(rng, R, P, V, scale, ignored)
    count = (targets >= 0).sum()
    weights = normal(rng, R) if weighted else None
    exact = ref.crossentropy_backward(np.nan_to_num(logits), targets, V)
    hit = np.arange(P) == targets[:, None]
    p = exact * max(count, 1) + hit  # the probabilities; 0 in rows and columns that do not count
    off = U * (np.nan_to_num(abs(logits - lse[:, None])) + abs(lse[:, None])) + gamma(8)
    off = (p * off + gamma(3 + weighted) * hit) / max(count, 1)
    if weighted:
        off = (off + U * abs(exact)) * abs(weights[:, None])
        exact = ref.crossentropy_backward(np.nan_to_num(logits), targets, V, weights)
    exact, off = factor * exact, factor * off + U * abs(exact) * (factor != 1)
    args = unset(R, P), logits, single(lse), targets, single([count]), weights, V, factor
    return args, [(exact, off)]


@case((0,), (1,), (7,), (64,), large=(1001,))
def count_targets(rng, R):
    targets = rng.integers(-1, 3, size=R, dtype=np.int32)
    return (unset(1), targets), [(ref.count_targets(targets), 0)]


@case((0, 0), (1, 1), (5, 0), (7, 3), (64, 64), large=(1001, 900))
def mean_loss(rng, R, counted):
    losses = abs(normal(rng, R))
    losses[counted:] = 0
    exact = ref.mean_loss(losses, counted)
    return (unset(1), losses, single([counted])), [(exact, gamma(2) * exact)]
