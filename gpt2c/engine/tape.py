"""Automatic differentiation by closures.

An op (ops/) calls its forward kernel and records a closure that calls its backward kernel. `Tape.backward()` runs the closures
in reverse. There is no graph: what a closure references stays in memory, and once it has run, buffers without other references
go back to the pool.
"""

from collections.abc import Callable, Mapping

from gpt2c._core import Buffer, Stream
from gpt2c.engine.arena import Pool
from gpt2c.engine.base import Stored


class Gradient:
    """The gradient of a tensor: a buffer, allocated on first use.

    A closure that needs a tensor's gradient but not its value references this alone, so that the value can be freed. A
    parameter brings its buffer; `fresh` means that the content of the buffer is to be overwritten.
    """

    def __init__(self, tape, name, shape, buffer=None, fresh=False):
        self._tape, self._name, self._shape = tape, name, shape
        self._buffer, self.written = buffer, buffer is not None and not fresh

    def read(self) -> Buffer:
        """The buffer, for reading or adding: zeroed if nothing has been written yet."""
        buffer, add = self.sink()
        if not add:
            self._tape.s.zero(buffer)
        return buffer

    def sink(self):
        """(the buffer, add): where a backward kernel writes its part of the gradient. The first one stores, later ones add."""
        add, self.written = int(self.written), True
        if self._buffer is None:
            self._buffer = self._tape.buffer(self._shape, f"d{self._name}")
        return self._buffer, add

    def is_in(self, buffer):
        """It is what is, or will be, in this buffer."""
        self._buffer, self.written = buffer, True


class Tensor:
    """A value and its gradient; a `frozen` parameter has none, and may be stored in another type than float32 (Stored)."""

    def __init__(self, tape, name, data, grad=None, fresh=False, frozen=False):
        self.tape, self.name, self.shape, self.frozen = tape, name, data.shape, frozen
        self.gradient = Gradient(tape, name, data.shape, grad, fresh)
        self._data, self._remake = data, None

    @property
    def data(self) -> Buffer:
        if self._data is None:
            self._data = self.tape.buffer(self.shape, self.name)
            self._remake(self._data)
        return self._data

    def parts(self):
        """(its rows, the number of the first) for each of its parts: those of a matrix may be stored in different types."""
        return self.data.parts() if isinstance(self.data, Stored) else [(self.data, 0)]

    def remade_by(self, forward: Callable[[Buffer], None]):
        """Where the tape recomputes, `forward` can write the value again after forget()."""
        if self.tape.recompute:
            self._remake = forward

    def forget(self):
        """Frees the value's memory, if the backward pass can recompute it."""
        if self._remake and self.tape.grad:
            self._data = None

    @property
    def grad(self) -> Buffer:
        return self.gradient.read()

    def sink(self):
        return self.gradient.sink()


class Tape:
    """What ops write to: the stream that runs or records, the pool, and the closures of the backward pass.

    Without `grad`, nothing is recorded for a backward pass and values go back to the pool after their last use.
    With `keep`, every buffer stays, by name, in `kept`, and ops materialise what they otherwise fuse. With `pieces`, only
    the loss and its gradients are asked for: the logits need not exist whole, and a backward pass follows at once, so the
    loss may be left to it. With `recompute` (activation checkpointing), the backward pass recomputes to save memory: 1 norms
    and activation functions, 2 whole blocks.

    `position` (B,) holds the first position of each row. For generation, `context` is how many positions a KV cache holds, and
    `caches(name, heads, width)` gives the buffer of one, which persists between calls: (slots, context, heads, bytes of a head),
    of the type with the number `kv` (CACHED). `slot` (B,) then holds the slot that each row belongs to, and with `decoding` a
    row is one new token (of B, T = 1), which takes the kernels for a few rows.
    `carried(name, layer)` gives the buffer of a recurrent family's state: see `incoming` and `outgoing`. `noise` holds the
    seed and the counter of dropout (None: nothing is dropped). `weights` holds the factor of each target's loss in the
    backward pass (None: all are 1), `scale` is that of the whole loss. Positions before `first` are read again and have no
    part in the loss. `options` holds the further training options of the family.
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
        recompute=0,
        context=0,
        caches=None,
        kv=0,
        slot: Buffer | None = None,
        decoding=False,
        carried=None,
        noise: Buffer | None = None,
        weights: Buffer | None = None,
        first=0,
        scale=1.0,
        options: Mapping[str, float] | None = None,
    ):
        self.s, self.pool, self.position, self.noise = stream, pool, position, noise
        self.weights, self.first, self.scale, self.options = weights, first, scale, options or {}
        self.grad, self.keep, self.pieces, self.recompute = grad, keep, pieces, recompute
        self.context, self.caches, self.kv, self.slot, self.decoding = context, caches, kv, slot, decoding
        self._carried = carried
        self.kept: dict[str, Buffer] = {}
        self._incoming: dict[tuple[str, int], Buffer] = {}
        self._again = False
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

    def incoming(self, name, layer) -> Buffer:
        """The hidden state of a layer that this pass starts from, a constant: zeros at first. (B, width)"""
        here = self._incoming.get((name, layer))  # a block computed again starts from the same state
        if here is None:
            state = self._carried(name, layer)
            B, width = self.position.shape[0], state.shape[1]
            here = self._incoming[name, layer] = self.buffer((B, width), f"{layer}.{name}0")
            if self.slot:
                self.s.gather(here, state, self.slot)
            else:
                self.s.copy(here, state)  # what goes on will take its place
        return here

    def outgoing(self, name, layer, last: Buffer):
        """Passes the hidden state of a layer on to the next pass."""
        if self.slot:
            self.s.scatter(self._carried(name, layer), last, self.slot)
        elif not self._again:
            self.s.copy(self._carried(name, layer), last)

    def buffer(self, shape, name, dtype="f32") -> Buffer:
        """Memory for one value, without a gradient."""
        piece = self.pool.take(tuple(shape), name, dtype)
        if self.keep:
            self.kept[name] = piece
        return piece

    def new(self, shape, name) -> Tensor:
        """A new value, to be written by the op that asks for it."""
        return Tensor(self, name, self.buffer(shape, name))

    def on_backward(self, closure: Callable[[], None]):
        if self.grad:
            self._closures.append(closure)

    def drop(self):
        """Drops what is held for a backward pass that will not come, and the incoming state."""
        self._closures.clear()
        self._incoming.clear()

    def backward(self):
        """Runs the closures, last first; each is dropped as soon as it has run."""
        while self._closures:
            self._closures.pop()()
