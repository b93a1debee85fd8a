"""Optimizers over a model's flat blocks: what PyTorch calls AdamW, Adam and SGD."""
import math

import numpy as np

from gpt2c.errors import UsageError
from gpt2c.flags import nearest

OPTIMIZERS = ("adamw", "adam", "sgd")


class Optimizer:
    """One of OPTIMIZERS. Weight decay is for tensors whose ParamSpec asks for it, or with `decay_all` for all.

    adamw   decay shrinks the parameters beside the step
    adam    decay is added to the gradient, before the moments
    sgd     likewise; with `momentum` the model's m is its buffer

    A tensor in `rates` has that learning rate in the place of the one that `update` is given; one in `bounds` is brought back
    between its (low, high) after each update.
    """

    def __init__(self, model, name="adamw", *, beta1=0.9, beta2=0.999, eps=1e-8, momentum=0.0, dampening=0.0, nesterov=False,
                 weight_decay=0.0, decay_all=False, rates=None, bounds=None):
        self.model, self.name = model, name
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
            treatment = weight_decay if spec.decay or decay_all else 0.0, rates.get(spec.name)
            if self._ranges and self._ranges[-1][2] == treatment:
                first = self._ranges.pop()[0]
            self._ranges.append((first, last, treatment))

    def norm(self):
        """The L2 norm of all gradients together."""
        return self._norm_of(self.model.grads)

    def parameter_norm(self):
        """The L2 norm of all parameters together: finite exactly where the model is still sound."""
        return self._norm_of(self.model.params)

    def _norm_of(self, arena):
        self.model.stream.global_norm(self._norm, arena.flat)
        return float(self._norm[0])

    def clamp(self, limit):
        """Each element of the gradients to at most `limit`, in either direction."""
        self.model.stream.clamp(self.model.grads.flat, limit)

    def update(self, lr, t, scale=1.0):
        """One step with the gradients times `scale`; t counts updates from 1."""
        for first, last, (decay, rate) in self._ranges:
            self._update_range(slice(first, last), decay, lr if rate is None else rate, t, scale)
        for name, (low, high) in self._bounds.items():
            np.clip(self.model.params[name], low, high, out=self.model.params[name])

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
        stream.adamw(params, model.m.flat[part], model.v.flat[part], grads, lr, self.beta1, self.beta2, self.eps, decay,
                     1 - self.beta1**t, 1 - self.beta2**t, scale)


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
