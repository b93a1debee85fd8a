"""From a model's forward to something that runs: plan the memory, record the kernel calls once, replay them.

A Runner keeps one Pass for each shape of work. All its passes share one slab of memory, because only the last one's
values matter: a forward without a backward is simply dropped.
"""
from dataclasses import dataclass

import numpy as np

from gpt2c._core import Buffer, Stream, buffer_of
from gpt2c.arena import Pool, aligned
from gpt2c.machine import require_memory
from gpt2c.tape import Tape, Tensor


@dataclass(frozen=True)
class Batch:
    """What a model's forward reads: buffers that are filled before each run."""

    tokens: Buffer  # (B, T) int32
    targets: Buffer | None  # (B, T) int32, -1 where not counted


@dataclass(frozen=True)
class Work:
    """A shape of work: batch, length, whether there are targets (and so a backward), whether everything is kept, and
    whether the backward finds fresh gradients, whose contents do not count, and whether what acts in training only
    (dropout) acts."""

    B: int
    T: int
    targets: bool
    keep: bool = False
    fresh: bool = False
    train: bool = False


class Runner:
    """Runs a model for any Work.

    `record=False` runs each kernel as it is called, for debugging: the same calls, the same bits. `reuse` and `poison`
    are the Pool's. With a `context`, passes continue from one another's state (`self.state`, by name), up to that
    many positions; they then have no backward.
    """

    def __init__(self, model, *, record=True, reuse=True, poison=False, context=None):
        self.model, self.record = model, record
        self.reuse, self.poison, self.context = reuse, poison, context
        self.state = {}
        self._slab = aligned(0)
        self._passes = {}

    def plan(self, work: Work) -> int:
        """Bytes of slab that a Work needs. Nothing is allocated to find out."""
        pool = Pool(reuse=self.reuse)
        tape, _ = self.trace(work, Stream("plan"), pool, _input_buffers(work, planning=True), planning=True)
        tape.backward()
        return pool.peak

    def trace(self, work, stream, pool, inputs, planning=False):
        """Calls the model's forward on a new tape."""
        model, (batch, position, noise) = self.model, inputs
        backward = work.targets and self.context is None
        tape = Tape(stream, pool, position, grad=backward, keep=work.keep, recompute=0 if work.keep else model.recompute,
                    state=self._state_of(planning) if self.context else None, context=self.context or 0,
                    noise=noise if work.train else None)
        tensors = {}

        def parameter(name, layer=None):
            if (name, layer) not in tensors:
                data = model.params.buffer(name, layer, address=not planning)
                grad = model.grads.buffer(name, layer, address=not planning) if backward else None
                tensors[name, layer] = Tensor(tape, data.name, data, grad, work.fresh)
            return tensors[name, layer]

        return tape, model.module.forward(tape, parameter, batch, model.config)

    def _state_of(self, planning):
        def state(name, shape):
            if planning:
                return Buffer(name, shape, 0, None)
            if name not in self.state:
                self.state[name] = aligned(int(np.prod(shape))).reshape(shape)
            return buffer_of(name, self.state[name])

        return state

    def prepare(self, work: Work) -> "Pass":
        """The Pass for a Work, planned and recorded if it is new."""
        if not self.record or work not in self._passes:
            size = self.plan(work)
            if size > self._slab.nbytes:
                require_memory(size, f"a batch of {work.B} x {work.T} tokens", "try a smaller batch or sequence length")
                self._passes.clear()  # they point into the old slab
                self._slab = None
                self._slab = aligned(size // 4)
            self._passes[work] = Pass(self, work, Pool(self._slab, self.reuse, self.poison))
        return self._passes[work]


def _input_buffers(work, planning=False):
    """(Batch, position, noise), with memory of their own."""
    def ints(name, *shape):
        return Buffer(name, shape, 0, None, "i") if planning else buffer_of(name, np.zeros(shape, np.int32))

    targets = ints("targets", work.B, work.T) if work.targets else None
    return Batch(ints("tokens", work.B, work.T), targets), ints("position", 1), ints("noise", 2)


class Pass:
    """One shape of work, ready to run: fill the inputs, then forward(), then backward()."""

    def __init__(self, runner, work, pool):
        self.work = work
        self.inputs = _input_buffers(work)
        (batch, position, noise) = self.inputs
        self.tokens, self.position, self.noise = batch.tokens.array, position.array, noise.array
        self.targets = batch.targets.array if work.targets else None
        self._runner, self._pool = runner, pool
        if runner.record:
            stream = Stream("record")
            tape, self.output = runner.trace(work, stream, pool, self.inputs)
            self.forward_program = stream.program()
            tape.backward()
            self.backward_program = stream.program()
            self.kept = tape.kept

    def forward(self):
        if self._runner.record:
            self.forward_program.run()
        else:
            self._tape, self.output = self._runner.trace(self.work, Stream("run"), self._pool, self.inputs)
            self.kept = self._tape.kept

    def backward(self):
        if self._runner.record:
            self.backward_program.run()
        else:
            self._tape.backward()

    def __str__(self):
        return f"# forward\n{self.forward_program}\n# backward\n{self.backward_program}"
