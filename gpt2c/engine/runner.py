"""From a model's forward to something that runs: plan the memory, record the kernel calls once, replay them.

A Runner keeps Passes: one for each shape of work, all on one slab of memory, because only the last one's values matter
(a forward without a backward is simply dropped). Where a gradient reaches back through several chunks of a text, each of
those chunks has a Pass and a slab of its own.
"""

import hashlib
from collections import deque
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
    through: bool = False  # gradients flow into the state that came in, and back from the state that goes on
    train: bool = False  # what acts in training only (dropout) acts


# What the backward of a Pass does with the parameters' gradients: store them, so that what was there does not count, or
# add to them; THROUGH adds what flows back from the next chunk alone, this one's own loss having been done before.
STORE, ADD, THROUGH = "store", "add", "through"


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
        self.state, self._flow = {}, {}  # the state, and the gradient that flows back into it
        self._slab = aligned_bytes(0)
        self._passes = {}
        self._chain = deque()  # the passes whose state led here, oldest first
        self._spare = {}  # passes that have left the chain, by Work

    def plan(self, work: Work) -> int:
        """Bytes of slab that a Work needs. Nothing is allocated to find out."""
        peaks = []
        for backward in (ADD, THROUGH) if work.through else (ADD,):
            pool = Pool(reuse=self.reuse)
            tape, _ = self.trace(work, Stream("plan"), pool, _input_buffers(work, planning=True), backward, planning=True)
            tape.backward()
            peaks.append(pool.peak)
        return max(peaks)

    def trace(self, work, stream, pool, inputs, backward=ADD, planning=False):
        """Calls the model's forward on a new tape."""
        model, (batch, position, noise) = self.model, inputs
        grad = work.targets and work.purpose != "loss" and self.context is None
        tape = Tape(
            stream,
            pool,
            position,
            grad=grad,
            keep=work.keep,
            pieces=work.purpose != "any",
            own_loss=backward != THROUGH,
            lasting=work.through,
            recompute=0 if work.keep else model.recompute,
            caches=self._caches(planning) if self.context else None,
            context=self.context or 0,
            carried=self._carried(work, planning),
            noise=noise if work.train else None,
            weights=batch.weights,
            options=model.options,
        )
        tensors = {}

        def parameter(name, layer=None):
            if (name, layer) not in tensors:
                data = model.params.buffer(name, layer, address=not planning)
                into = model.grads.buffer(name, layer, address=not planning) if grad else None
                tensors[name, layer] = Tensor(tape, data.name, data, into, fresh=backward == STORE)
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
        """Makes the state one of B lanes, zeros unless given; what led here is forgotten."""
        shapes = self.state_shapes(B)
        if state is not None and {name: a.shape for name, a in state.items()} != shapes:
            raise UsageError(
                f"the state has {_described({name: a.shape for name, a in state.items()})}, expected {_described(shapes)}"
            )
        if {name: a.shape for name, a in self.state.items()} != shapes:
            self._drop_passes()  # they point into the old state
            self.state, self._flow = ({name: aligned(*shape) for name, shape in shapes.items()} for _ in range(2))
        self.forget_chain()
        for name, array in self.state.items():
            array[...] = 0 if state is None else state[name]

    def forget_chain(self):
        """What comes next does not reach back into what was."""
        while self._chain:
            self._release(self._chain.popleft())

    def chain_arrays(self, count):
        """The last `count` passes of the chain as arrays by name: what went in, and the memory that holds what came out."""
        arrays = {}
        for number, done in enumerate(list(self._chain)[-count:] if count else []):
            parts = {
                "tokens": done.tokens,
                "targets": done.targets,
                "noise": done.noise,
                "memory": done.memory,
                "program": done.fingerprint(),
            }
            arrays |= {f"chain.{number}.{name}": array for name, array in parts.items()}
        return arrays

    def restore_chain(self, arrays):
        """The chain of which chain_arrays were saved."""
        for number in range(len(arrays) // 5):
            parts = {name: arrays[f"chain.{number}.{name}"] for name in ("tokens", "targets", "noise", "memory", "program")}
            work = Work(*parts["tokens"].shape, True, purpose="step", through=True, train=True)
            done = self._chained(work, STORE)
            if (done.fingerprint() != parts["program"]).any():
                raise UsageError(
                    "the checkpoint was made by another version of gpt2c, which lays out its memory differently: "
                    "take its weights with --init-from, or resume with a window of one chunk"
                )
            for name in ("tokens", "targets", "noise", "memory"):
                getattr(done, name)[...] = parts[name]

    def _release(self, done):
        self._spare.setdefault(done.work, []).append(done)

    def _carried(self, work, planning):
        """(state, flow) buffers of a layer, for the tape; flow is None where no gradient crosses the border of a chunk."""
        shapes = self.state_shapes(work.B)

        def carried(name, layer):
            shape = shapes[name][1:]
            if planning:
                both = [Buffer(f"{part}{name}[{layer}]", shape, 0, None) for part in ("", "d")]
            else:
                both = [
                    buffer_of(f"{part}{name}[{layer}]", arrays[name][layer])
                    for part, arrays in (("", self.state), ("d", self._flow))
                ]
            return both if work.through else (both[0], None)

        return carried

    # ---- passes

    def prepare(self, work: Work, backward=ADD) -> "Pass":
        """The Pass for a Work, planned and recorded if it is new."""
        if self.state_shapes(work.B) and (not self.state or next(iter(self.state.values())).shape[1] != work.B):
            self.begin(work.B)
        if work.through:
            return self._chained(work, backward)
        self.forget_chain()
        if work not in self._passes:
            size = self.plan(work)
            if size > self._slab.nbytes:
                require_memory(size, f"a batch of {work.B} x {work.T} tokens", "try a smaller batch or sequence length")
                self._passes.clear()  # they point into the old slab
                self._slab = None
                self._slab = aligned_bytes(size)
            self._passes[work] = Pass(self, work, self._slab)
        return self._passes[work].ready(backward)

    def _chained(self, work, backward):
        """A Pass with a slab of its own, added to the chain."""
        if not self.record:
            raise UsageError("a window of more than one chunk needs a model that records (record=True)")
        if not self._spare.get(work):
            size = self.plan(work)
            require_memory(size, f"a chunk of {work.B} x {work.T} tokens", "try a smaller window, batch or chunk")
            self._release(Pass(self, work, aligned_bytes(size)))
        last = self._spare[work].pop().ready(backward)
        self._chain.append(last)
        return last

    def keep_window(self, window):
        """Lets go of all but the last `window` passes."""
        while len(self._chain) > window:
            self._release(self._chain.popleft())

    def backward(self, last):
        """The backward of the last Pass; where it is chained, through those before it too."""
        if not last.work.through:
            return last.backward()
        for array in self._flow.values():
            array.fill(0)
        last.backward()
        for earlier in list(self._chain)[-2::-1]:
            earlier.ready(THROUGH).backward()

    def _drop_passes(self):
        self._passes.clear()
        self._spare.clear()
        self._chain.clear()


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
        self._runner, self.slab, self.memory = runner, slab, slab.view(np.float32)
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

    def fingerprint(self):
        """A digest of its program and of the room it takes: passes of which it is equal keep the same in the same places."""
        text = f"{self.slab.nbytes}\n{self.forward_program}"
        return np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4")

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
