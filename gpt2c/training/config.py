"""How to train: the fields that a Trainer takes and that are flags of gpt2c train."""

import math
from dataclasses import dataclass

from gpt2c.errors import UsageError
from gpt2c.support.fields import flag, require_at_least
from gpt2c.training.optimizers import OPTIMIZERS
from gpt2c.training.schedules import SCHEDULES


@dataclass
class TrainConfig:
    """What the Trainer needs to know besides the model and the data."""

    batch_size: int = flag(4, "sequences per batch, of each rank where there are several", "-b", group="batches", main=True)
    seq_len: int = flag(64, "tokens per sequence", "-t", "--seq-length", "--block-size", "--chunk-size", main=True)
    total_batch_size: int = flag(
        0,
        "tokens per update of all ranks together, a multiple of batch size x sequence length; "
        "gradients of several batches are then averaged (0: one batch of each rank)",
        "-d",
        metavar="TOKENS",
    )
    update_chunks: int = flag(1, "with lanes: batches per update", metavar="K1")
    update_tokens: int = flag(0, "the same in tokens of a lane", default_text="")
    backprop_chunks: int = flag(
        1, "with lanes: batches that a gradient reaches back through, the newest one included", metavar="K2"
    )
    backprop_tokens: int = flag(0, "the same in tokens of a lane", default_text="")
    preserve_hidden_states: bool = flag(True, "with lanes: carry the state from batch to batch")
    overfit: bool = flag(False, "train on the first batch only", "-a", "--overfit-single-batch")

    max_steps: int = flag(
        40,
        "updates in all, counted from the start of training; -1: one epoch",
        "-x",
        "--iters",
        "--max-iters",
        group="length",
        replaces=("epochs",),
        main=True,
    )
    epochs: float = flag(
        0.0, "passes over the training data in all, instead of --max-steps", "--num-epochs", default_text="", main=True
    )
    max_epochs: float = flag(0.0, "instead of --epochs where a target loss is given", default_text="")
    max_time: str = flag("", "stop cleanly after this long, e.g. 90s, 10m or 2h", metavar="TIME")
    target_val_loss: float = flag(0.0, "stop when the validation loss is this low", "--target-valid-loss", default_text="")
    target_train_loss: float = flag(0.0, "stop when the loss of an update is this low", "--target-test-loss", default_text="")
    patience: int = flag(0, "stop after this many validations without a better one (0: never)")

    learning_rate: float = flag(1e-4, "the highest learning rate", "-l", "--lr", group="learning rate", main=True)
    lr_schedule: str = flag("constant", "how the rate falls", "-k", "--lr-scheduler", choices=SCHEDULES)
    lr_unit: str = flag(
        "update",
        "whether the rate changes with each update, or with each epoch, so that the first epoch "
        "after the warm-up has the highest rate (epoch) or the last one the lowest (epoch-end)",
        choices=("update", "epoch", "epoch-end"),
    )
    warmup_steps: int = flag(0, "updates over which the rate rises to its highest", "-u", "--warmup-iters")
    warmup_epochs: float = flag(0.0, "the same in epochs", default_text="")
    final_lr_frac: float = flag(1.0, "where a falling rate ends, as a part of the highest", "-q", "--min-lr-factor")
    plateau_patience: int = flag(30, "validations without a better one after which the schedule plateau lowers the rate")
    plateau_factor: float = flag(0.5, "what it multiplies the rate with")
    plateau_falls: int = flag(3, "how often, at most")

    optimizer: str = flag("adamw", "how gradients become updates", choices=OPTIMIZERS, group="optimizer")
    weight_decay: float = flag(
        0.0, "decay of matrices: beside the step of adamw, in the gradients of the others", "-c", main=True
    )
    decay_all: bool = flag(False, "let weights of all shapes decay, biases and norms too")
    beta1: float = flag(0.9, "Adam's decay of the mean of gradients", "--adam-beta1")
    beta2: float = flag(0.999, "Adam's decay of the mean of their squares", "--adam-beta2")
    eps: float = flag(1e-8, "Adam's epsilon", "--adam-epsilon")
    momentum: float = flag(0.0, "of sgd")
    dampening: float = flag(0.0, "of sgd's momentum")
    nesterov: bool = flag(False, "look one step ahead along sgd's momentum")
    grad_clip: float = flag(0.0, "largest L2 norm of all gradients together (0: no limit)", "--max-grad-norm")
    clip_value: float = flag(0.0, "largest magnitude of each gradient element, applied first (0: no limit)", "--grad-clip-value")
    tensor_rates: str = flag("", "learning rates of single tensors, whatever the schedule says", metavar="NAME=RATE,...")
    tensor_bounds: str = flag("", "bounds that each update keeps the elements of single tensors in", metavar="NAME=LOW:HIGH,...")

    zero: int = flag(0, "1: of several ranks each keeps and updates its part of the optimizer's moments", "-z", choices=(0, 1))

    on_anomaly: str = flag(
        "auto",
        "what to do when numbers go wrong: stop, skip the update, or roll back to the last "
        "checkpoint and go on with the data that follow; auto stops, but skips for a z-score alone",
        choices=("auto", "stop", "skip", "rollback"),
        group="when numbers go wrong",
    )
    max_loss: float = flag(0.0, "a loss beyond this is wrong (0: any finite one is right)")
    max_grad_value: float = flag(
        0.0, "a gradient element of a larger magnitude is wrong (0: any finite one is right)", "--grad-threshold"
    )
    skip_loss_z: float = flag(0.0, "so is a loss with a higher z-score among the last 128 (0: never)", "-sl", default_text="")
    skip_grad_z: float = flag(0.0, "and a gradient norm with a higher one (0: never)", "-sg", default_text="")

    val_every: int = flag(
        10, "validate before every Nth update (0: never)", "-v", "--eval-interval", group="validation", main=True
    )
    val_steps: int = flag(10, "batches per validation (-1: all, 0: never validate)", "-m", "--val-num-batches", "--eval-iters")

    balance_loss: float = flag(
        0.0,
        "weight of the balance loss of a mixture of experts: what uneven use of them costs (0: it is not counted)",
        group="experts",
    )

    seed: int = flag(1337, "of the initial weights, of dropout and of sampling", group="randomness", main=True)

    def __post_init__(self):
        require_at_least(
            self,
            batch_size=1,
            seq_len=1,
            total_batch_size=0,
            update_chunks=1,
            update_tokens=0,
            backprop_chunks=1,
            backprop_tokens=0,
            max_steps=-1,
            epochs=0,
            max_epochs=0,
            patience=0,
            learning_rate=0,
            warmup_steps=0,
            warmup_epochs=0,
            final_lr_frac=0,
            plateau_factor=0,
            plateau_falls=0,
            weight_decay=0,
            beta1=0,
            beta2=0,
            eps=0,
            momentum=0,
            grad_clip=0,
            clip_value=0,
            max_loss=0,
            max_grad_value=0,
            skip_loss_z=0,
            skip_grad_z=0,
            val_every=0,
            val_steps=-1,
            balance_loss=0,
        )
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected less than 1")
        seconds(self.max_time or "0")  # an error if it is no duration
        if self.nesterov and not (self.momentum and not self.dampening):
            raise UsageError(f"nesterov needs momentum and no dampening; momentum is {self.momentum}, dampening {self.dampening}")
        if self.warmup_steps and (self.warmup_epochs or self.lr_unit != "update"):
            raise UsageError("a warm-up is given in updates or in epochs: with epochs, use warmup_epochs alone")

    @property
    def options(self):
        """What a family may be told of its training besides (Family.options)."""
        return {"balance_loss": self.balance_loss}

    def carries(self, lanes):
        """Whether the state goes on from batch to batch, where the data do (`lanes`)."""
        return lanes and self.preserve_hidden_states and not self.overfit

    def window(self, T, lanes):
        """The chunks of T tokens that a gradient reaches back through."""
        return math.ceil(self.backprop_tokens / T) or self.backprop_chunks if self.carries(lanes) else 1


def seconds(text):
    """A duration such as 90, 90s, 10m, 2h or 1.5d in seconds."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, factor = (text[:-1], unit[text[-1]]) if text[-1:] in unit else (text, 1)
    try:
        return float(number) * factor
    except ValueError:
        raise UsageError(f"{text!r} is not a duration; write 90s, 10m, 2h or 1d") from None
