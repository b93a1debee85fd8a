"""Automatic differentiation by closures.

An op (ops/) calls its forward kernel and leaves a closure that calls its backward kernel. `Tape.backward()` runs
the closures in reverse. There is no graph: what a closure holds is what stays in memory, and when it has run, the
buffers that nobody else holds go back to the pool.
"""

import weakref
from collections.abc import Callable, Mapping

from gpt2c._core import Buffer, Stream
from gpt2c.engine.arena import Pool


class Gradient:
    """What flows back into a tensor: a buffer once something does.

    A closure that needs a tensor's gradient and not its value holds this alone, so that the value can go. A parameter
    comes with the buffer; `fresh` says that what is in it does not count.
    """

    def __init__(self, tape, name, shape, buffer=None, fresh=False):
        self._tape, self._name, self._shape = tape, name, shape
        self._buffer, self.written = buffer, buffer is not None and not fresh

    def read(self) -> Buffer:
        """For who reads it or adds to it: zeroed if nothing has been written yet."""
        buffer, add = self.sink()
        if not add:
            self._tape.s.zero(buffer)
        return buffer

    def sink(self):
        """(the buffer, add): where a backward kernel puts its part. The first one stores, the others add."""
        add, self.written = int(self.written), True
        if self._buffer is None:
            self._buffer = self._tape.buffer(self._shape, f"d{self._name}")
        return self._buffer, add

    def is_in(self, buffer):
        """It is what is, or will be, in this buffer."""
        self._buffer, self.written = buffer, True


class Tensor:
    """A value and its gradient."""

    def __init__(self, tape, name, data, grad=None, fresh=False):
        self.tape, self.name, self.shape = tape, name, data.shape
        self.gradient = Gradient(tape, name, data.shape, grad, fresh)
        self._data, self._remake = data, None

    @property
    def data(self) -> Buffer:
        if self._data is None:
            self._data = self.tape.buffer(self.shape, self.name)
            self._remake(self._data)
        return self._data

    def remade_by(self, forward: Callable[[Buffer], None]):
        """Where the tape recomputes, `forward` can write the value again after forget()."""
        if self.tape.recompute:
            self._remake = forward

    def forget(self):
        """Gives the value's memory back, if it can be computed again when the backward pass needs it."""
        if self._remake and self.tape.grad:
            self._data = None

    @property
    def grad(self) -> Buffer:
        return self.gradient.read()

    def sink(self):
        return self.gradient.sink()


class Tape:
    """What ops write to: the stream that runs or records, the pool, and the closures of the backward pass.

    Without `grad`, nothing is left for a backward pass and values go back to the pool as soon as they are used up.
    With `keep`, every buffer stays, by name, in `kept`, and ops store what they otherwise fold away. With `pieces`, only
    the loss and its gradients are asked for: the logits need not exist whole, and a backward pass follows at once, so the
    loss may be left to it. With `recompute`, memory is saved by computing again in the backward pass: 1 norms and
    activations, 2 whole blocks. Without `own_loss`, only what flows back through the carried state counts.

    `caches(name, shape)` gives buffers that live on between calls, for attention that continues where it was (None: it
    starts anew); `context` is how many positions they hold, `position` holds the sequence's first position.
    `carried(name, layer)` gives the buffers of a recurrent family's state: see `incoming` and `outgoing`. What a `lasting`
    forward leaves for its backward is still there afterwards, for another one. `noise` holds the seed and the counter of
    dropout (None: nothing is dropped). `weights` holds the factor of each target's loss in the backward pass (None: all
    are 1). `options` holds what else the family can be told of its training.
    """

    def __init__(
        self,
        stream: Stream,
        pool: Pool,
        position: Buffer,
        *,
        grad=True,
        keep=False,
        pieces=False,
        own_loss=True,
        lasting=False,
        recompute=0,
        caches=None,
        context=0,
        carried=None,
        noise: Buffer | None = None,
        weights: Buffer | None = None,
        options: Mapping[str, float] | None = None,
    ):
        self.s, self.pool, self.position, self.noise = stream, pool, position, noise
        self.weights, self.options = weights, options or {}
        self.grad, self.keep, self.pieces, self.own_loss, self.recompute = grad, keep, pieces, own_loss, recompute
        self.caches, self.context, self._carried = caches, context, carried
        self.kept: dict[str, Buffer] = {}
        self._incoming: dict[tuple[str, int], Tensor] = {}
        self._again = False
        self._values: weakref.WeakSet[Buffer] | None = weakref.WeakSet() if lasting else None
        self._closures: list[Callable[[], None]] = []

    def block(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """forward(x), of which only the result is kept if whole blocks are recomputed."""
        if self.recompute < 2 or not self.grad:
            return forward(x)
        self.grad = False
        out = forward(x)
        self.grad = True

        def backward():
            later, self._closures, self._again = self._closures, [], True
            again = forward(x)
            again.gradient.is_in(out.grad)
            self.backward()
            self._closures, self._again = later, False

        self.on_backward(backward)
        return out

    def incoming(self, name, layer) -> Tensor:
        """The state of a layer as the chunk before left it, zeros at the start."""
        state, flow = self._carried(name, layer)
        here = self._incoming.get((name, layer))  # a block computed again starts from the same state
        if here is None:
            here = self._incoming[name, layer] = self.new(state.shape, f"{layer}.{name}0")
            self.s.copy(here.data, state)  # what goes on will take its place
        if flow is not None:
            self.on_backward(lambda: self.s.copy(flow, here.grad))
        return here

    def outgoing(self, name, layer, last: Tensor):
        """Hands the state of a layer on to the next chunk."""
        state, flow = self._carried(name, layer)
        if not self._again:
            self.s.copy(state, last.data)
        if flow is not None:
            self.on_backward(lambda: self.s.copy(last.sink()[0], flow))

    def buffer(self, shape, name, dtype="f32") -> Buffer:
        """Memory for one value, without a gradient."""
        piece = self.pool.take(tuple(shape), name, dtype)
        if self.keep:
            self.kept[name] = piece
        if self._values is not None:
            self._values.add(piece)
        return piece

    def new(self, shape, name) -> Tensor:
        """A new value, to be written by the op that asks for it."""
        return Tensor(self, name, self.buffer(shape, name))

    def on_backward(self, closure: Callable[[], None]):
        if self.grad:
            self._closures.append(closure)

    def drop(self):
        """Lets go of what is held for a backward pass that will not come, and of the state that came in."""
        self._closures.clear()
        self._incoming.clear()

    def backward(self):
        """Runs the closures, last first; each is dropped as soon as it has run."""
        held, self._values = list(self._values or ()), None  # until the end
        while self._closures:
            self._closures.pop()()
        del held
