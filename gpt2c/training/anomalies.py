"""Telling that training goes wrong: numbers that are none, or far from what they were."""

import math

import numpy as np

WINDOW = 128  # updates that a z-score looks back on


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
