"""The minimal GRU: gates, and a scan of the linear recurrence."""

from gpt2c._core import Buffer
from gpt2c.engine.tape import Tape, Tensor


def mingru(t: Tape, x: Tensor, h0: Buffer, *, name: str) -> tuple[Tensor, Buffer]:
    """The minimal GRU's recurrence: x (B, T, 2I), candidate and gate, from the state h0 (B, I) -> (h (B, T, I), the state
    after the last step)."""
    (B, T), I = x.shape[:2], x.shape[2] // 2
    h, last = t.new((B, T, I), name), t.buffer((B, I), f"{name}_last")
    a, b = (t.buffer((B, T, I), f"{name}_{part}") for part in "ab")
    t.s.mingru_gates_forward(a, b, x.data)
    t.s.scan_forward(h.data, last, a, b, h0)

    def backward():
        da, db = (t.buffer((B, T, I), f"d{name}_{part}") for part in "ab")
        dh0 = t.buffer((B, I), f"d{h0.name}")  # the state is a constant: this goes nowhere
        t.s.scan_backward(da, db, dh0, h.grad, None, a, h.data, h0)
        dx, add = x.sink()
        t.s.mingru_gates_backward(dx, da, db, x.data, add)

    t.on_backward(backward)
    return h, last
