"""Fields of every kind, as a verb and a family have them, and what a command line makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gpt2c.commands.command_line import parse
from gpt2c.errors import UsageError
from gpt2c.support.fields import flag


@dataclass
class Options:
    """Has every kind of field, as a verb would."""

    model: str = flag("gpt2", "the family", "--family", metavar="FAMILY", group="model")
    init_from: str | None = flag(None, "start from weights", "-e", "--loadCheckpoint", default_text="scratch")
    resume: bool | str = flag(False, "go on with a run", "-y", metavar="PATH")
    data: tuple[str, ...] = flag((), "files to learn from", "-i", "--trainingFile", metavar="PATH", group="data")
    max_steps: int = flag(40, "updates in all", "-x", "--iters", "--max-iters", group="training")
    learning_rate: float = flag(1e-4, "peak rate", "-l", "--lr")
    lr_schedule: str = flag("cosine", "shape of the rate", "-k", choices=("constant", "cosine", "linear"))
    recompute: bool | int = flag(1, "what to compute again", "-r")
    overfit: bool = flag(False, "one batch only", "-a")
    shuffle: bool = flag(True, "mix the windows")
    sample_top_k: int = flag(0, "candidates", "--top-k")
    keep: int | None = flag(None, "checkpoints to keep", "-nk")
    secret: int = flag(7, "for tests alone", hidden=True)
    prompt: str = flag("", "how a sample begins", deprecated={"--seed-text": "use --prompt"})


@dataclass(frozen=True)
class Config:
    """Plain fields, as a model family has them."""

    vocab_size: int
    dim: int = 64
    dropout: float = 0.1
    use_rwkv: bool = True
    top_k: int = 1
    keep: int = 5


PROG = "gpt2c train"
CLASSES = [Options, Config]


def run(*argv, classes=(Options,), **more):
    """The instances, then the names that were given."""
    instances, given = parse(argv, classes, PROG, **more)
    return *instances, given


def refused(*argv, error=UsageError, **more):
    with pytest.raises(error) as caught:
        run(*argv, **more)
    return str(caught.value)
