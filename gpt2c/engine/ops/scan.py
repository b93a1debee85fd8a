"""The minimal GRU: gates, and a scan of the linear recurrence."""

from gpt2c.engine.tape import Tape, Tensor


def mingru(t: Tape, x: Tensor, h0: Tensor, *, name: str) -> tuple[Tensor, Tensor]:
    """The minimal GRU's recurrence: x (B, T, 2I), candidate and gate, from the state h0 (B, I) -> (h (B, T, I), last).

    `last` is the state after the last step; its gradient goes on to h0, which nothing else may use.
    """
    (B, T), I = x.shape[:2], x.shape[2] // 2
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
