"""From a model's forward to something that runs: plan the memory, record the kernel calls once, replay them.

A Runner keeps Passes: one for each shape of work, all on one slab of memory, because only the last one's values matter
(a forward without a backward is simply dropped). A recurrent pass is a function of its tokens and the state that it
starts from: a gradient that reaches back through several chunks of a text is one pass over all of them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2c._core import STORED, Buffer, Stream, buffer_of, row_bytes
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


class Inputs(NamedTuple):
    """All that is filled before a run."""

    batch: Batch
    position: Buffer  # (B,) of each row's first token
    slot: Buffer  # (B,) which sequence of those that are being generated each row belongs to
    noise: Buffer  # (2,) seed and counter of dropout


# What the backward of a Pass does with the parameters' gradients: store them, so that what was there does not count, or
# add to them.
STORE, ADD = "store", "add"

MOST_PASSES = 64  # that a Runner keeps: generation meets prompts of all lengths


def lanes(state):
    """How many sequences a state belongs to: its arrays are (L, B, width)."""
    return next(iter(state.values())).shape[1]


class Runner:
    """Runs a model for any Work.

    `record=False` runs each kernel as it is called, for debugging: the same calls, the same bits. `reuse` and `poison`
    are the Pool's.

    `state` is what a recurrent family carries from one pass to the next, by name; all its lanes start from zero.

    With `slots`, passes generate: they have no backward, and go on from what earlier ones left in that many slots, of which
    a Work has any B. Each slot is a row of the KV caches (`caches`, by name), with `context` positions stored as `kv` says, or a
    lane of the state.
    """

    def __init__(self, model, *, record=True, reuse=True, poison=False, slots=0, context=0, kv="f32"):
        self.model, self.record = model, record
        self.reuse, self.poison, self.slots, self.context, self.kv = reuse, poison, slots, context, kv
        self.caches = {}
        self._cache_sizes = {}
        self.state = {}
        self._slab = aligned_bytes(0)
        self._passes = {}
        self._planned_sizes = {}

    def plan(self, work: Work) -> int:
        """Bytes of slab that a Work needs. Nothing is allocated to find out."""
        if work not in self._planned_sizes:
            pool = Pool(reuse=self.reuse)
            tape, _ = self.trace(work, Stream("plan"), pool, _input_buffers(work, planning=True), planning=True)
            tape.backward()
            self._planned_sizes[work] = pool.peak
        return self._planned_sizes[work]

    def trace(self, work, stream, pool, inputs, backward=ADD, planning=False):
        """Calls the model's forward on a new tape."""
        model = self.model
        grad = work.targets and work.purpose != "loss" and model.params.size > 0
        tape = Tape(
            stream,
            pool,
            inputs.position,
            grad=grad,
            keep=work.keep,
            pieces=work.purpose in ("step", "loss"),
            recompute=0 if work.keep else model.recompute,
            context=self.context,
            caches=self._cache(planning),
            kv=list(STORED).index(self.kv),
            slot=inputs.slot if self.slots else None,
            decoding=work.decoding,
            carried=self._carried(work, planning),
            noise=inputs.noise if work.train else None,
            weights=inputs.batch.weights,
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

        return tape, model.definition.forward(tape, parameter, inputs.batch, model.config)

    # ---- slots

    def _cache(self, planning):
        """The buffers of the KV caches, for the tape."""

        def cache(name, heads, width):
            if width % (block := STORED[self.kv].columns):
                raise UsageError(f"a KV cache in {self.kv} needs heads of a multiple of {block} numbers, found {width}")
            shape = self.slots, self.context, heads, row_bytes(self.kv, width)
            self._cache_sizes[name] = math.prod(shape)
            if planning:
                return Buffer(name, shape, 0, None, "u8")
            if name not in self.caches:
                self.caches[name] = aligned_bytes(math.prod(shape)).reshape(shape)
            return buffer_of(name, self.caches[name])

        return cache

    def cache_bytes(self):
        """What the caches take. Nothing is allocated to find out."""
        self.plan(Work(1, 1, targets=False, decoding=True))
        return sum(self._cache_sizes.values())

    def copy_slot(self, source, target, length):
        """Gives the target what the source has: the first `length` positions, or its state."""
        for array in self.caches.values():
            array[target, :length] = array[source, :length]
        for array in self.state.values():
            array[:, target] = array[:, source]

    def clear_slot(self, slot):
        """Lets a slot begin again; what its caches hold is overwritten."""
        for array in self.state.values():
            array[:, slot] = 0

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
        shapes = self.state_shapes(self.slots or work.B)

        def carried(name, layer):
            label = f"{name}[{layer}]"
            return Buffer(label, shapes[name][1:], 0, None) if planning else buffer_of(label, self.state[name][layer])

        return carried

    # ---- passes

    def prepare(self, work: Work, backward=ADD) -> "Pass":
        """The Pass for a Work, planned and recorded if it is new."""
        if self.state_shapes(B := self.slots or work.B) and (not self.state or lanes(self.state) != B):
            self.begin(B)
        ready = self._passes.pop(work, None) or self._planned(work)
        self._passes[work] = ready  # the last one used is the last to go
        return ready.ready(backward)

    def _planned(self, work):
        """A new Pass, in place of the one that was used longest ago where there are too many."""
        size = self.plan(work)
        if size > self._slab.nbytes:
            require_memory(size, f"a batch of {work.B} x {work.T} tokens", "try a smaller batch or sequence length")
            self._passes.clear()  # they point into the old slab
            self._slab = None
            self._slab = aligned_bytes(size)
        if len(self._passes) >= MOST_PASSES:
            del self._passes[next(iter(self._passes))]
        return Pass(self, work, self._slab)


def _described(shapes):
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"


def _input_buffers(work, planning=False):
    """With memory of their own."""

    def ints(name, *shape):
        return Buffer(name, shape, 0, None, "i32") if planning else buffer_of(name, np.zeros(shape, np.int32))

    targets = ints("targets", work.B, work.T) if work.targets else None
    weights = None
    if work.targets and work.purpose == "any":
        shape = work.B, work.T
        weights = Buffer("weights", shape, 0, None) if planning else buffer_of("weights", np.ones(shape, np.float32))
    batch = Batch(ints("tokens", work.B, work.T), targets, weights)
    return Inputs(batch, ints("position", work.B), ints("slot", work.B), ints("noise", 2))


class Pass:
    """One shape of work, ready to run: fill the inputs, then forward(), then backward()."""

    def __init__(self, runner, work, slab):
        self.work = work
        self.inputs = _input_buffers(work)
        batch, *others = self.inputs
        self.tokens = batch.tokens.array
        self.position, self.slot, self.noise = (buffer.array for buffer in others)
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
