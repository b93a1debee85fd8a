"""Elementwise functions of the feed-forward layers."""

from gpt2c.engine.tape import Tape, Tensor


def gelu(t: Tape, x: Tensor, *, name: str) -> Tensor:
    """The tanh form."""
    return _activation(t, x, t.s.gelu_forward, t.s.gelu_backward, name)


def gelu_erf(t: Tape, x: Tensor, *, name: str) -> Tensor:
    """The exact form."""
    return _activation(t, x, t.s.gelu_erf_forward, t.s.gelu_erf_backward, name)


def squared_relu(t: Tape, x: Tensor, *, name: str) -> Tensor:
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


def swiglu(t: Tape, a: Tensor, b: Tensor, *, name: str) -> Tensor:
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
