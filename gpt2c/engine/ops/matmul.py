"""The product with a weight matrix."""

from gpt2c._core import Buffer
from gpt2c.engine.tape import Tape, Tensor


def linear(t: Tape, x: Tensor, w: Tensor, b: Tensor | None = None, *, name: str, few_rows: bool | None = None) -> Tensor:
    """x wᵀ + b: (..., C) -> (..., N) with w (N, C). `few_rows`: as a decoding step does it, which it is unless given."""
    out = t.new((*x.shape[:-1], w.shape[0]), name)
    product(t, out.data, x.data, w, b.data if b else None, t.decoding if few_rows is None else few_rows)
    flow = out.gradient  # out itself is not held: what only adds it to something has no use for its value later

    def backward():
        product_backward_x(t, x, flow.read(), w)
        if not w.frozen:
            dw, add = w.sink()
            t.s.matmul_backward_w(dw, b and b.sink()[0], flow.read(), x.data, add)

    x.forget()
    t.on_backward(backward)
    return out


def linear_pair(t: Tape, x: Tensor, wa: Tensor, wb: Tensor, *, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """x waᵀ and x wbᵀ. A decoding step makes both at once: its threads meet less often, which is a part of its time."""
    matrices = [w.data for w in (wa, wb) if isinstance(w.data, Buffer)]
    if not t.decoding or len(matrices) < 2:
        return linear(t, x, wa, name=names[0]), linear(t, x, wb, name=names[1])
    a, b = (t.new((*x.shape[:-1], w.shape[0]), name) for w, name in zip((wa, wb), names))
    t.s.few_rows_pair_forward(a.data, b.data, x.data, *matrices)
    return a, b


def product(t: Tape, out: Buffer, x: Buffer, w: Tensor, b: Buffer | None = None, few_rows=False):
    """out = x wᵀ + b. Which kernel it is follows from what it is for, never from the number of rows: so no bit depends on it."""
    kernel = t.s.few_rows_forward if few_rows else t.s.matmul_forward
    for part, first in w.parts():
        kernel(out, x, part, b, first)


def product_backward_x(t: Tape, x: Tensor, dout: Buffer, w: Tensor):
    """dx = or += dout w"""
    for part, first in w.parts():
        dx, add = x.sink()
        t.s.matmul_backward_x(dx, dout, part, first, add)
