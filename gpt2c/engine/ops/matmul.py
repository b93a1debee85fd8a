"""The product with a weight matrix."""

from gpt2c.engine.tape import Tape, Tensor


def linear(t: Tape, x: Tensor, w: Tensor, b: Tensor | None = None, *, name: str) -> Tensor:
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
