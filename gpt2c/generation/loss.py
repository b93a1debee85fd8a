"""The loss of a text as generation reads it: token by token, through slots."""

import numpy as np

from gpt2c.generation.beam import log_softmax
from gpt2c.generation.slots import Slots


class DecodedLoss:
    """In the place of Model.evaluate, for up to `count` sequences of up to `length` tokens at a time."""

    def __init__(self, model, count, length):
        self._slots = Slots(model, count, length)

    def evaluate(self, inputs, targets, continues=False):
        """The mean loss over the targets (B, T) that are not -1. `continues`: recurrent states are those after the last call."""
        for row in range(len(inputs) if not continues else 0):
            self._slots.cut(row, 0)
        losses = []
        for ids, wanted in zip(inputs.T, targets.T):
            logits = self._slots.step({row: [int(id)] for row, id in enumerate(ids)})
            losses += [-log_softmax(logits[row][0])[target] for row, target in enumerate(wanted) if target >= 0]
        return float(np.mean(losses))
