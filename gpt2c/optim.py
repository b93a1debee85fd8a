"""What happens between two updates: learning rate schedules, gradient clipping, AdamW in decay groups."""
import math

import numpy as np

from gpt2c.errors import UsageError

SCHEDULES = ("constant", "cosine", "linear", "wsd")


def learning_rate(step, total, base, schedule, warmup=0, final_frac=1.0):
    """The rate of update `step` (from 0) of `total`; `final_frac` of base is where a falling schedule ends.

    cosine, linear   rise over `warmup` updates, then fall to the end
    wsd              rise, stay, and fall with 1 - sqrt over the last fifth
    constant         base, after the rise
    """
    low = base * final_frac
    if step < warmup:
        return base * (step + 1) / warmup
    if schedule == "constant":
        return base
    if schedule == "wsd":
        start = max(warmup, total * 4 // 5)
        if step < start:
            return base
        return low + (1 - math.sqrt((step - start) / max(1, total - start))) * (base - low)
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return base - (base - low) * progress
    if schedule == "cosine":
        return low + 0.5 * (1 + math.cos(math.pi * progress)) * (base - low)
    raise UsageError(f"unknown schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")


class AdamW:
    """AdamW over a model's flat blocks; decay only where a tensor's ParamSpec asks for it."""

    def __init__(self, model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        self.model, self.beta1, self.beta2, self.eps = model, beta1, beta2, eps
        self._norm = np.zeros(1, np.float32)
        self._ranges = []  # (first, last, decay), neighbours of equal decay together
        for spec in model.params.specs:
            first, last = model.params.range(spec.name)
            decay = weight_decay if spec.decay else 0.0
            if self._ranges and self._ranges[-1][2] == decay:
                first = self._ranges.pop()[0]
            self._ranges.append((first, last, decay))

    def norm(self):
        """The L2 norm of all gradients together."""
        self.model.stream.global_norm(self._norm, self.model.grads.flat)
        return float(self._norm[0])

    def update(self, lr, t, scale=1.0):
        """One step with the gradients times `scale`; t counts updates from 1."""
        params, m, v, grads = (a.flat for a in (self.model.params, self.model.m, self.model.v, self.model.grads))
        for first, last, decay in self._ranges:
            self.model.stream.adamw(params[first:last], m[first:last], v[first:last], grads[first:last], lr, self.beta1,
                                    self.beta2, self.eps, decay, 1 - self.beta1**t, 1 - self.beta2**t, scale)
