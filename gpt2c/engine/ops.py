"""The differentiable operations: one function each, forward and backward in one scope.

Each takes the tape first, calls its forward kernel, and leaves a closure with its backward kernel. Formulas and shapes
are in kernels/gpt2c.h under the kernels' names. The first backward kernel to reach a tensor stores its gradient and the
others add, so a tensor used twice gets both.
"""

import math
from typing import NamedTuple

from gpt2c._core import Buffer


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


def embedding(t, tokens, wte, wpe=None, *, name):
    """Token plus, with a table for it, position embedding: (B, T) -> (B, T, C)."""
    out = t.new((*tokens.shape, wte.shape[1]), name)
    t.s.embedding_forward(out.data, tokens, wte.data, wpe and wpe.data, t.position)
    t.on_backward(lambda: t.s.embedding_backward(wte.grad, wpe and wpe.grad, out.grad, tokens, t.position))
    return out


def layernorm(t, x, w, b, *, name):
    out = t.new(x.shape, name)
    mean, rstd = t.buffer(x.shape[:-1], f"{name}_mean"), t.buffer(x.shape[:-1], f"{name}_rstd")

    def forward(out):
        t.s.layernorm_forward(out, mean, rstd, x.data, w.data, b.data)

    def backward():
        dx, add = x.sink()
        t.s.layernorm_backward(dx, w.grad, b.grad, out.grad, x.data, w.data, mean, rstd, add)

    forward(out.data)
    out.remade_by(forward)
    t.on_backward(backward)
    return out


def rmsnorm(t, x, w=None, *, eps=1e-5, name):
    """With gains w, or without."""
    out = t.new(x.shape, name)
    rstd = t.buffer(x.shape[:-1], f"{name}_rstd")

    def forward(out):
        t.s.rmsnorm_forward(out, rstd, x.data, w and w.data, eps)

    def backward():
        dx, add = x.sink()
        t.s.rmsnorm_backward(dx, w and w.grad, out.grad, x.data, w and w.data, rstd, add)

    forward(out.data)
    out.remade_by(forward)
    t.on_backward(backward)
    return out


def linear(t, x, w, b=None, *, name):
    """x wᵀ + b: (..., C) -> (..., N) with w (N, C)."""
    out = t.new((*x.shape[:-1], w.shape[0]), name)
    t.s.matmul_forward(out.data, x.data, w.data, b and b.data)
    flow = out.gradient  # out itself is not held: what only adds it to something has no use for its value later

    def backward():
        dx, add = x.sink()
        t.s.matmul_backward_x(dx, flow.read(), w.data, add)
        dw, add = w.sink()
        t.s.matmul_backward_w(dw, b and b.sink()[0], flow.read(), x.data, add)

    x.forget()
    t.on_backward(backward)
    return out


def attention(t, qkv, num_heads, *, name):
    """Causal self-attention over num_heads heads: (B, T, 3C) -> (B, T, C).

    Tiled while training. Materialised where everything is kept: `preatt` and `att` are then there to look at. Where
    the tape has caches: against the keys and values cached so far.
    """
    B, T, C = *qkv.shape[:2], qkv.shape[2] // 3
    out = t.new((B, T, C), f"{name}.atty")
    if t.caches is not None:
        k, v = (t.caches(f"{name}.{part}", (B, t.context, C)) for part in ("keys", "values"))
        t.s.attention_cached_forward(out.data, k, v, qkv.data, t.position, num_heads)
        return out
    if t.keep:
        preatt, att = (t.buffer((B, num_heads, T, T), f"{name}.{part}") for part in ("preatt", "att"))
        t.s.attention_materialised_forward(out.data, preatt, att, qkv.data)
    else:
        lse = t.buffer((B, num_heads, T), f"{name}.lse")
        t.s.attention_forward(out.data, lse, qkv.data)

    def backward():
        dqkv, add = qkv.sink()
        if t.keep:
            t.s.attention_materialised_backward(dqkv, out.grad, qkv.data, att, add)
        else:
            t.s.attention_backward(dqkv, out.grad, qkv.data, out.data, lse, add)

    t.on_backward(backward)
    return out


def gelu(t, x, *, name):
    """The tanh form."""
    return _activation(t, x, t.s.gelu_forward, t.s.gelu_backward, name)


def gelu_erf(t, x, *, name):
    """The exact form."""
    return _activation(t, x, t.s.gelu_erf_forward, t.s.gelu_erf_backward, name)


def squared_relu(t, x, *, name):
    return _activation(t, x, t.s.squared_relu_forward, t.s.squared_relu_backward, name)


def _activation(t, x, kernel_forward, kernel_backward, name):
    out = t.new(x.shape, name)

    def forward(out):
        kernel_forward(out, x.data)

    def backward():
        dx, add = x.sink()
        kernel_backward(dx, out.grad, x.data, add)

    forward(out.data)
    out.remade_by(forward)
    t.on_backward(backward)
    return out


def swiglu(t, a, b, *, name):
    """silu(a) b."""
    out = t.new(a.shape, name)

    def forward(out):
        t.s.swiglu_forward(out, a.data, b.data)

    def backward():
        (da, add_a), (db, add_b) = a.sink(), b.sink()
        t.s.swiglu_backward(da, db, out.grad, a.data, b.data, add_a, add_b)

    forward(out.data)
    out.remade_by(forward)
    t.on_backward(backward)
    return out


def residual(t, a, b, *, scale=1.0, dropout=0.0, stream=0, name):
    """a + scale b; while training, elements of b are dropped with probability `dropout`. Each place where a model does so has
    a `stream` of masks of its own."""
    out = t.new(a.shape, name)
    dropping = t.noise is not None and dropout > 0
    if dropping:
        t.s.dropout_residual_forward(out.data, a.data, b.data, t.noise, stream, dropout)
    else:
        t.s.residual_forward(out.data, a.data, b.data, scale)
    flow, a_flow, b_flow = out.gradient, a.gradient, b.gradient

    def backward():
        (da, add_a), (db, add_b) = a_flow.sink(), b_flow.sink()
        if dropping:
            t.s.dropout_residual_backward(da, db, flow.read(), t.noise, stream, dropout, add_a, add_b)
        else:
            t.s.residual_backward(da, db, flow.read(), add_a, add_b, scale)

    t.on_backward(backward)
    return out


def mingru(t, x, h0, *, name):
    """The minimal GRU's recurrence: x (B, T, 2I), candidate and gate, from the state h0 (B, I) -> (h (B, T, I), last).

    `last` is the state after the last step; what flows back into it goes on to h0, which nothing else may use.
    """
    B, T, I = *x.shape[:2], x.shape[2] // 2
    h, last = t.new((B, T, I), name), t.new((B, I), f"{name}_last")
    a, b = (t.buffer((B, T, I), f"{name}_{part}") for part in "ab")
    t.s.mingru_gates_forward(a, b, x.data)
    t.s.scan_forward(h.data, last.data, a, b, h0.data)

    def backward():
        da, db = (t.buffer((B, T, I), f"d{name}_{part}") for part in "ab")
        dh0 = t.buffer((B, I), f"d{h0.name}")
        h0.gradient.is_in(dh0)
        t.s.scan_backward(da, db, dh0, h.grad, last.grad if last.gradient.written else None, a, h.data, h0.data)
        dx, add = x.sink()
        t.s.mingru_gates_backward(dx, da, db, x.data, add)

    t.on_backward(backward)
    return h, last


def classifier(t, x, w, targets, vocab_size):
    """Logits x wᵀ and, where there are targets, the mean cross-entropy over those that are not -1.

    Only the first vocab_size columns count. The gradient of the logits takes their place, unless they are to be kept.
    While decoding, only the last position gets logits.
    """
    if t.context:
        x = last_position(t, x)
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
        t.s.crossentropy_backward(dlogits, logits.data, lse, targets, count, t.weights, vocab_size)

    if t.own_loss:
        t.on_backward(backward)
    return Output(loss, logits.data, losses=losses)


# Rows of logits that exist at a time. Their products reach full speed at a few hundred rows; the gradient of w is read
# and written once per piece, which at 1,024 rows of GPT-2's vocabulary costs 4 % of its product.
PIECE = 1024


def _classifier_in_pieces(t, x, w, targets, vocab_size):
    """The classifier where only the loss and its gradients are asked for: the logits never exist all at once.

    They can be the largest thing in memory. Each piece of at most PIECE rows gets its logits, their gradient and what
    flows back from it before the next piece. With a backward pass all of this happens there, the loss included.
    """
    loss, count = t.buffer((1,), "loss"), t.buffer((1,), "count")
    losses = t.buffer(targets.shape, "losses")
    R, C = math.prod(targets.shape), x.shape[-1]

    def piece(first, dx, add_x):
        last = min(first + PIECE, R)
        rows, some = x.data.rows(first, last, C), targets.rows(first, last)
        logits, lse = t.buffer((last - first, w.shape[0]), "logits"), t.buffer((last - first,), "lse")
        t.s.matmul_forward(logits, rows, w.data, None)
        t.s.crossentropy_forward(losses.rows(first, last), lse, logits, some, vocab_size)
        if dx is not None:
            t.s.crossentropy_backward(logits, logits, lse, some, count, None, vocab_size)
            t.s.matmul_backward_x(dx.rows(first, last, C), logits, w.data, add_x)
            dw, add_w = w.sink()
            t.s.matmul_backward_w(dw, None, logits, rows, add_w)

    def run(with_gradients):
        t.s.count_targets(count, targets)
        dx, add_x = x.sink() if with_gradients else (None, 0)
        for first in range(0, R, PIECE):
            piece(first, dx, add_x)  # a function, so that its logits are gone before the next ones are there
        t.s.mean_loss(loss, losses, count)

    if not t.grad:
        run(with_gradients=False)
    elif t.own_loss:
        t.on_backward(lambda: run(with_gradients=True))
    return Output(loss, None)


def last_position(t, x):
    """(B, T, C) -> (B, C). It has no gradient: only decoding asks for it."""
    out = t.new((x.shape[0], x.shape[2]), "last")
    t.s.last_position_forward(out.data, x.data)
    return out
