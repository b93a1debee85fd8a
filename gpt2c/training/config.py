"""How to train: the fields that a Trainer takes and that are flags of gpt2c train."""

import math
from dataclasses import dataclass

from gpt2c.errors import UsageError
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.rng import checked_seed
from gpt2c.training.optimizers import OPTIMIZERS
from gpt2c.training.schedules import SCHEDULES

IDLE = (
    "--learning-rate is 0, with which nothing is learned; choose a higher one, or measure the model with gpt2c eval CKPT "
    "--data FILE"
)  # an error of programs: from Python, a Trainer may stand still


@dataclass
class TrainConfig:
    """The Trainer's hyperparameters."""

    batch_size: int = flag(
        4, "batch size: sequences per batch, on each rank where there are several", "-b", group="batches", main=True
    )
    seq_len: int = flag(
        64, "sequence length (block size): tokens per sequence", "-t", "--seq-length", "--block-size", "--chunk-size", main=True
    )
    total_batch_size: int = flag(
        0,
        "tokens per update over all ranks, for gradient accumulation: a multiple of batch size x sequence "
        "length; the gradients of several batches are averaged (0: one batch per rank, no accumulation)",
        "-d",
        metavar="TOKENS",
    )
    update_chunks: int = flag(
        1,
        "truncated backpropagation through time, TBPTT(k1, k2), with --order lanes: k1, the chunks (batches) per update",
        metavar="K1",
    )
    update_tokens: int = flag(0, "TBPTT's k1 in tokens per lane, instead of --update-chunks", default_text="")
    backprop_chunks: int = flag(
        1,
        "TBPTT's k2, with --order lanes: the chunks (batches) that the gradient is backpropagated through, the newest included; "
        "more than k1 is rounded up to a multiple of it",
        metavar="K2",
    )
    backprop_tokens: int = flag(0, "TBPTT's k2 in tokens per lane, instead of --backprop-chunks", default_text="")
    preserve_hidden_states: bool = flag(
        True,
        "with --order lanes: carry the recurrent hidden state from batch to batch; "
        "--no-preserve-hidden-states resets it to zeros before each",
    )
    overfit: bool = flag(
        False,
        "overfit a single batch: train on the first batch only, to check that the model can learn",
        "-a",
        "--overfit-single-batch",
    )

    max_steps: int = flag(
        40,
        "training steps (updates) in total, counted from the start of training, not from a resume; -1: one epoch",
        "-x",
        "--iters",
        "--max-iters",
        group="length",
        replaces=("epochs",),
        main=True,
    )
    epochs: float = flag(
        0.0, "epochs: passes over the training data in total, instead of --max-steps", "--num-epochs", default_text="", main=True
    )
    max_epochs: float = flag(
        0.0,
        "the limit on epochs, in place of --epochs, where --target-val-loss or --target-train-loss may end training earlier",
        default_text="",
    )
    max_time: str = flag("", "wall-clock limit: save and stop after this long, e.g. 90s, 10m or 2h", metavar="TIME")
    target_val_loss: float = flag(
        0.0, "early stopping: stop when the validation loss is at most this", "--target-valid-loss", default_text=""
    )
    target_train_loss: float = flag(
        0.0, "early stopping: stop when the training loss of an update is at most this", "--target-test-loss", default_text=""
    )
    patience: int = flag(
        0, "early stopping: stop after this many validations in a row without a new best validation loss (0: off)"
    )

    learning_rate: float = flag(1e-4, "learning rate, the peak of the schedule", "-l", "--lr", group="learning rate", main=True)
    lr_schedule: str = flag(
        "constant",
        "learning rate schedule: how it decays after the warm-up; plateau lowers it when the validation loss stops improving",
        "-k",
        "--lr-scheduler",
        choices=SCHEDULES,
    )
    lr_unit: str = flag(
        "update",
        "when the schedule changes the learning rate: at every update, or once per epoch, so that the first "
        "epoch after the warm-up has the peak rate (epoch) or the last epoch has the final rate (epoch-end)",
        choices=("update", "epoch", "epoch-end"),
    )
    warmup_steps: int = flag(0, "learning rate warm-up: updates over which it rises to its peak", "-u", "--warmup-iters")
    warmup_epochs: float = flag(
        0.0, "learning rate warm-up in epochs, instead of --warmup-steps: epochs over which it rises to its peak", default_text=""
    )
    final_lr_frac: float = flag(1.0, "learning rate at the end of the decay, as a fraction of the peak", "-q", "--min-lr-factor")
    plateau_patience: int = flag(
        30, "--lr-schedule plateau: validations without a new best loss after which the learning rate is lowered"
    )
    plateau_factor: float = flag(0.5, "--lr-schedule plateau: factor that the learning rate is multiplied by each time")
    plateau_falls: int = flag(3, "--lr-schedule plateau: how many times the learning rate is lowered at most")

    optimizer: str = flag(
        "adamw", "optimizer: AdamW, Adam, or SGD (with --momentum, --nesterov)", choices=OPTIMIZERS, group="optimizer"
    )
    weight_decay: float = flag(
        0.0, "weight decay of matrices: decoupled with adamw, an L2 term in the gradient with adam and sgd", "-c", main=True
    )
    decay_all: bool = flag(False, "apply weight decay to all parameters, biases and norms included")
    beta1: float = flag(0.9, "Adam: beta1, the decay rate of the first moment (running mean of gradients)", "--adam-beta1")
    beta2: float = flag(
        0.999, "Adam: beta2, the decay rate of the second moment (running mean of squared gradients)", "--adam-beta2"
    )
    eps: float = flag(1e-8, "Adam: epsilon, added to the denominator for numerical stability", "--adam-epsilon")
    momentum: float = flag(0.0, "SGD: momentum")
    dampening: float = flag(0.0, "SGD: dampening of the momentum")
    nesterov: bool = flag(False, "SGD: Nesterov momentum")
    grad_clip: float = flag(
        0.0, "gradient clipping by global L2 norm: the largest norm of all gradients together (0: off)", "--max-grad-norm"
    )
    clip_value: float = flag(
        0.0,
        "gradient clipping by value: the largest magnitude of each gradient element, applied before --grad-clip (0: off)",
        "--grad-clip-value",
    )
    tensor_rates: str = flag(
        "", "fixed learning rates for single parameter tensors, which then ignore the schedule", metavar="NAME=RATE,..."
    )
    tensor_bounds: str = flag(
        "",
        "bounds for single parameter tensors: after each update their elements are clamped to [LOW, HIGH]",
        metavar="NAME=LOW:HIGH,...",
    )

    zero: int = flag(
        0,
        "data parallel over several ranks: 1 is ZeRO stage 1, which shards the optimizer state (moments) over "
        "them; 0: every rank keeps it all",
        "-z",
        choices=(0, 1),
    )

    on_anomaly: str = flag(
        "auto",
        "what to do on a NaN, an infinity, or a loss or gradient beyond the limits below: stop, skip the "
        "update, or roll back to the last checkpoint and continue with the data that follow; auto stops, but "
        "skips the update for --skip-loss-z and --skip-grad-z",
        choices=("auto", "stop", "skip", "rollback"),
        group="anomalies",
    )
    max_loss: float = flag(0.0, "treat a loss above this as an anomaly (0: off; NaN and infinity always are)")
    max_grad_value: float = flag(
        0.0,
        "treat a gradient element of a larger magnitude as an anomaly (0: off; NaN and infinity always are)",
        "--grad-threshold",
    )
    skip_loss_z: float = flag(
        0.0,
        "treat a loss more than Z standard deviations above the mean of the last 128 updates as an anomaly (0: off)",
        "-sl",
        default_text="",
    )
    skip_grad_z: float = flag(
        0.0,
        "treat a gradient norm more than Z standard deviations above the mean of the last 128 updates as an anomaly (0: off)",
        "-sg",
        default_text="",
    )

    val_every: int = flag(
        10,
        "validate every N updates: measure the loss on the held-out validation split (0: never)",
        "-v",
        "--eval-interval",
        group="validation",
        main=True,
    )
    val_steps: int = flag(
        10,
        "batches per validation (-1: the whole validation split, 0: never validate)",
        "-m",
        "--val-num-batches",
        "--eval-iters",
    )

    balance_loss: float = flag(
        0.0, "mixture of experts: weight of the auxiliary load-balancing loss (0: off)", group="mixture of experts"
    )

    seed: int = flag(
        1337,
        "random seed of the initial weights, dropout, sampling, and the data order (shuffled has llm.c's own)",
        group="randomness",
        main=True,
    )

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
        checked_seed(self.seed, least=1)
        seconds(self.max_time or "0")  # an error if it is no duration
        if self.nesterov and not (self.momentum and not self.dampening):
            raise UsageError(f"nesterov needs momentum and no dampening; momentum is {self.momentum}, dampening {self.dampening}")
        if self.warmup_steps and (self.warmup_epochs or self.lr_unit != "update"):
            raise UsageError("a warm-up is given in updates or in epochs: with epochs, use warmup_epochs alone")

    @property
    def options(self):
        """Training options that only some families have (Family.options)."""
        return {"balance_loss": self.balance_loss}

    def carries(self, lanes):
        """Whether the hidden state is carried from batch to batch, where the data are contiguous (`lanes`)."""
        return lanes and self.preserve_hidden_states and not self.overfit

    def update_batches(self, T, lanes):
        """TBPTT's k1, where no total batch size says it: the chunks of T tokens, one after the other, in an update."""
        return math.ceil(self.update_tokens / T) or self.update_chunks if lanes and not self.overfit else 1

    def reach(self, T, lanes, new):
        """TBPTT's k2: the chunks of T tokens that a gradient is backpropagated through, where an update has `new` ones. More
        than these are a multiple of them, because states are kept where updates end."""
        asked = math.ceil(self.backprop_tokens / T) or self.backprop_chunks if self.carries(lanes) else 1
        return asked if asked <= new else -(-asked // new) * new


def seconds(text):
    """A duration such as 90, 90s, 10m, 2h or 1.5d in seconds."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, factor = (text[:-1], unit[text[-1]]) if text[-1:] in unit else (text, 1)
    try:
        return float(number) * factor
    except ValueError:
        raise UsageError(f"{text!r} is not a duration; write 90s, 10m, 2h or 1d") from None
