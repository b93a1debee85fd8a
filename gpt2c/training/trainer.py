"""Training as an iterator over updates; the loop is the caller's.

for step in gpt2c.Trainer(model, loader, val_loader, gpt2c.TrainConfig(max_steps=100)):
    print(step.step, step.loss)
"""

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from gpt2c.engine.flops import flops
from gpt2c.errors import DivergedError
from gpt2c.generation.decoder import generate
from gpt2c.models.files import save
from gpt2c.models.model import Model
from gpt2c.support.files import StrPath
from gpt2c.support.rng import Xorshift
from gpt2c.training import state
from gpt2c.training.anomalies import Watch, first_bad_tensor
from gpt2c.training.config import TrainConfig, seconds
from gpt2c.training.gradients import accumulate, mean_over_ranks
from gpt2c.training.length import length_of
from gpt2c.training.optimizers import Optimizer, tensor_bounds, tensor_rates
from gpt2c.training.ranks import world
from gpt2c.training.schedules import learning_rate, rate_of_epoch
from gpt2c.training.validation import Validations, evaluate
from gpt2c.training.window import Window


class Step(NamedTuple):
    """One update, as the Trainer reports it."""

    step: int  # from 0
    loss: float  # mean over the update's tokens
    lr: float
    grad_norm: float  # before clipping
    ms: float
    tokens: int  # seen since the start of training
    tok_s: float  # of this update
    val_loss: float | None  # measured before this update, where it was time for it
    loss_z: float = math.nan  # how unusual the loss and the norm are among those of the last 128 updates
    norm_z: float = math.nan
    skipped: str = ""  # why the parameters were left as they were
    epoch: state.Epoch | None = None  # the account of the epoch that this update ended
    parts: dict = {}  # of the loss and beside it, by name, where a family has more than the cross-entropy


class Trainer:
    """Trains a model on a DataLoader. Iterate over it, as often and as far as you like; `step` counts updates done.

    Where MPI has started several ranks, each has a Trainer and calls the same methods, and all have the same parameters
    after each update. The batches of a loader of world 1 are dealt out: the ranks take them in turn, so the data of an update
    do not depend on the number of ranks. A loader of their world serves each rank's own batches.

    A validation belongs to the update that follows it. So a checkpoint holds the run as it was right after an update:
    what was measured and sampled since is measured and sampled again when it is resumed, with the same result.
    """

    def __init__(self, model: Model, loader: Any, val_loader: Any = None, config: TrainConfig | None = None) -> None:
        self.model, self.loader, self.val_loader, self.world = model, loader, val_loader, world()
        self.config = config = config or TrainConfig()
        self.step = self.tokens = 0
        self.validations, self.epoch = Validations(), state.Epoch()
        self.stopped = ""  # why training ended before its time
        self.should_stop = lambda: False  # polled during validation and sampling, which all ranks then abandon
        self.recorded: dict[str, Any] = {}  # further entries for checkpoints, about how the run was made
        self.warnings: list[str] = []  # what differs from what was asked for
        self.sampling = Xorshift(config.seed)
        model.seed = config.seed
        model.options = model.definition.checked(config.options)
        self._optimizer = Optimizer(
            model,
            config.optimizer,
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            momentum=config.momentum,
            dampening=config.dampening,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            decay_all=config.decay_all,
            rates=tensor_rates(config.tensor_rates),
            bounds=tensor_bounds(config.tensor_bounds),
            world=self.world,
            sharded=bool(config.zero),
        )
        self.length = length_of(config, loader, self.world)
        self.watch = Watch(config, self._optimizer, self.length.batches)
        lanes = hasattr(loader, "continues")
        self.carries = config.carries(lanes)
        self.window = self._window(lanes)
        self._deadline = time.monotonic() + seconds(config.max_time) if config.max_time else math.inf
        self._only_batch = loader.next_batch() if config.overfit else None
        self._after_update = state.snapshot(self)

    def _window(self, lanes):
        new, T, recurrent = self.length.micro_steps, self.loader.T, bool(self.model.definition.state)
        reach = self.config.reach(T, lanes, new) if recurrent else 1
        asked = math.ceil(self.config.backprop_tokens / T) or self.config.backprop_chunks
        if new < asked < reach:
            self.warnings.append(
                f"the gradient goes back through {reach} chunks, {asked} rounded up to a multiple of {new} per update"
            )
        return Window(new, reach)

    def __repr__(self) -> str:
        steps = f"step {self.step} of {self.total_steps}, {self.tokens_per_step} tokens each"
        return f"<gpt2c.Trainer of {self.model.family}: {steps}{', ' + self.stopped if self.stopped else ''}>"

    @property
    def total_steps(self):
        return self.length.total_steps

    @property
    def epochs(self):
        """Passes over the data in all; 0 where updates are counted."""
        return self.length.epochs

    @property
    def epochs_done(self):
        return self.length.epochs_done(self.step)

    @property
    def at_end_of_epoch(self):
        """Whether the last update ended one."""
        return self.step > 0 and not self.epoch.updates

    @property
    def micro_steps(self):
        """The loader's batches in an update."""
        return self.length.micro_steps

    @property
    def tokens_per_step(self):
        return self.length.tokens_per_step

    @property
    def part_of_moments(self):
        """This rank's shard of the optimizer's moments, as a function of their size; None for all of them."""
        return self.world.part if self.config.zero else None

    @property
    def flops_per_step(self):
        """Useful floating-point operations per update, over all ranks."""
        work = self.model.program(self.loader.B, self.loader.T)
        return self.length.batches * (flops(work.forward_program) + flops(work.backward_program))

    @property
    def going(self):
        """Whether there is another update to do."""
        return self.step < self.total_steps and not self.stopped

    def __iter__(self) -> Iterator[Step]:
        return self.steps(lambda val_loss: not self.world.all_reduce_max(self.should_stop())[0])

    def steps(self, before_update):
        """The Steps to come. `before_update` is asked before each, with what was validated or None; False, on all ranks at
        once, ends the iteration."""
        while self.going:
            val_loss = self.validate() if self.validation_due else None
            if not before_update(val_loss) or self.stopped:
                return
            yield self.update(val_loss)

    # ---- what happens before an update

    @property
    def validation_due(self):
        config = self.config
        return bool(self.val_loader and config.val_steps and config.val_every and self.step % config.val_every == 0)

    def evaluate(self) -> float | None:
        """The mean validation loss, always over the same batches; None where it was abandoned."""
        return evaluate(self.model, self.val_loader, self.config.val_steps, self.world, self.carries, self.should_stop)

    def validate(self) -> float | None:
        """Evaluates and records the result in `validations`; sets `stopped` where early stopping ends the run."""
        val_loss = self.evaluate()
        if val_loss is None:
            return None
        self.validations.note(self.step, val_loss, self.config)
        if val_loss <= self.config.target_val_loss:
            self.stopped = f"validation loss {val_loss:.6f} reached the target {self.config.target_val_loss:.6f}"
        elif self.config.patience and self.validations.since_best >= self.config.patience:
            self.stopped = f"{self.config.patience} validations without a better one"
        return val_loss

    @property
    def at_best(self):
        """Whether the parameters are now those of the best validation."""
        return self.validations.best_step == self.step

    def sample(self, prompt_ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0):
        """Ids generated by the current model; the random generator continues from the last sample."""
        ids = []
        for token in generate(self.model, prompt_ids, max_new_tokens, temperature, top_k, top_p, self.sampling):
            if self.should_stop():
                break
            ids.append(token)
        return ids

    # ---- an update

    def update(self, val_loss: float | None = None) -> Step:
        """One update: gradients over all its batches, then the optimizer. `val_loss` is only passed on."""
        start, optimizer, batches = time.perf_counter(), self._optimizer, self.length.batches
        told = accumulate(self.model, self.loader, self.length, self.world, self.window, self.carries, self._only_batch)
        loss, parts, late = mean_over_ranks(told, batches, self.world, time.monotonic() > self._deadline)
        optimizer.reduce_gradients()
        norm = optimizer.norm() / batches
        loss_z, norm_z, skipped = self.watch.judge(self.step, loss, norm)
        lr = self.learning_rate()
        if not skipped:
            optimizer.update(lr, self.step + 1, self._clip(norm) / batches)
        elapsed = time.perf_counter() - start
        ended = self._account(loss, norm, late)
        return Step(
            step=self.step - 1,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            ms=1000 * elapsed,
            tokens=self.tokens,
            tok_s=self.tokens_per_step / elapsed,
            val_loss=val_loss,
            loss_z=loss_z,
            norm_z=norm_z,
            skipped=skipped,
            epoch=ended,
            parts=parts if len(parts) > 1 else {},
        )

    def learning_rate(self):
        """The rate of the next update."""
        config, length = self.config, self.length
        shape = config.learning_rate, config.lr_schedule
        if config.lr_unit == "update":
            warmup = config.warmup_steps or length.steps_in(config.warmup_epochs)
            lr = learning_rate(self.step, self.total_steps, *shape, warmup, config.final_lr_frac)
        else:
            of = rate_of_epoch if config.lr_unit == "epoch-end" else learning_rate
            epoch = self.epochs_done + (config.lr_unit == "epoch-end")
            lr = of(epoch, length.epochs_in_all, *shape, config.warmup_epochs, config.final_lr_frac)
        return lr * config.plateau_factor**self.validations.falls

    def _clip(self, norm):
        """Gradient clipping: by value in place; returns the factor for the gradients that clips their norm."""
        config, batches = self.config, self.length.batches
        if config.clip_value:
            self._optimizer.clamp(config.clip_value * batches)  # they are sums over the batches
            norm = self._optimizer.norm() / batches
        return min(1.0, config.grad_clip / norm) if config.grad_clip and norm else 1.0

    def _account(self, loss, norm, late):
        """After an update: the snapshot for checkpoints, and reasons to stop. The Epoch that it ended, or None."""
        epochs, ended = self.epochs_done, None
        self.step += 1
        self.tokens += self.tokens_per_step
        self.epoch = self.epoch.plus(loss, norm)
        if self.epochs_done > epochs:
            ended, self.epoch = self.epoch, state.Epoch()
        if loss <= self.config.target_train_loss:
            self.stopped = f"training loss {loss:.6f} reached the target {self.config.target_train_loss:.6f}"
        elif late:
            self.stopped = f"after {self.config.max_time}, as asked"
        self._after_update = state.snapshot(self)
        return ended

    # ---- checkpoints

    def save(self, path: StrPath) -> None:
        """A checkpoint from which `restore` resumes bit-identically, on any number of ranks; rank 0 writes it. Parameters that
        are not finite are an error."""
        self._require_finite()
        done = self._after_update
        self._write(path, state.recorded(self, done), self._optimizer.moments(), done.step, self.validations.best)

    def save_weights(self, path: StrPath) -> None:
        """The parameters alone, as they are now, with the step and the best validation loss beside them."""
        self._require_finite()
        self._write(path, None, (), self.step, self.validations.best)

    def _write(self, path, *what):
        """On rank 0. The others wait until the file is there, or is not."""
        try:
            if self.world.rank == 0:
                save(path, self.model, *what)
        finally:
            self.world.barrier()

    def _require_finite(self):
        if not math.isfinite(self._optimizer.parameter_norm()):
            raise DivergedError(
                f"at step {self.step} {first_bad_tensor(self.model)}: not saved; resume from the last "
                "checkpoint with a lower learning rate, a longer warm-up, or clipped gradients"
            )

    def restore(self, run, data_position=True):
        """Restores the state of a run from its checkpoint; the model has its weights and moments already.

        Without `data_position` the loader stays where it is, to continue with other data.
        """
        state.restore(self, run, data_position)
        self._after_update = state.snapshot(self)
