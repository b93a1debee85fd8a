"""Training as an iterator: the loop belongs to the caller.

for step in gpt2c.Trainer(model, loader, val_loader, gpt2c.TrainConfig(max_steps=100)):
    print(step.step, step.loss)
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpt2c.engine.flops import flops
from gpt2c.errors import DivergedError, GradientError, InputError, UsageError
from gpt2c.formats.native import RunState, save
from gpt2c.generation.decoder import generate
from gpt2c.models.model import Model
from gpt2c.support.files import StrPath
from gpt2c.support.rng import Xorshift
from gpt2c.training.anomalies import Window, first_bad_tensor
from gpt2c.training.config import TrainConfig, seconds
from gpt2c.training.optimizers import Optimizer, tensor_bounds, tensor_rates
from gpt2c.training.ranks import world
from gpt2c.training.schedules import learning_rate, rate_of_epoch

SKIPS_IN_A_ROW = 10  # after so many updates left out one after the other, leaving out does not help


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
    epoch: "Epoch | None" = None  # the account of the epoch that this update ended
    parts: dict = {}  # of the loss and beside it, by name, where a family has more than the cross-entropy


@dataclass
class Validations:
    """What the validations so far amount to."""

    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    waited: int = 0  # since the best or the last fall of the rate
    falls: int = 0

    def note(self, step, loss, config):
        """True if this is the best yet."""
        better = self.best is None or loss < self.best
        if better:
            self.best, self.best_step = loss, step
        self.since_best = 0 if better else self.since_best + 1
        self.waited = 0 if better else self.waited + 1
        if config.lr_schedule == "plateau" and self.waited >= config.plateau_patience and self.falls < config.plateau_falls:
            self.waited, self.falls = 0, self.falls + 1
        return better


@dataclass
class Epoch:
    """Sums over the updates of the epoch that is going on."""

    updates: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0

    def plus(self, loss, grad_norm):
        return Epoch(self.updates + 1, self.loss + loss, self.grad_norm + grad_norm)


@dataclass
class Snapshot:
    """What a checkpoint says of a run besides the model and the data's position."""

    step: int = 0  # updates done
    tokens: int = 0
    skipped_in_a_row: int = 0
    sampling: int = 0  # the state of the sampling generator
    validations: Validations = field(default_factory=Validations)
    epoch: Epoch = field(default_factory=Epoch)


class Trainer:
    """Trains a model on a DataLoader. Iterate over it, as often and as far as you like; `step` counts updates done.

    Where MPI has started several ranks, each has a Trainer and calls the same methods, and all have the same parameters
    after each update. A loader of world 1 is dealt out: the ranks take its batches in turn, so what an update sees does not
    depend on their number. One whose world is theirs serves a rank's own.

    A validation belongs to the update that follows it. So a checkpoint holds the run as it was right after an update:
    what was measured and sampled since is measured and sampled again when it is resumed, with the same result.
    """

    def __init__(self, model: Model, loader: Any, val_loader: Any = None, config: TrainConfig | None = None) -> None:
        self.model, self.loader, self.val_loader, self.world = model, loader, val_loader, world()
        self.config = config = config or TrainConfig()
        self.step = self.tokens = 0
        self.validations, self.epoch = Validations(), Epoch()
        self.stopped = ""  # why training ended before its time
        self.should_stop = lambda: False  # asked on the way through validation and sampling, which all ranks then abandon
        self.recorded: dict[str, Any] = {}  # more that checkpoints should say of how the run was made
        self.sampling = Xorshift(config.seed)
        self._skipped_in_a_row = 0
        self._losses, self._norms = Window(), Window()
        model.seed = config.seed
        if config.balance_loss and "router" not in model.params:
            raise UsageError(
                f"balance_loss is {config.balance_loss:g}, but this {model.family} has no experts to choose among: leave it out"
            )
        model.balance_loss = config.balance_loss
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
        batch = loader.B * loader.T * loader.world
        if self.world.size > 1 and loader.world not in (1, self.world.size):
            raise UsageError(
                f"the loader is one of {loader.world} ranks, but there are {self.world.size}: give it world=1, and "
                f"its batches are dealt out, or world={self.world.size}"
            )
        self._dealt = loader.world < self.world.size
        lanes = hasattr(loader, "continues")
        self._goes_on, self._window = config.carries(lanes), config.window(loader.T, lanes)
        updates = math.ceil(config.update_tokens / loader.T) or config.update_chunks if lanes and not config.overfit else 1
        default = batch * updates * (self.world.size if self._dealt else 1)
        self.micro_steps, rest = divmod(config.total_batch_size or default, batch)  # of the loader's batches
        if rest or self.micro_steps < 1:
            raise UsageError(
                f"the total batch size of {config.total_batch_size} tokens is no multiple of the batch of "
                f"{loader.B} x {loader.T} = {batch}"
            )
        target = config.target_val_loss or config.target_train_loss
        self.epochs = (target and config.max_epochs) or config.epochs or (1 if config.max_steps < 0 else 0)
        self.total_steps = self._steps_in(self.epochs) if self.epochs else config.max_steps
        self._deadline = time.monotonic() + seconds(config.max_time) if config.max_time else math.inf
        self._first_batch = loader.next_batch() if config.overfit else None
        self._after_update = self._snapshot()

    def _steps_in(self, epochs):
        """The updates after which so many epochs are over, to the nearest whole one."""
        return math.floor(epochs * self.loader.num_batches / self.micro_steps + 0.5)

    @property
    def epochs_done(self):
        """Whole epochs behind: the most whose end (`_steps_in`) is no later than now."""
        return ((2 * self.step + 1) * self.micro_steps - 1) // (2 * self.loader.num_batches)

    @property
    def at_end_of_epoch(self):
        """Whether the last update ended one."""
        return self.step > 0 and not self.epoch.updates

    @property
    def epochs_in_all(self):
        return math.ceil(self.epochs or self.total_steps * self.micro_steps / self.loader.num_batches)

    @property
    def _batches(self):
        """Batches of all ranks in an update."""
        return self.micro_steps if self._dealt else self.micro_steps * self.world.size

    @property
    def tokens_per_step(self):
        return self._batches * self.loader.B * self.loader.T

    @property
    def part_of_moments(self):
        """The part of the optimizer's moments that this rank keeps, as a function of their size; None for all of them."""
        return self.world.part if self.config.zero else None

    @property
    def flops_per_step(self):
        """Useful floating-point operations of one update, of all ranks together."""
        work = self.model.program(self.loader.B, self.loader.T)
        return self._batches * (flops(work.forward_program) + flops(work.backward_program))

    @property
    def going(self):
        """Whether there is another update to do."""
        return self.step < self.total_steps and not self.stopped

    def __iter__(self) -> Iterator[Step]:
        while self.going:
            val_loss = self.validate() if self.validation_due else None
            if self.stopped or self.world.most(self.should_stop())[0]:
                return
            yield self.update(val_loss)

    # ---- what happens before an update

    @property
    def validation_due(self):
        config = self.config
        return bool(self.val_loader and config.val_steps and config.val_every and self.step % config.val_every == 0)

    def evaluate(self):
        """The mean validation loss, always over the same batches; None where it was abandoned."""
        self.val_loader.reset()
        batches, abandoned = self.val_loader.num_batches, False
        if self.config.val_steps >= 0:
            batches = min(batches, self.config.val_steps)
        lanes = self._goes_on and hasattr(self.val_loader, "continues")
        own = lanes and self.val_loader.world == self.world.size  # each rank has lanes of its own, else rank 0 has all
        losses = np.zeros((batches, self.world.size if own else 1))
        turns = range(batches if own or self.world.rank == 0 else 0) if lanes else self._turns(self.val_loader, batches)
        for number in turns:
            if abandoned := self.should_stop():
                break
            continues = lanes and self.val_loader.continues
            losses[number, self.world.rank if own else 0] = self.model.evaluate(*self.val_loader.next_batch(), continues)
        *losses, abandoned = self.world.sum([*losses.ravel(), abandoned]).tolist()
        return None if abandoned else sum(losses) / len(losses)

    def _turns(self, loader, batches):
        """The numbers of this rank's among so many batches; the loader leaves out the others."""
        for number in range(batches):
            if number % self.world.size == self.world.rank:
                yield number
            else:
                loader.skip()

    def validate(self) -> float | None:
        """Evaluates and keeps account of it: `validations` has the best, `stopped` says whether that is enough."""
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
        """Ids generated by the model as it is now; the generator goes on where the last sample left it."""
        ids = []
        for token in generate(self.model, prompt_ids, max_new_tokens, temperature, top_k, top_p, self.sampling):
            if self.should_stop():
                break
            ids.append(token)
        return ids

    # ---- an update

    def update(self, val_loss: float | None = None) -> Step:
        """One update: gradients over all its batches, then the optimizer. `val_loss` is only passed on."""
        start, optimizer = time.perf_counter(), self._optimizer
        loss, parts, late = self._agreed(self._losses_and_gradients())
        optimizer.reduce()
        norm = optimizer.norm() / self._batches
        loss_z, norm_z = self._losses.push(loss), self._norms.push(norm)
        skipped = self._anomaly(loss, norm, loss_z, norm_z)
        lr = self.learning_rate()
        if not skipped:
            optimizer.update(lr, self.step + 1, self._clip(norm) / self._batches)
        elapsed = time.perf_counter() - start
        ended = self._account(loss, norm, late)
        return Step(
            self.step - 1,
            loss,
            lr,
            norm,
            1000 * elapsed,
            self.tokens,
            self.tokens_per_step / elapsed,
            val_loss,
            loss_z,
            norm_z,
            skipped,
            ended,
            parts if len(parts) > 1 else {},
        )

    def _losses_and_gradients(self):
        """{number: {"loss" and its parts by name: value}} of this rank's batches; the model has the sum of their gradients."""
        model, told, dropout = self.model, {}, self.model.dropout_counter
        dealt = self._dealt and not self._first_batch
        for number in (
            self._turns(self.loader, self._batches) if dealt else range(self.world.rank, self._batches, self.world.size)
        ):
            if not (self._goes_on and self.loader.continues):
                model.reset_state()
            x, y = self._first_batch or self.loader.next_batch()
            model.dropout_counter = dropout + number  # masks do not depend on who computes the batch
            loss = model.loss_and_grad(x, y, add=bool(told), window=self._window, train=True)
            told[number] = {"loss": loss} | model.metrics
        model.dropout_counter = dropout + self._batches
        if not told:  # there are fewer batches than ranks
            model.zero_grad()
        return told

    def _agreed(self, told):
        """(the mean loss, {part: its mean}, whether it is too late to go on), over the batches of all ranks, in their order.
        The first batch is rank 0's, which so has all names."""
        names = list(next(iter(told.values()), {}))
        (columns,) = self.world.most(len(names))
        table = np.zeros((self._batches, int(columns)))
        for number, row in told.items():
            table[number] = list(row.values())
        *values, late = self.world.sum([*table.ravel(), time.monotonic() > self._deadline]).tolist()
        loss, *parts = (sum(value / self._batches for value in values[at :: len(table.T)]) for at in range(len(table.T)))
        return loss, dict(zip(names[1:], parts)), late

    def learning_rate(self):
        """The rate of the next update."""
        config, validations = self.config, self.validations
        shape = config.learning_rate, config.lr_schedule
        if config.lr_unit == "update":
            warmup = config.warmup_steps or self._steps_in(config.warmup_epochs)
            lr = learning_rate(self.step, self.total_steps, *shape, warmup, config.final_lr_frac)
        else:
            of = rate_of_epoch if config.lr_unit == "epoch-end" else learning_rate
            epoch = self.epochs_done + (config.lr_unit == "epoch-end")
            lr = of(epoch, self.epochs_in_all, *shape, config.warmup_epochs, config.final_lr_frac)
        return lr * config.plateau_factor**validations.falls

    def _clip(self, norm):
        """Clips single elements in place; what is left to multiply the gradients with for their norm's sake."""
        config = self.config
        if config.clip_value:
            self._optimizer.clamp(config.clip_value * self._batches)  # they are sums over the batches
            norm = self._optimizer.norm() / self._batches
        return min(1.0, config.grad_clip / norm) if config.grad_clip and norm else 1.0

    def _anomaly(self, loss, norm, loss_z, norm_z):
        """Why this update should be left out; "" where all is well. A DivergedError where training should not go on."""
        config, unusual, error = self.config, False, DivergedError
        limit = config.max_grad_value
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._optimizer.gather()
            why = f"the loss is {loss} and the gradient norm {norm}; {first_bad_tensor(self.model)}"
        elif limit and self._optimizer.largest() > limit * self._batches:
            self._optimizer.gather()
            found, error = first_bad_tensor(self.model, limit * self._batches), GradientError
            why = f"a gradient is larger than {limit:g}; {found}" + (
                f", the sum over {self._batches} batches" if self._batches > 1 else ""
            )
        elif config.max_loss and loss > config.max_loss:
            why = f"the loss is {loss:.6g}, more than {config.max_loss:g}"
        else:
            unusual = True
            if config.skip_loss_z and loss_z > config.skip_loss_z:
                why = f"the loss of {loss:.6g} has a z-score of {loss_z:.2f}"
            elif config.skip_grad_z and norm_z > config.skip_grad_z:
                why = f"the gradient norm of {norm:.6g} has a z-score of {norm_z:.2f}"
            else:
                self._skipped_in_a_row = 0
                return ""
        action = config.on_anomaly if config.on_anomaly != "auto" else "skip" if unusual else "stop"
        self._skipped_in_a_row += 1
        if action == "skip" and self._skipped_in_a_row <= SKIPS_IN_A_ROW:
            return why
        again = f", and {SKIPS_IN_A_ROW} updates before it were skipped" if action == "skip" else ""
        raise error(f"at step {self.step} {why}{again}: lower the learning rate, warm up longer, or clip the gradients")

    def _account(self, loss, norm, late):
        """After an update: what a checkpoint goes back to, and reasons to stop. The Epoch that it ended, or None."""
        epochs, ended = self.epochs_done, None
        self.step += 1
        self.tokens += self.tokens_per_step
        self.epoch = self.epoch.plus(loss, norm)
        if self.epochs_done > epochs:
            ended, self.epoch = self.epoch, Epoch()
        if loss <= self.config.target_train_loss:
            self.stopped = f"training loss {loss:.6f} reached the target {self.config.target_train_loss:.6f}"
        elif late:
            self.stopped = f"after {self.config.max_time}, as asked"
        self._after_update = self._snapshot()
        return ended

    # ---- checkpoints

    def _snapshot(self):
        return Snapshot(
            self.step, self.tokens, self._skipped_in_a_row, self.sampling.state, dataclasses.replace(self.validations), self.epoch
        )

    def save(self, path: StrPath) -> None:
        """A checkpoint from which `restore` continues with the same bits, on any number of ranks; rank 0 writes it. What
        diverged is not saved."""
        self._require_finite()
        done, loader = self._after_update, self.loader.state()
        arrays = {f"loader.{name}": value for name, value in loader.items() if not isinstance(value, int)}
        if self._goes_on and self.loader.continues:
            arrays |= {f"carried.{name}": array for name, array in self._carried().items()}
        arrays |= {"window.loss": self._losses.values, "window.norm": self._norms.values}
        self._write(
            path,
            RunState(
                values=dataclasses.asdict(done)
                | {
                    "windows": [self._losses.count, self._norms.count],
                    "dropout": [self.model.seed, self.model.dropout_counter],
                    "loader": {name: value for name, value in loader.items() if isinstance(value, int)},
                    "config": dataclasses.asdict(self.config) | self._batch_sizes() | self.recorded,
                },
                arrays=arrays,
            ),
            self._optimizer.moments(),
            done.step,
            self.validations.best,
        )

    def _write(self, path, *what):
        """On rank 0. The others wait until the file is there, or is not."""
        try:
            if self.world.rank == 0:
                save(path, self.model, *what)
        finally:
            self.world.wait()

    def _batch_sizes(self):
        """What has to be recorded for the updates to stay the same on another number of ranks: the tokens of an update, or
        where each row is a lane that goes on, their number."""
        if hasattr(self.loader, "continues"):
            return {"batch_size": self.config.batch_size * self.world.size}
        return {"total_batch_size": self.tokens_per_step}

    def _carried(self):
        """What the model takes over from one update to the next, of all ranks: their lanes side by side."""
        carried = self.model.carried(self._window)
        if self.world.size == 1:
            return carried
        lanes = {
            name: np.concatenate(self.world.stack(array), axis=1) for name, array in carried.items() if name.startswith("state.")
        }
        return lanes | {f"ranks.{name}": self.world.stack(array) for name, array in carried.items() if name not in lanes}

    def _carry(self, carried):
        """Goes on from `_carried`, of any number of ranks. A window that reaches back into chunks that other ranks have
        computed begins anew."""
        rank, size, B = self.world.rank, self.world.size, self.loader.B
        states = {name: array[:, rank * B : (rank + 1) * B] for name, array in carried.items() if name.startswith("state.")}
        ours = "chain." if size == 1 else "ranks.chain."
        chain = {
            name.removeprefix("ranks."): array if size == 1 else array[rank]
            for name, array in carried.items()
            if name.startswith(ours) and (size == 1 or len(array) == size)
        }
        self.model.carry(states | chain)

    def save_weights(self, path: StrPath) -> None:
        """The parameters alone, as they are now, with the step and the best validation loss beside them."""
        self._require_finite()
        self._write(path, None, (), self.step, self.validations.best)

    def _require_finite(self):
        if not math.isfinite(self._optimizer.parameter_norm()):
            raise DivergedError(
                f"at step {self.step} {first_bad_tensor(self.model)}: not saved; go on from the last "
                "checkpoint with a lower learning rate, a longer warm-up, or clipped gradients"
            )

    def restore(self, run, data_position=True):
        """Goes to where a checkpoint of such a run was saved; the model has its weights and moments already.

        Without `data_position` the loader stays where it is, to go on with other data.
        """
        values, arrays = run.values, run.arrays
        recorded = values.get("config", {}).get("optimizer", self.config.optimizer)
        if recorded != self.config.optimizer:
            raise UsageError(
                f"the checkpoint holds the moments of {recorded}, not of {self.config.optimizer}: resume with "
                f"--optimizer {recorded}, or take its weights alone with --init-from"
            )
        try:
            step, tokens = values["step"], values["tokens"]
            validations, epoch = Validations(**values["validations"]), Epoch(**values["epoch"])
            sampling, skipped = Xorshift(values["sampling"]), values["skipped_in_a_row"]
            seed, counter = values["dropout"]
            if min(step, tokens, skipped, counter, *values["windows"]) < 0:
                raise ValueError
            windows = [
                (count, np.array(arrays[f"window.{name}"], np.float64).reshape(self._losses.values.shape))
                for count, name in zip(values["windows"], ("loss", "norm"))
            ]
            position = values["loader"] | {
                name.removeprefix("loader."): array for name, array in arrays.items() if name.startswith("loader.")
            }
            if data_position:
                self.loader.restore(position)
            self._carry({name.removeprefix("carried."): array for name, array in arrays.items() if name.startswith("carried.")})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, (UsageError, InputError)):
                raise
            raise InputError(f"the checkpoint's account of its run is damaged ({error}): use another checkpoint") from None
        self.step, self.tokens, self.validations, self.epoch = step, tokens, validations, epoch
        self.sampling, self._skipped_in_a_row = sampling, skipped
        self.model.seed, self.model.dropout_counter = int(seed), int(counter)
        for window, (count, past) in zip((self._losses, self._norms), windows):
            window.count, window.values = count, past
        self._after_update = self._snapshot()
