"""Anomaly detection: NaN, infinity, values beyond a limit, and outliers by z-score."""

import math

import numpy as np

from gpt2c.errors import DivergedError, GradientError

SKIPS_IN_A_ROW = 10  # after this many skipped updates in a row, skipping does not help
WINDOW = 128  # updates of which a z-score takes mean and standard deviation


class Window:
    """The last WINDOW values of a series, to tell how unusual the newest one is."""

    def __init__(self):
        self.values = np.zeros(WINDOW)
        self.count = 0  # values pushed so far

    def push(self, value):
        """The z-score of a value among the last WINDOW, itself included: NaN until there were as many before it, 0 where
        all are equal. A value that is not finite is left out."""
        if not math.isfinite(value):
            return math.nan
        self.values[self.count % WINDOW] = value
        self.count += 1
        if self.count <= WINDOW:
            return math.nan
        spread = self.values.std()
        return float((value - self.values.mean()) / spread) if spread else 0.0


class Watch:
    """Checks loss and gradients before each update: whether to skip it, or to stop training."""

    def __init__(self, config, optimizer, batches):
        self.config, self.optimizer, self.batches = config, optimizer, batches  # gradients are sums over so many batches
        self.losses, self.norms = Window(), Window()
        self.skipped_in_a_row = 0

    def judge(self, step, loss, norm):
        """(the z-scores of loss and norm, why to skip this update, or ""); or a DivergedError."""
        loss_z, norm_z = self.losses.push(loss), self.norms.push(norm)
        why, error = self._wrong(loss, norm)
        unusual = "" if why else self._unusual(loss, norm, loss_z, norm_z)
        if not (why or unusual):
            self.skipped_in_a_row = 0
            return loss_z, norm_z, ""
        action = self.config.on_anomaly if self.config.on_anomaly != "auto" else "skip" if unusual else "stop"
        self.skipped_in_a_row += 1
        if action == "skip" and self.skipped_in_a_row <= SKIPS_IN_A_ROW:
            return loss_z, norm_z, why or unusual
        again = f", and {SKIPS_IN_A_ROW} updates before it were skipped" if action == "skip" else ""
        raise error(f"at step {step} {why or unusual}{again}: lower the learning rate, warm up longer, or clip the gradients")

    def _wrong(self, loss, norm):
        """(why numbers are wrong in themselves, the error that says so)"""
        config, optimizer, batches = self.config, self.optimizer, self.batches
        limit = config.max_grad_value
        if not (math.isfinite(loss) and math.isfinite(norm)):
            optimizer.gather_gradients()
            why = f"the loss is {loss} and the gradient norm {norm}; {first_bad_tensor(optimizer.model)}"
            return why, DivergedError
        if limit and optimizer.largest() > limit * batches:
            optimizer.gather_gradients()
            found = first_bad_tensor(optimizer.model, limit * batches)
            summed = f", the sum over {batches} batches" if batches > 1 else ""
            return f"a gradient is larger than {limit:g}; {found}{summed}", GradientError
        if config.max_loss and loss > config.max_loss:
            return f"the loss is {loss:.6g}, more than {config.max_loss:g}", DivergedError
        return "", DivergedError

    def _unusual(self, loss, norm, loss_z, norm_z):
        if self.config.skip_loss_z and loss_z > self.config.skip_loss_z:
            return f"the loss of {loss:.6g} has a z-score of {loss_z:.2f}"
        if self.config.skip_grad_z and norm_z > self.config.skip_grad_z:
            return f"the gradient norm of {norm:.6g} has a z-score of {norm_z:.2f}"
        return ""


def first_bad_tensor(model, limit=math.inf):
    """Words for the first parameter or gradient, in file order, with an element that is not finite or beyond `limit`
    (gradients only); a stacked tensor is named with its layer."""
    for what, arena, bound in (("the parameter", model.params, math.inf), ("the gradient of", model.grads, limit)):
        for name in arena:
            tensor = arena[name]
            parts = enumerate(tensor) if tensor.ndim > 2 else [(None, tensor)]
            for layer, part in parts:
                most = largest(part)
                if not most < math.inf or most > bound:
                    found = f"{most:.6g}" if most < math.inf else "NaN or infinity"
                    return f"{what} {name}{'' if layer is None else f'[{layer}]'} holds {found}"
    return "all parameters and gradients are finite"


def largest(array):
    """The largest magnitude of an array's elements; NaN if one is."""
    return max(float(np.max(array, initial=0)), -float(np.min(array, initial=0)))
