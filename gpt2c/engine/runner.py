"""From a model's forward to something that runs: plan the memory, record the kernel calls once, replay them.

A Runner keeps Passes: one for each shape of work, all on one slab of memory, because only the last one's values matter
(a forward without a backward is simply dropped). A recurrent pass is a function of its tokens and the state that it
starts from: a gradient that reaches back through several chunks of a text is one pass over all of them.
"""

from dataclasses import dataclass

import numpy as np

from gpt2c._core import Buffer, Stream, buffer_of
from gpt2c.engine.arena import Pool, aligned, aligned_bytes
from gpt2c.engine.tape import Tape, Tensor
from gpt2c.errors import UsageError
from gpt2c.support.machine import require_memory


@dataclass(frozen=True)
class Batch:
    """What a model's forward reads: buffers that are filled before each run."""

    tokens: Buffer  # (B, T) int32
    targets: Buffer | None  # (B, T) int32, -1 where not counted
    weights: Buffer | None  # (B, T) factor of each target's loss in the backward


@dataclass(frozen=True)
class Work:
    """A shape of work, and what it is for."""

    B: int
    T: int
    targets: bool
    keep: bool = False  # every activation
    purpose: str = "any"  # "step": forward and backward in one go, the loss is there at the end; "loss": nothing but that
    train: bool = False  # what acts in training only (dropout) acts
    first: int = 0  # positions before it are read again, for the gradient that flows back through them: no part of the loss
    scale: float = 1.0  # of the loss in its gradients
    decoding: bool = False  # one token of each sequence that is being generated, not a piece of a prompt


# What the backward of a Pass does with the parameters' gradients: store them, so that what was there does not count, or
# add to them.
STORE, ADD = "store", "add"


def lanes(state):
    """How many sequences a state belongs to: its arrays are (L, B, width)."""
    return next(iter(state.values())).shape[1]


class Runner:
    """Runs a model for any Work.

    `record=False` runs each kernel as it is called, for debugging: the same calls, the same bits. `reuse` and `poison`
    are the Pool's. With a `context`, passes continue from one another's caches (`caches`, by name), up to that many
    positions; they then have no backward.

    `state` is what a recurrent family carries from one pass to the next, by name; all its lanes start from zero.
    """

    def __init__(self, model, *, record=True, reuse=True, poison=False, context=None):
        self.model, self.record = model, record
        self.reuse, self.poison, self.context = reuse, poison, context
        self.caches = {}
        self.state = {}
        self._slab = aligned_bytes(0)
        self._passes = {}

    def plan(self, work: Work) -> int:
        """Bytes of slab that a Work needs. Nothing is allocated to find out."""
        pool = Pool(reuse=self.reuse)
        tape, _ = self.trace(work, Stream("plan"), pool, _input_buffers(work, planning=True), planning=True)
        tape.backward()
        return pool.peak

    def trace(self, work, stream, pool, inputs, backward=ADD, planning=False):
        """Calls the model's forward on a new tape."""
        model, (batch, position, noise) = self.model, inputs
        grad = work.targets and work.purpose != "loss" and self.context is None and model.params.size > 0
        tape = Tape(
            stream,
            pool,
            position,
            grad=grad,
            keep=work.keep,
            pieces=work.purpose != "any",
            recompute=0 if work.keep else model.recompute,
            caches=self._caches(planning) if self.context else None,
            context=self.context or 0,
            decoding=work.decoding,
            carried=self._carried(work, planning),
            noise=noise if work.train else None,
            weights=batch.weights,
            first=work.first,
            scale=work.scale,
            options=model.options,
        )
        tensors = {}

        def parameter(name, layer=None):
            if (name, layer) not in tensors:
                frozen = name not in model.params
                data = (model.base if frozen else model.params).buffer(name, layer, address=not planning)
                into = model.grads.buffer(name, layer, address=not planning) if grad and not frozen else None
                tensors[name, layer] = Tensor(tape, data.name, data, into, fresh=backward == STORE, frozen=frozen)
            return tensors[name, layer]

        return tape, model.definition.forward(tape, parameter, batch, model.config)

    def _caches(self, planning):
        def cache(name, shape):
            if planning:
                return Buffer(name, shape, 0, None)
            if name not in self.caches:
                self.caches[name] = aligned(*shape)
            return buffer_of(name, self.caches[name])

        return cache

    def take_over(self, other):
        """Copies the caches and the state of another Runner of the same model and context."""
        cache = self._caches(planning=False)
        for name, array in other.caches.items():
            cache(name, array.shape).array[...] = array
        if other.state:
            self.begin(lanes(other.state), other.state)

    # ---- carried state

    def state_shapes(self, B):
        """{name: shape} of what the family carries for B lanes; a transformer carries nothing."""
        shapes = self.model.definition.state
        return shapes(self.model.config, B) if shapes else {}

    def begin(self, B, state=None):
        """Makes the state one of B lanes, zeros unless given."""
        shapes = self.state_shapes(B)
        if state is not None and {name: a.shape for name, a in state.items()} != shapes:
            raise UsageError(
                f"the state has {_described({name: a.shape for name, a in state.items()})}, expected {_described(shapes)}"
            )
        if {name: a.shape for name, a in self.state.items()} != shapes:
            self._passes.clear()  # they point into the old state
            self.state = {name: aligned(*shape) for name, shape in shapes.items()}
        for name, array in self.state.items():
            array[...] = 0 if state is None else state[name]

    def _carried(self, work, planning):
        """The buffers of a layer's state, for the tape."""
        shapes = self.state_shapes(work.B)

        def carried(name, layer):
            label = f"{name}[{layer}]"
            return Buffer(label, shapes[name][1:], 0, None) if planning else buffer_of(label, self.state[name][layer])

        return carried

    # ---- passes

    def prepare(self, work: Work, backward=ADD) -> "Pass":
        """The Pass for a Work, planned and recorded if it is new."""
        if self.state_shapes(work.B) and (not self.state or next(iter(self.state.values())).shape[1] != work.B):
            self.begin(work.B)
        if work not in self._passes:
            size = self.plan(work)
            if size > self._slab.nbytes:
                require_memory(size, f"a batch of {work.B} x {work.T} tokens", "try a smaller batch or sequence length")
                self._passes.clear()  # they point into the old slab
                self._slab = None
                self._slab = aligned_bytes(size)
            self._passes[work] = Pass(self, work, self._slab)
        return self._passes[work].ready(backward)


def _described(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"


def _input_buffers(work, planning=False):
    """(Batch, position, noise), with memory of their own."""

    def ints(name, *shape):
        return Buffer(name, shape, 0, None, "i32") if planning else buffer_of(name, np.zeros(shape, np.int32))

    targets = ints("targets", work.B, work.T) if work.targets else None
    weights = None
    if work.targets and work.purpose == "any":
        shape = work.B, work.T
        weights = Buffer("weights", shape, 0, None) if planning else buffer_of("weights", np.ones(shape, np.float32))
    return Batch(ints("tokens", work.B, work.T), targets, weights), ints("position", 1), ints("noise", 2)


class Pass:
    """One shape of work, ready to run: fill the inputs, then forward(), then backward()."""

    def __init__(self, runner, work, slab):
        self.work = work
        self.inputs = _input_buffers(work)
        (batch, position, noise) = self.inputs
        self.tokens, self.position, self.noise = batch.tokens.array, position.array, noise.array
        self.targets = batch.targets.array if work.targets else None
        self.weights = batch.weights.array if batch.weights else None
        self._runner, self.slab = runner, slab
        self.forward_program, self._backward_programs = None, {}
        self._tape = None  # of kernels that run at once
        self._pool = Pool(slab, runner.reuse, runner.poison)

    def ready(self, backward):
        """Chooses the kind of backward, and records it if it is new. The forward is the same for all of them."""
        self._kind = backward
        if self._runner.record and backward not in self._backward_programs:
            stream, pool = Stream("record"), Pool(self.slab, self._runner.reuse)
            tape, output = self._runner.trace(self.work, stream, pool, self.inputs, backward)
            forward = stream.program()
            tape.backward()
            self._backward_programs[backward] = stream.program()
            if self.forward_program is None:
                self.forward_program, self.output, self.kept = forward, output, tape.kept
        return self

    @property
    def backward_program(self):
        return self._backward_programs[self._kind]

    def forward(self):
        if self._runner.record:
            self.forward_program.run()
        else:
            if self._tape:  # what is held of the last run goes before the new one asks for memory
                self._tape.drop()
                self.output = self.kept = None
            self._tape, self.output = self._runner.trace(self.work, Stream("run"), self._pool, self.inputs, self._kind)
            self.kept = self._tape.kept

    def backward(self):
        if self._runner.record:
            self.backward_program.run()
        else:
            self._tape.backward()

    def __str__(self):
        return f"# forward\n{self.forward_program}\n# backward\n{self.backward_program}"
