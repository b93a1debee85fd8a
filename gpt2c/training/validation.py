"""Validation: the mean loss over fixed batches, the best so far, and how long ago it was."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Validations:
    """The history of validations, for the best checkpoint, early stopping and the plateau schedule."""

    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    waited: int = 0  # validations since the best, or since the plateau schedule last lowered the learning rate
    falls: int = 0

    def note(self, step, loss, config):
        """True if this is the best yet."""
        better = loss == loss and (self.best is None or not self.best <= loss)  # NaN never is, and is no best to beat
        if better:
            self.best, self.best_step = loss, step
        self.since_best = 0 if better else self.since_best + 1
        self.waited = 0 if better else self.waited + 1
        if config.lr_schedule == "plateau" and self.waited >= config.plateau_patience and self.falls < config.plateau_falls:
            self.waited, self.falls = 0, self.falls + 1
        return better


def own_turns(loader, batches, ranks):
    """The numbers of this rank's batches among this many; the loader skips the others."""
    for number in range(batches):
        if number % ranks.size == ranks.rank:
            yield number
        else:
            loader.skip()


def evaluate(model, loader, batches, ranks, carries, should_stop):
    """The mean loss over the first so many batches of a loader (-1: all); None where it was abandoned.

    If the hidden state is carried from batch to batch (`carries`), each rank evaluates its own lanes if it has any, else rank 0
    all.
    """
    loader.reset()
    batches, abandoned = loader.num_batches if batches < 0 else min(loader.num_batches, batches), False
    lanes = carries and hasattr(loader, "continues")
    own = lanes and loader.world == ranks.size
    losses = np.zeros((batches, ranks.size if own else 1))
    turns = range(batches if own or ranks.rank == 0 else 0) if lanes else own_turns(loader, batches, ranks)
    for number in turns:
        if abandoned := should_stop():
            break
        continues = lanes and loader.continues
        losses[number, ranks.rank if own else 0] = model.evaluate(*loader.next_batch(), continues)
    *losses, abandoned = ranks.all_reduce([*losses.ravel(), abandoned]).tolist()
    return None if abandoned else sum(losses) / len(losses)
