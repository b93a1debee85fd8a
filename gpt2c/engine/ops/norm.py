"""Layer norm and RMS norm."""

from gpt2c.engine.tape import Tape, Tensor


def layernorm(t: Tape, x: Tensor, w: Tensor, b: Tensor, *, name: str) -> Tensor:
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


def rmsnorm(t: Tape, x: Tensor, w: Tensor | None = None, *, eps: float = 1e-5, name: str) -> Tensor:
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
