"""The training loop around a Trainer: validate, sample, update, log, save, until it is done or has to stop."""

import dataclasses
import math
import resource
import signal
import time

from gpt2c import settings
from gpt2c.engine.peak import measured_peak, raised, unit
from gpt2c.errors import DivergedError, Gpt2cError, UsageError
from gpt2c.models.files import newest, read
from gpt2c.runs.logs import read_metrics
from gpt2c.support import pictures
from gpt2c.support.machine import in_units
from gpt2c.support.progress import duration

# Lines printed at the end of an epoch, for the last checkpoint of a run in epochs, and for a sample. A family may have its own.
LINES = dict(
    epoch="epoch completed: epoch={epoch} loss={loss:.6f} grad_norm={grad_norm:.4f} learning_rate={lr:.3e} step={step}",
    saved="",
    sample="generating:\n---\n{text}\n---",
)
ROLLBACKS = 3  # to the same checkpoint; then rolling back does not help
SILENCE = 10.0  # seconds after which a run that counts in epochs shows a step all the same


class Loop:
    """One run of the training program. `flags` are those of train.py that say when to sample, save and tell."""

    def __init__(self, trainer, flags, run, stop, console):
        self.trainer, self.flags, self.run, self.stop, self.console = trainer, flags, run, stop, console
        self.world = trainer.world
        self.by_epoch = bool(trainer.epochs)  # what --save-every and --log-every count
        self._lines = LINES | trainer.model.definition.lines
        self._told = time.monotonic()
        self._best_epoch = math.inf  # the least loss of one
        self._board = None
        self._leaving = False  # because a rank was told to
        self._unsaved = False  # whether the last save failed
        self._validated = None  # the step of the last validation
        self._rolled_back = {}  # how often, by the step gone back to
        tokenizer = trainer.model.tokenizer
        if flags.prompt and tokenizer is None:
            raise UsageError("--prompt needs a tokenizer; name its file with --tokenizer")
        self._prompt = tokenizer.prompt(flags.prompt) if tokenizer else [0]
        trainer.should_stop = lambda: bool(stop)

    def train(self):
        """Returns the exit code."""
        trainer, console = self.trainer, self.console
        self._began, self._first = time.monotonic(), trainer.step
        self.stop.training = True
        self._board = board(self.flags.report_to, self.run, trainer.step) if self.world.rank == 0 else None
        self._retain()  # a disk that was full may have room then
        self._arithmetic = tuple(settings.info()[name] for name in ("isa", "matmul_precision"))
        self._unit, self._peak = unit(*self._arithmetic), measured_peak(*self._arithmetic)
        self._work = trainer.flops_per_step
        console.info(
            f"run: {trainer.total_steps} updates of {trainer.tokens_per_step} tokens, {self._work / 1e9:.1f} GFLOP "
            f"each; {self._unit} peak {self._peak:.0f} GFLOP/s{' per rank' * (self.world.size > 1)}; files in {self.run}"
        )
        console.start_bar(trainer.total_steps, trainer.step)
        while trainer.going and not self._leaving:
            try:
                for step in trainer.steps(self.before_update):
                    self.tell(step)
                    if (trainer.going or self.flags.save_path) and self._save_due(step):
                        self.save_on_the_way()
            except DivergedError as error:
                self.roll_back(error)
        console.end_bar()
        return self.finish()

    def finish(self):
        """The last checkpoint, then the last validation, sample and picture."""
        trainer, path, why = self.trainer, self.run.last(self.trainer.step), self.trainer.stopped
        if self.flags.save_on_complete or self._leaving:
            self.run.save_last(trainer.save, path, self.world)
            self._name_too(path, "last", "epoch")
            self._retain()
            if path and self._lines["saved"] and self._best_epoch < math.inf:
                self.console.info(
                    self._lines["saved"].format(
                        seconds=time.monotonic() - self._began,
                        best=self._best_epoch,
                        path=path,
                        megabytes=path.stat().st_size / 2**20,
                    )
                )
        else:
            path = "not saved (--no-save-on-complete)"
        pictured = self.look_back()
        why = signal.Signals(self.stop.signal).name if self.stop else why
        self.console.info(
            f"{'stopped: ' + why if why else 'done'}: step {trainer.step} of {trainer.total_steps} in "
            f"{duration(time.monotonic() - self._began)}, peak memory "
            f"{in_units(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}; checkpoint {path}"
            f"{', curve in loss.png' if pictured else ''}"
        )
        return self.stop.exit_code

    def look_back(self):
        """What follows the last update: a validation, a sample and a picture, as far as the logs have them not. Whether
        there is a picture."""
        trainer, stop, step = self.trainer, self.stop, self.trainer.step
        stop.training = True
        wanted = trainer.val_loader and trainer.config.val_steps and self._validated != step
        if wanted and not self.world.all_reduce_max(bool(stop) or self.run.has_validation(step))[0]:
            self._forget(step)  # what a killed run has written to one of the logs
            val_loss = trainer.validate()
            if val_loss is not None:
                self.tell_validation(val_loss)
        if self.flags.sample_every and not stop and not self.run.has_sample(step):
            self.sample()
        if self._board:
            self._board.close()
        return self.run.folder and pictures.available() and self._draw()

    def _draw(self):
        try:
            name = self.run.folder.name
            pictures.loss_curves({name: read_metrics(self.run.folder)}, self.run.folder / "loss.png")
        except Gpt2cError as error:  # a run that was stopped before its first update has no rows
            self.console.debug(f"no picture: {error}")
            return False
        return True

    # ---- before an update

    def before_update(self, val_loss):
        """Reports a validation, samples and saves if they are due; False if the run has to stop."""
        if val_loss is not None:
            self.tell_validation(val_loss)
        if self._due(self.flags.sample_every) and not self.trainer.stopped:
            self.sample()
        self._leaving, save = self.stop.agreed(self.world)
        if save and not (self._leaving or self.trainer.stopped):
            self.save_on_the_way()
        return not self._leaving

    def tell_validation(self, val_loss):
        """Prints it, logs it if no update follows that would, and saves the weights if they are the best."""
        trainer = self.trainer
        self._validated = trainer.step
        self.console.info(f"val loss {val_loss:.6f}")
        if trainer.at_best:
            self._try_to_save(trainer.save if self.flags.resumable_best else trainer.save_weights, self.run.best, "best")
        if trainer.stopped or not trainer.going:
            self._log(trainer.step, val_loss, tokens=trainer.tokens)

    def _due(self, every):
        return every > 0 and self.trainer.step and self.trainer.step % every == 0

    def sample(self):
        """Prints a sample as llm.c does and adds it to samples.txt; ids where there is no tokenizer. Rank 0 alone does so."""
        if self.stop or self.world.rank:
            return
        flags, tokenizer = self.flags, self.trainer.model.tokenizer
        ids = self.trainer.sample(self._prompt, flags.sample_len, flags.temperature, flags.sample_top_k, flags.sample_top_p)
        if self.stop:
            return
        if tokenizer:
            texts = [[]]
            for i in ids:
                texts.append([]) if i in (tokenizer.eot, tokenizer.opens) else texts[-1].append(i)
            text = flags.prompt + "\n\n".join(map(tokenizer.decode, texts))
        else:
            text = " ".join(map(str, ids))
        self.console.info(self._lines["sample"].format(text=text, temperature=flags.temperature, count=len(ids), rule="-" * 70))
        self.run.append("samples.txt", f"--- step {self.trainer.step}\n{text}")

    # ---- after an update

    def tell(self, step):
        """The step's line where it is time for one, the epoch's where it ended one, and the logs."""
        trainer, console = self.trainer, self.console
        done, total = trainer.step, trainer.total_steps
        if step.skipped:
            console.warning(f"step {step.step} left the parameters as they were: {step.skipped}")
        console.advance(done, f"loss {step.loss:.4f}, {step.tok_s:.0f} tok/s")
        every, silent = self.flags.log_every, time.monotonic() - self._told > SILENCE
        if self.by_epoch:
            wanted = silent and every
        else:
            wanted = every and step.step % every == 0 or done == total
        if wanted and not console.has_bar:
            console.info(self._line(step))
            self._told = time.monotonic()
        if step.epoch:
            epochs, (updates, loss, norm) = trainer.epochs_done, dataclasses.astuple(step.epoch)
            shown = self.by_epoch and every and (epochs == 1 or epochs % every == 0 or done == total)
            (console.info if shown else console.debug)(
                self._lines["epoch"].format(
                    epoch=epochs,
                    loss=loss / updates,
                    grad_norm=norm / updates,
                    lr=step.lr,
                    step=done,
                    seconds=time.monotonic() - self._began,
                )
            )
            self._best_epoch = min(loss / updates, self._best_epoch)
        self._log(
            step.step,
            step.val_loss,
            tokens=step.tokens,
            loss=step.loss,
            lr=step.lr,
            grad_norm=step.grad_norm,
            ms=round(step.ms, 3),
            tok_s=round(step.tok_s, 1),
            **step.parts,
        )

    def _line(self, step):
        done, total = self.trainer.step, self.trainer.total_steps
        left = (total - done) * (time.monotonic() - self._began) / max(1, done - self._first)
        loss, norm = (
            f"{value} ({z:+.2f}z)" if z == z else value
            for value, z in ((f"{step.loss:.6f}", step.loss_z), (f"{step.grad_norm:.4f}", step.norm_z))
        )
        speed = self._work / self.world.size / step.ms / 1e6  # of each rank, in GFLOP/s
        self._peak = raised(self._peak, speed, *self._arithmetic)
        return (
            f"step {done:4d}/{total} | loss {loss} | norm {norm} | lr {step.lr:.2e} | {step.ms:.2f} ms | "
            f"{100 * speed / self._peak:.1f}% of {self._unit} peak | {step.tok_s:.0f} tok/s | "
            f"eta {duration(left)}"
        )

    def _log(self, step, val_loss, **row):
        self.run.log(step, val_loss, **row)
        if self._board:
            for name, value in row.items() | {("val_loss", val_loss)}:
                if value is not None:
                    self._board.add_scalar(name, value, step)

    # ---- checkpoints

    def _save_due(self, step):
        every = self.flags.save_every
        if not every:
            return False
        if self.by_epoch:
            return step.epoch is not None and self.trainer.epochs_done % every == 0
        return self.trainer.step % every == 0

    def save_on_the_way(self):
        self.stop.save = False
        epoch = self.trainer.epochs_done if self.by_epoch else None
        if self._try_to_save(self.trainer.save, self.run.on_the_way(self.trainer.step, epoch), "epoch"):
            self._retain()

    def _name_too(self, path, *kinds):
        try:
            for kind in kinds:
                if kind != "epoch" or self.trainer.at_end_of_epoch:
                    self.run.name_too(path, kind, self.trainer.epochs_done)
        except Gpt2cError as error:
            self.console.warning(f"{path} has no second name: {error}")

    def _try_to_save(self, save, path, kind):
        """True if the checkpoint was saved; a failure is a warning, as the disk may have room the next time."""
        start = time.perf_counter()
        try:
            self.run.save(save, path, self.world)
        except DivergedError:
            raise
        except Gpt2cError as error:
            self.console.warning(f"not saved: {error}")
            self._unsaved = True
            return False
        self._name_too(path, kind)
        (self.console.info if self._unsaved else self.console.debug)(
            f"saved {'again: ' * self._unsaved}{path} in {time.perf_counter() - start:.2f} s"
        )
        self._unsaved = False
        return True

    def _retain(self):
        self.run.retain(self.flags.keep, self.trainer.step, self.flags.keep_major)

    def roll_back(self, error):
        """Rolls back to the newest checkpoint and continues with the data that follow; else raises the error."""
        trainer = self.trainer
        if trainer.config.on_anomaly != "rollback":
            raise error
        found = newest(self.run.checkpoints(), self.console.warning)
        path = self.world.broadcast(str(found.path) if found else "")
        if not path:
            raise DivergedError(f"{error}; there is no checkpoint to roll back to: choose a --save-every")
        content = found or read(path)
        trainer.restore(content.copy_to(trainer.model, trainer.part_of_moments), data_position=False)
        times = self._rolled_back[trainer.step] = self._rolled_back.get(trainer.step, 0) + 1
        if times > ROLLBACKS:
            raise DivergedError(f"{error}; rolled back to {content.path} {ROLLBACKS} times already")
        self.console.warning(f"{error}; rolled back to {content.path}, going on with the data that follow")
        self._forget(trainer.step)

    def _forget(self, step):
        try:
            self.run.forget(step)
        except Gpt2cError as error:
            self.console.warning(f"log lines from step {step} on stay: {error}")


def board(report_to, run, step):
    """A writer of TensorBoard's events, if asked for."""
    if report_to == "none":
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UsageError(
            '--report-to tensorboard needs tensorboardX, which is not installed: pip install "gpt2c[tensorboard]"'
        ) from None
    if not run.folder:
        raise UsageError("--report-to tensorboard needs a folder for its files: add --out-dir")
    return SummaryWriter(str(run.folder / "tensorboard"), purge_step=step)
