"""The length of a training run: batches per update, updates per epoch, updates in total."""

import math
from dataclasses import dataclass

from gpt2c.errors import UsageError


@dataclass(frozen=True)
class Length:
    """Counts of one run. A loader of world 1 beside several ranks is `dealt`: the ranks take its batches in turn."""

    dealt: bool
    micro_steps: int  # gradient accumulation: the loader's batches per update
    batches: int  # per update, over all ranks
    tokens_per_step: int
    batches_per_epoch: int  # of the loader
    epochs: float  # asked for; 0 where updates are counted
    total_steps: int

    def steps_in(self, epochs):
        """The number of updates in this many epochs, rounded to a whole one."""
        return math.floor(epochs * self.batches_per_epoch / self.micro_steps + 0.5)

    def epochs_done(self, step):
        """Completed epochs: the most whose end (`steps_in`) is at most `step` updates."""
        return ((2 * step + 1) * self.micro_steps - 1) // (2 * self.batches_per_epoch)

    @property
    def epochs_in_all(self):
        return math.ceil(self.epochs or self.total_steps * self.micro_steps / self.batches_per_epoch)


def length_of(config, loader, ranks):
    """The Length of a run with this loader on each of these ranks."""
    batch = loader.B * loader.T * loader.world
    if ranks.size > 1 and loader.world not in (1, ranks.size):
        raise UsageError(
            f"the loader is one of {loader.world} ranks, but there are {ranks.size}: give it world=1, and "
            f"its batches are dealt out, or world={ranks.size}"
        )
    dealt = loader.world < ranks.size
    lanes = hasattr(loader, "continues")
    if dealt and config.carries(lanes):
        raise UsageError("lanes that carry a state cannot be dealt out to several ranks: give the loader their rank and world")
    default = batch * config.update_batches(loader.T, lanes) * (ranks.size if dealt else 1)
    micro_steps, rest = divmod(config.total_batch_size or default, batch)
    if rest or micro_steps < 1:
        raise UsageError(
            f"the total batch size of {config.total_batch_size} tokens is no multiple of the batch of "
            f"{loader.B} x {loader.T} = {batch}"
        )
    batches = micro_steps if dealt else micro_steps * ranks.size
    target = config.target_val_loss or config.target_train_loss
    epochs = (target and config.max_epochs) or config.epochs or (1 if config.max_steps < 0 else 0)
    counts = (dealt, micro_steps, batches, batches * loader.B * loader.T, loader.num_batches, epochs)
    return Length(*counts, Length(*counts, 0).steps_in(epochs) if epochs else config.max_steps)
