"""Automatic differentiation by closures.

An op (ops.py) calls its forward kernel and leaves a closure that calls its backward kernel. `Tape.backward()` runs
the closures in reverse. There is no graph: what a closure holds is what stays in memory, and when it has run, the
buffers that nobody else holds go back to the pool.
"""
from collections.abc import Callable

from gpt2c._core import Buffer, Stream
from gpt2c.arena import Pool


class Tensor:
    """A value and, once something flows back into it, its gradient."""

    def __init__(self, tape, name, data, grad=None):
        self.tape, self.name, self.data = tape, name, data
        self._grad = grad

    @property
    def shape(self):
        return self.data.shape

    @property
    def grad(self) -> Buffer:
        """The gradient, for who reads it or adds to it: zeroed if nothing has been written yet."""
        buffer, add = self.sink()
        if not add:
            self.tape.s.zero(buffer)
        return buffer

    def sink(self):
        """(the gradient's buffer, add): where a backward kernel puts its part. The first one stores, the others add."""
        if self._grad is not None:
            return self._grad, 1
        self._grad = self.tape.buffer(self.shape, f"d{self.name}")
        return self._grad, 0

    def grad_overwrites(self):
        """From now on the gradient takes the place of the value."""
        self._grad = self.data


class Tape:
    """What ops write to: the stream that runs or records, the pool, and the closures of the backward pass.

    Without `grad`, nothing is left for a backward pass and values go back to the pool as soon as they are used up.
    With `keep`, every buffer stays, by name, in `kept`, and ops store what they otherwise fold away. `state(name,
    shape)` gives buffers that live on between calls, for models that continue where they were (None: they start
    anew); `context` is how many positions they may hold. `position` holds the sequence's first position.
    """

    def __init__(self, stream: Stream, pool: Pool, position: Buffer, *, grad=True, keep=False, state=None, context=0):
        self.s, self.pool, self.position = stream, pool, position
        self.grad, self.keep, self.state, self.context = grad, keep, state, context
        self.kept = {}
        self._closures = []

    def buffer(self, shape, name) -> Buffer:
        """Memory for one value, without a gradient."""
        piece = self.pool.take(tuple(shape), name)
        if self.keep:
            self.kept[name] = piece
        return piece

    def new(self, shape, name) -> Tensor:
        """A new value, to be written by the op that asks for it."""
        return Tensor(self, name, self.buffer(shape, name))

    def on_backward(self, closure: Callable[[], None]):
        if self.grad:
            self._closures.append(closure)

    def backward(self):
        """Runs the closures, last first; each is dropped as soon as it has run."""
        while self._closures:
            self._closures.pop()()
