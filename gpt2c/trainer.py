"""Training as an iterator: the loop belongs to the caller.

    for step in gpt2c.Trainer(model, loader, val_loader, gpt2c.TrainConfig(max_steps=100)):
        print(step.step, step.loss)
"""
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

from gpt2c.checkpoint import RunState, save
from gpt2c.errors import DivergedError, UsageError
from gpt2c.flags import flag
from gpt2c.optim import SCHEDULES, AdamW, learning_rate
from gpt2c.rng import Xorshift
from gpt2c.sampler import generate
from gpt2c.work import flops


@dataclass
class TrainConfig:
    """How to train: what the Trainer needs to know besides the model and the data."""

    batch_size: int = flag(4, "sequences per batch", "-b", group="batches")
    seq_len: int = flag(64, "tokens per sequence", "-t", "--seq-length", "--block-size")
    total_batch_size: int = flag(0, "tokens per update, a multiple of batch size x sequence length; gradients of several "
                                 "batches are then averaged (0: one batch)", "-d", metavar="TOKENS")
    overfit: bool = flag(False, "train on the first batch only", "-a", "--overfit-single-batch")

    max_steps: int = flag(40, "updates in all, counted from the start of training; -1: one epoch", "-x", "--iters",
                          "--max-iters", group="length")
    epochs: float = flag(0.0, "passes over the training data in all, instead of --max-steps", "--num-epochs",
                         default_text="")
    max_time: str = flag("", "stop cleanly after this long, e.g. 90s, 10m or 2h", metavar="TIME")
    target_val_loss: float = flag(0.0, "stop when the validation loss is this low", "--target-valid-loss", default_text="")
    patience: int = flag(0, "stop after this many validations without a better one (0: never)")

    learning_rate: float = flag(1e-4, "the highest learning rate", "-l", "--lr", group="optimizer")
    lr_schedule: str = flag("constant", "how the rate falls", "-k", "--lr-scheduler", choices=SCHEDULES)
    warmup_steps: int = flag(0, "updates over which the rate rises to its highest", "-u", "--warmup-iters")
    final_lr_frac: float = flag(1.0, "where a falling rate ends, as a part of the highest", "-q", "--min-lr-factor")
    weight_decay: float = flag(0.0, "AdamW's decay, of matrices only", "-c")
    beta1: float = flag(0.9, "AdamW's decay of the mean of gradients", "--adam-beta1")
    beta2: float = flag(0.999, "AdamW's decay of the mean of their squares", "--adam-beta2")
    eps: float = flag(1e-8, "AdamW's epsilon", "--adam-epsilon")
    grad_clip: float = flag(0.0, "largest L2 norm of all gradients together (0: no limit)", "--max-grad-norm")

    val_every: int = flag(10, "validate before every Nth update (0: never)", "-v", "--eval-interval", group="validation")
    val_steps: int = flag(10, "batches per validation (-1: all, 0: never validate)", "-m", "--val-num-batches", "--eval-iters")

    seed: int = flag(1337, "of the initial weights, of dropout and of sampling", group="randomness")


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


def seconds(text):
    """A duration such as 90, 90s, 10m, 2h or 1.5d in seconds."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, factor = (text[:-1], unit[text[-1]]) if text[-1:] in unit else (text, 1)
    try:
        return float(number) * factor
    except ValueError:
        raise UsageError(f"{text!r} is not a duration; write 90s, 10m, 2h or 1d") from None


class Trainer:
    """Trains a model on a DataLoader. Iterate over it, as often and as far as you like; `step` counts updates done."""

    def __init__(self, model, loader, val_loader=None, config=None):
        self.model, self.loader, self.val_loader = model, loader, val_loader
        self.config = config = config or TrainConfig()
        for name in ("learning_rate", "warmup_steps", "weight_decay", "eps", "grad_clip", "val_every", "patience"):
            if not getattr(config, name) >= 0:  # a NaN neither
                raise UsageError(f"{name} is {getattr(config, name)}, expected at least 0")
        self.step = self.tokens = 0
        self.best_val_loss, self._validations_since_best = math.inf, 0
        self.stopped = ""  # why training ended before its time
        self.sampling = Xorshift(config.seed)
        model.seed = config.seed
        self._optimizer = AdamW(model, config.beta1, config.beta2, config.eps, config.weight_decay)
        batch = loader.B * loader.T * loader.world
        self.micro_steps, rest = divmod(config.total_batch_size or batch, batch)
        if rest or self.micro_steps < 1:
            raise UsageError(f"the total batch size of {config.total_batch_size} tokens is no multiple of the batch of "
                             f"{loader.B} x {loader.T} = {batch}")
        self.total_steps = self._total_steps()
        self._deadline = time.monotonic() + seconds(config.max_time) if config.max_time else math.inf
        self._first_batch = loader.next_batch() if config.overfit else None

    def _total_steps(self):
        epochs = self.config.epochs or (1 if self.config.max_steps < 0 else 0)
        return round(epochs * self.loader.num_batches / self.micro_steps) if epochs else self.config.max_steps

    @property
    def flops_per_step(self):
        """Useful floating-point operations of one update."""
        work = self.model.program(self.loader.B, self.loader.T)
        return self.micro_steps * (flops(work.forward_program) + flops(work.backward_program))

    def __iter__(self):
        while self.step < self.total_steps and not self.stopped:
            yield self.train_step()

    def train_step(self):
        """Validates if it is time for it, then does one update."""
        val_loss = self._validate_if_due()
        start = time.perf_counter()
        config, model = self.config, self.model
        loss = 0.0
        for micro_step in range(self.micro_steps):
            x, y = self._first_batch or self.loader.next_batch()
            loss += model.loss_and_grad(x, y, add=micro_step > 0, train=True) / self.micro_steps
        norm = self._optimizer.norm() / self.micro_steps
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"at step {self.step} the loss is {loss} and the gradient norm {norm}: lower the learning "
                                "rate, warm up longer, or clip the gradients")
        lr = learning_rate(self.step, self.total_steps, config.learning_rate, config.lr_schedule, config.warmup_steps,
                           config.final_lr_frac)
        clip = min(1.0, config.grad_clip / norm) if config.grad_clip and norm else 1.0
        self._optimizer.update(lr, self.step + 1, clip / self.micro_steps)
        elapsed = time.perf_counter() - start
        self.step += 1
        count = self.micro_steps * x.size
        self.tokens += count
        if time.monotonic() > self._deadline:
            self.stopped = f"after {config.max_time}, as asked"
        return Step(self.step - 1, loss, lr, norm, 1000 * elapsed, self.tokens, count / elapsed, val_loss)

    def evaluate(self):
        """The mean validation loss, always over the same batches."""
        self.val_loader.reset()
        batches = self.val_loader.num_batches
        if self.config.val_steps >= 0:
            batches = min(batches, self.config.val_steps)
        return sum(self.model.evaluate(*self.val_loader.next_batch()) for _ in range(batches)) / batches

    def _validate_if_due(self):
        config = self.config
        if not (self.val_loader and config.val_steps and config.val_every and self.step % config.val_every == 0):
            return None
        val_loss = self.evaluate()
        self.note_validation(val_loss)
        return val_loss

    def note_validation(self, val_loss):
        """Remembers the best validation loss and whether it is time to stop; True if this is the best."""
        better = val_loss < self.best_val_loss
        self.best_val_loss = min(self.best_val_loss, val_loss)
        self._validations_since_best = 0 if better else self._validations_since_best + 1
        if val_loss <= self.config.target_val_loss:
            self.stopped = f"validation loss {val_loss:.6f} reached the target {self.config.target_val_loss:.6f}"
        elif self.config.patience and self._validations_since_best >= self.config.patience:
            self.stopped = f"{self.config.patience} validations without a better one"
        return better

    def sample(self, prompt_ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0):
        """Ids generated by the model as it is now; the generator goes on where the last sample left it."""
        return list(generate(self.model, prompt_ids, max_new_tokens, temperature, top_k, top_p, self.sampling))

    def save(self, path):
        """A checkpoint from which `restore` continues with the same bits."""
        loader = self.loader.state()
        save(path, self.model, RunState(
            values={"step": self.step, "tokens": self.tokens, "best_val_loss": self.best_val_loss,
                    "validations_since_best": self._validations_since_best, "sampling": self.sampling.state,
                    "dropout": [self.model.seed, self.model.dropout_counter],
                    "loader": {name: value for name, value in loader.items() if isinstance(value, int)}},
            arrays={f"loader.{name}": value for name, value in loader.items() if not isinstance(value, int)}))

    def restore(self, run):
        """Goes to where a checkpoint of such a run was saved; the model has its weights and moments already."""
        values = run.values
        self.step, self.tokens = values["step"], values["tokens"]
        self.best_val_loss = values["best_val_loss"]
        self._validations_since_best = values["validations_since_best"]
        self.sampling.state = values["sampling"]
        self.model.seed, self.model.dropout_counter = values["dropout"]
        arrays = {name.removeprefix("loader."): array for name, array in run.arrays.items()}
        self.loader.restore(values["loader"] | arrays)
