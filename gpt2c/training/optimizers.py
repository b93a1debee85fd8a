"""Optimizers over a model's flat blocks: what PyTorch calls AdamW, Adam and SGD; on one process or several."""

import math

import numpy as np

from gpt2c.engine.arena import Arena
from gpt2c.errors import UsageError
from gpt2c.support.fields import nearest
from gpt2c.training.anomalies import largest
from gpt2c.training.ranks import World

OPTIMIZERS = ("adamw", "adam", "sgd")


class Optimizer:
    """One of OPTIMIZERS. Weight decay is for tensors whose ParamSpec asks for it, or with `decay_all` for all.

    adamw   decay shrinks the parameters beside the step
    adam    decay is added to the gradient, before the moments
    sgd     likewise; with `momentum` the model's m is its buffer

    A tensor in `rates` has that learning rate instead of the one given to `update`; one in `bounds` is clamped to its (low,
    high) after each update.

    With several ranks, `reduce_gradients` comes first: a reduce-scatter, after which each rank has its part of the summed
    gradients. Then `update` all-gathers them; or with `sharded` (ZeRO stage 1) each rank updates its part of the parameters,
    which are all-gathered instead, and keeps only its part of the moments. Both give the same bits.
    """

    def __init__(
        self,
        model,
        name="adamw",
        *,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_all=False,
        rates=None,
        bounds=None,
        world=None,
        sharded=False,
    ):
        self.model, self.name = model, name
        self.world, self.sharded = world or World(), sharded
        self._own = slice(*self.world.part(model.params.size))
        rates, self._bounds = rates or {}, bounds or {}
        known = {tensor: tensor for tensor in model.params}
        for tensor in [*rates, *self._bounds]:
            if tensor not in known:
                raise UsageError(f"{model.family} has no tensor {tensor!r}{nearest(tensor, known)}; it has {', '.join(known)}")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov
        self._norm = np.zeros(1, np.float32)
        self._ranges = []  # (first, last, (decay, rate of its own or None)), neighbours of equal treatment together
        for spec in model.params.specs:
            first, last = model.params.range(spec.name)
            if sharded:
                first, last = max(first, self._own.start), min(last, self._own.stop)
            if first >= last:
                continue
            treatment = weight_decay if spec.decay or decay_all else 0.0, rates.get(spec.name)
            if self._ranges and self._ranges[-1][2] == treatment:
                first = self._ranges.pop()[0]
            self._ranges.append((first, last, treatment))

    def reduce_gradients(self):
        """Sums the gradients of all ranks (reduce-scatter)."""
        self.world.reduce_scatter(self.model.grads.flat)

    def gather_gradients(self):
        """Brings the sums to every rank (all-gather)."""
        self.world.all_gather(self.model.grads.flat)

    def norm(self):
        """The global L2 norm of the gradients."""
        squares = np.zeros(self.world.size)
        squares[self.world.rank] = self._norm_of(self.model.grads.flat[self._own]) ** 2
        return math.sqrt(sum(self.world.all_reduce(squares).tolist()))

    def largest(self):
        """The largest magnitude of an element of the gradients."""
        return self.world.all_reduce_max(largest(self.model.grads.flat[self._own]))[0]

    def parameter_norm(self):
        """The L2 norm of all parameters: finite if and only if all of them are."""
        return self._norm_of(self.model.params.flat)

    def _norm_of(self, flat):
        self.model.stream.global_norm(self._norm, flat)
        return float(self._norm[0])

    def clamp(self, limit):
        """Gradient clipping by value: each element to a magnitude of at most `limit`."""
        self.model.stream.clamp(self.model.grads.flat[self._own], limit)

    def update(self, lr, t, scale=1.0):
        """One step with the gradients times `scale`; t counts updates from 1."""
        if not self.sharded:
            self.gather_gradients()
        for first, last, (decay, rate) in self._ranges:
            self._update_range(slice(first, last), decay, lr if rate is None else rate, t, scale)
        if self.sharded:
            self.world.all_gather(self.model.params.flat)
        for name, (low, high) in self._bounds.items():
            np.clip(self.model.params[name], low, high, out=self.model.params[name])

    def moments(self):
        """The model's m and v for a checkpoint, which rank 0 writes: gathered there if they are sharded."""
        arenas = [arena for arena in (self.model.m, self.model.v) if arena.allocated]
        return [self._whole(arena) for arena in arenas] if self.sharded else arenas

    def _whole(self, arena):
        whole = Arena(arena.specs, arena.prefix)
        self.world.gather(arena.flat, whole.flat if self.world.rank == 0 else None)
        return whole

    def _update_range(self, part, decay, lr, t, scale):
        model, stream = self.model, self.model.stream
        params, grads = model.params.flat[part], model.grads.flat[part]
        if self.name == "sgd":
            buffer = model.m.flat[part] if self.momentum else None
            stream.sgd(params, buffer, grads, lr, self.momentum, self.dampening, decay, scale, int(self.nesterov), int(t == 1))
            return
        if self.name == "adam" and decay:
            stream.add_scaled(grads, params, decay / scale)
            decay = 0.0
        stream.adamw(
            params,
            model.m.flat[part],
            model.v.flat[part],
            grads,
            lr,
            self.beta1,
            self.beta2,
            self.eps,
            decay,
            1 - self.beta1**t,
            1 - self.beta2**t,
            scale,
        )


def tensor_rates(text):
    """{tensor: rate} from text such as "alpha=1e-4, beta=1e-4"."""
    return {name: rate for name, (rate,) in _by_tensor("tensor-rates", "NAME=RATE, with a rate from 0", text, 1, 0.0)}


def tensor_bounds(text):
    """{tensor: (low, high)} from text such as "alpha=0.01:0.5, beta=0.01:0.5"."""
    return dict(_by_tensor("tensor-bounds", "NAME=LOW:HIGH", text, 2, -math.inf))


def _by_tensor(flag, form, text, count, least):
    """(tensor, numbers), the numbers rising from `least`, for each part of a flag's text."""
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, values = part.partition("=")
        try:
            numbers = tuple(map(float, values.split(":")))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(a <= b for a, b in zip((least, *numbers), numbers)):
            raise UsageError(f"--{flag}: expected {form}, found {part!r}")
        yield name.strip(), numbers
