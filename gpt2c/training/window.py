"""Truncated backpropagation through time: how far the gradient of a pass reaches back, and the state that it starts from.

TBPTT(k1, k2): for every k1 new chunks of the lanes one pass over the last k2, those before the new ones with target -1. It
starts from the state that an earlier pass left there, which is not computed again. Where k2 is the smaller, the new chunks are
taken in passes of k2.
"""

from collections import deque
from typing import NamedTuple

import numpy as np


class Past(NamedTuple):
    """An earlier pass, inside the window: the state that it began its new chunks with, and the inputs of these."""

    state: dict[str, np.ndarray]
    inputs: list[np.ndarray]  # (B, T) each


class Window:
    """The last chunks of the lanes, `new` of which are an update's, and the states between them.

    It is shorter where the lanes have just begun. All that it holds besides tokens are the states at the ends of the last
    reach / new passes.
    """

    def __init__(self, new, reach):
        self.new, self.reach = new, reach
        self.past = deque()  # of Past, the oldest first

    def __repr__(self):
        return f"<Window of {self.reach} chunks, {self.new} of them new>"

    @property
    def most(self):
        """New chunks that a pass takes at most."""
        return min(self.new, self.reach)

    @property
    def chunks(self):
        """Of each earlier pass, the oldest first: how many were new in it."""
        return [len(past.inputs) for past in self.past]

    def begin_anew(self):
        """What comes next does not reach back into what was."""
        self.past.clear()

    def pass_over(self, model, batches):
        """(inputs, targets, the first new position) of a pass whose new chunks are these; puts the model's state where it
        starts."""
        begun = {name: array.copy() for name, array in model.state.items()}
        old = [x for past in self.past for x in past.inputs]
        if self.past:
            model.state = self.past[0].state
        new, targets = ([part[i] for part in batches] for i in (0, 1))
        self.past.append(Past(begun, new))
        self.forget()
        if not old and len(new) == 1:
            return new[0], targets[0], 0
        x, y = np.concatenate([*old, *new], axis=1), np.concatenate([*old, *targets], axis=1)
        first = sum(chunk.shape[1] for chunk in old)
        y[:, :first] = -1
        return x, y, first

    def restore(self, states, chunks, inputs):
        """The window of which `past` had these states and chunks; `inputs` are those of all of them."""
        self.past.clear()
        for state, count in zip(states, chunks, strict=True):
            self.past.append(Past(state, inputs[:count]))
            inputs = inputs[count:]
        self.forget()

    def forget(self):
        """Lets go of what the next pass does not reach back to."""
        while sum(self.chunks) > max(self.reach - self.new, 0):
            self.past.popleft()
