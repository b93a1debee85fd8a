"""The product with a weight matrix."""

from gpt2c.engine.tape import Tape, Tensor


def linear(t: Tape, x: Tensor, w: Tensor, b: Tensor | None = None, *, name: str) -> Tensor:
    """x wᵀ + b: (..., C) -> (..., N) with w (N, C)."""
    if t.decoding:
        return few_rows(t, x, w, b, name=name)
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


def few_rows(t: Tape, x: Tensor, w: Tensor, b: Tensor | None = None, *, name: str) -> Tensor:
    """The same where each row is the one token of a sequence that is being generated. It has no gradient."""
    out = t.new((*x.shape[:-1], w.shape[0]), name)
    t.s.matmul_rows_forward(out.data, x.data, w.data, b and b.data)
    return out
