"""From the last hidden state to logits and the cross-entropy."""

import math
from typing import NamedTuple

from gpt2c._core import Buffer
from gpt2c.engine.ops.matmul import linear, product
from gpt2c.engine.tape import Tape, Tensor


class Term(NamedTuple):
    """Something besides the cross-entropy: its value times its weight is part of the loss. Weight 0: only to be looked at."""

    value: Buffer  # (1,)
    weight: float = 0.0


class Output(NamedTuple):
    """What a model's forward returns."""

    loss: Buffer | None  # (1,), the cross-entropy
    logits: Buffer | None  # (B, T, columns); None where they never exist all at once
    terms: dict[str, Term] = {}
    losses: Buffer | None = None  # (B, T), of each target


def classifier(t: Tape, x: Tensor, w: Tensor, targets: Buffer | None, vocab_size: int) -> Output:
    """Logits x wᵀ and, where there are targets, the mean cross-entropy over those that are not -1.

    Only the first vocab_size columns count. The gradient of the logits takes their place, unless they are to be kept.
    In generation only the last position gets logits: (B, columns).
    """
    if t.context:
        return Output(None, linear(t, last_position(t, x), w, name="logits", few_rows=True).data)
    if t.pieces and targets is not None:
        return _classifier_in_pieces(t, x, w, targets, vocab_size)
    logits = linear(t, x, w, name="logits")
    if targets is None:
        return Output(None, logits.data)
    loss, count = t.buffer((1,), "loss"), t.buffer((1,), "count")
    losses, lse = t.buffer(targets.shape, "losses"), t.buffer(targets.shape, "lse")
    t.s.crossentropy_forward(losses, lse, logits.data, targets, vocab_size)
    t.s.count_targets(count, targets)
    t.s.mean_loss(loss, losses, count)

    def backward():
        if not t.keep:
            logits.gradient.is_in(logits.data)
        dlogits, _ = logits.sink()
        t.s.crossentropy_backward(dlogits, logits.data, lse, targets, count, t.weights, vocab_size, t.scale)

    t.on_backward(backward)
    return Output(loss, logits.data, losses=losses)


# Rows of logits that exist at a time. Their products reach full speed at a few hundred rows; the gradient of w is read
# and written once per piece, which at 1,024 rows of GPT-2's vocabulary costs 4 % of its product.
LOGIT_ROWS = 1024


def _classifier_in_pieces(t, x, w, targets, vocab_size):
    """The classifier where only the loss and its gradients are asked for: the logits never exist all at once.

    They can be the largest thing in memory. Each piece of at most LOGIT_ROWS rows gets its logits, their gradient and its
    backward products before the next piece. With a backward pass all of this happens there, the loss included.
    """
    loss, count = t.buffer((1,), "loss"), t.buffer((1,), "count")
    losses = t.buffer(targets.shape, "losses")
    R, C = math.prod(targets.shape), x.shape[-1]

    def piece(first, dx, add_x):
        last = min(first + LOGIT_ROWS, R)
        rows, some = x.data.rows(first, last, C), targets.rows(first, last)
        logits, lse = t.buffer((last - first, w.shape[0]), "logits"), t.buffer((last - first,), "lse")
        product(t, logits, rows, w)
        t.s.crossentropy_forward(losses.rows(first, last), lse, logits, some, vocab_size)
        if dx is not None:
            t.s.crossentropy_backward(logits, logits, lse, some, count, None, vocab_size, t.scale)
            for part, at in w.parts():
                t.s.matmul_backward_x(dx.rows(first, last, C), logits, part, at, add_x or at > 0)
            if not w.frozen:
                dw, add_w = w.sink()
                t.s.matmul_backward_w(dw, None, logits, rows, add_w)

    def run(with_gradients):
        t.s.count_targets(count, targets)
        dx, add_x = x.sink() if with_gradients else (None, 0)
        for first in range(0, R, LOGIT_ROWS):
            piece(first, dx, add_x)  # a function, so that its logits are gone before the next ones are there
        t.s.mean_loss(loss, losses, count)

    if not t.grad:
        run(with_gradients=False)
    else:
        t.on_backward(lambda: run(with_gradients=True))
    return Output(loss, None)


def last_position(t: Tape, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, C). It has no gradient: only generation asks for it."""
    out = t.new((x.shape[0], x.shape[2]), "last")
    t.s.last_position_forward(out.data, x.data)
    return out
