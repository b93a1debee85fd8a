"""The differentiable operations of recursive models, like those beside it: DyT, attention with contextual positions,
residuals with a learned scale, and adaptive depth. Formulas and shapes are in kernels/gpt2c.h.
"""

from gpt2c.engine.ops.loss import Term
from gpt2c.engine.tape import Tape, Tensor


def dyt(t: Tape, x: Tensor, a: Tensor, w: Tensor, b: Tensor, *, name: str) -> Tensor:
    """tanh(a x) w + b."""
    out = t.new(x.shape, name)

    def forward(out):
        t.s.dyt_forward(out, x.data, a.data, w.data, b.data)

    def backward():
        dx, add = x.sink()
        t.s.dyt_backward(dx, a.grad, w.grad, b.grad, out.grad, x.data, a.data, w.data, add)

    forward(out.data)
    out.remade_by(forward)
    t.on_backward(backward)
    return out


def cope_attention(t: Tape, qkv: Tensor, table: Tensor, *, name: str) -> Tensor:
    """Causal self-attention with contextual positions from a table (heads, positions, width): (B, T, 3C) -> (B, T, C).

    Where everything is kept, `preatt` and `att` are there to look at. Where the tape has a context: against the keys and
    values that each row's slot has so far.
    """
    (B, T), C = qkv.shape[:2], qkv.shape[2] // 3
    num_heads = table.shape[0]
    out = t.new((B, T, C), f"{name}.atty")
    if t.context:
        k, v = (t.caches(f"{name}.{part}", (C,)) for part in ("keys", "values"))
        t.s.cope_cached_forward(out.data, k, v, qkv.data, t.position, t.slot, table.data)
        return out
    lse = t.buffer((B, num_heads, T), f"{name}.lse")
    looked_at = [t.buffer((B, num_heads, T, T), f"{name}.{part}") if t.keep else None for part in ("preatt", "att")]
    t.s.cope_forward(out.data, lse, *looked_at, qkv.data, table.data)

    def backward():
        dqkv, add = qkv.sink()
        t.s.cope_backward(dqkv, table.grad, out.grad, qkv.data, out.data, lse, table.data, add)

    t.on_backward(backward)
    return out


def scaled_residual(t, x, y, scale, depth=None, step=1, *, name):
    """x + scale y; tokens whose depth is below step stay as they are."""
    out = t.new(x.shape, name)
    t.s.scaled_residual_forward(out.data, x.data, y.data, scale.data, depth, step)

    def backward():
        (dx, add_x), (dy, add_y) = x.sink(), y.sink()
        t.s.scaled_residual_backward(dx, dy, scale.grad, out.grad, y.data, scale.data, depth, step, add_x, add_y)

    t.on_backward(backward)
    return out


class Halting:
    """Adaptive depth (adaptive computation time): tokens halt one by one; the output is a mixture of their states after each
    step.

    Before step n, the tokens whose `depth` is at least n take part in it.
    """

    def __init__(self, t, w, b, shape, threshold, most_steps):
        self.t, self.w, self.b, self.threshold, self.most_steps = t, w, b, threshold, most_steps
        self.mixed = t.new(shape, "mixed")
        self.depth, self.total = (t.buffer(shape[:-1], name) for name in ("depth", "total"))
        self._dtotal = None

    def after_step(self, step, x):
        """Adds x, as it is after this step (from 1), to the mixture, and lets tokens halt."""
        t, w, b = self.t, self.w, self.b
        prob, weight = (t.buffer(x.shape[:-1], f"{step - 1}.{name}") for name in ("halt_prob", "halt_weight"))
        t.s.halting_forward(
            prob, weight, self.total, self.depth, self.mixed.data, x.data, w.data, b.data, step, self.most_steps, self.threshold
        )

        def backward():
            dx, add = x.sink()
            t.s.halting_backward(
                dx, w.grad, b.grad, self._dtotal, self.mixed.grad, x.data, w.data, prob, weight, self.depth, step, add
            )

        t.on_backward(backward)

    def ponder(self, targets, weight):
        """After the last step: the ponder loss of the counted tokens (steps and remainder), as a term of the loss."""
        t = self.t
        ponder, mean_depth, count = (t.buffer((1,), name) for name in ("ponder", "mean_depth", "halt_count"))
        t.s.ponder_forward(ponder, mean_depth, count, self.depth, self.total, targets)

        def backward():
            self._dtotal = t.buffer(self.total.shape, "dtotal")
            t.s.ponder_backward(self._dtotal, targets, count, weight * t.scale)

        t.on_backward(backward)
        return {"ponder": Term(ponder, weight), "mean_depth": Term(mean_depth)}
