"""Sums on the residual stream, with dropout."""

from gpt2c.engine.tape import Tape, Tensor


def residual(t: Tape, a: Tensor, b: Tensor, *, scale: float = 1.0, dropout: float = 0.0, stream: int = 0, name: str) -> Tensor:
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
