"""The contract of a model family: a frozen Family, at the end of the family's file. models/registry.py lists them."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2c.errors import UsageError


@dataclass(frozen=True)
class Family:
    """Three names make a family; everything else (training, checkpoints, generation, flags, memory estimates) works on these.

    Config                            a frozen dataclass: what changes the architecture
    params(cfg) -> list[ParamSpec]    its parameter tensors, in file order
    forward(t, p, batch, cfg)         its forward pass on a tape (engine/tape.py), returning ops.Output;
                                      p(name, layer=None) is a parameter, batch has tokens and targets (or None)
    state(cfg, B) -> {name: shape}    if it is recurrent: the hidden state carried from chunk to chunk for B lanes, (L, B,
                                      width) each; its forward takes it from t.incoming(name, layer) and leaves it with
                                      t.outgoing(name, layer, last)
    """

    name: str
    Config: type
    params: Callable
    forward: Callable
    state: Callable | None = None

    # The parameters that only linear, embedding and classifier read: frozen, they may be in any storage type.
    matrices: tuple[str, ...] = ()
    size: Callable[[str], dict | None] = lambda text: None  # the config fields behind the name of a size; None if it is none
    idle_parameters: Callable[[Any], int] = lambda cfg: 0  # parameters inactive for a token: experts it skips
    options: Mapping[str, float] = field(default_factory=dict)  # its own training options, read as t.options[name]
    tiny: Mapping[str, Any] = field(default_factory=dict)  # config fields of a model small enough for a gradient check

    # Defaults of flags.
    training: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, Any] = field(default_factory=dict)  # of each of two phases, where they are not training's
    generation: Mapping[str, Any] = field(default_factory=dict)

    # Conventions of the program that it follows.
    tokenizer: str = ""  # the kind that is made for it from a text; "": GPT-2's where it is at hand, else characters
    specials: tuple[str, ...] = ()  # the special tokens of a tokenizer that is made of characters
    data: str = ""  # the text in the current folder that is trained on where nothing else is named
    flags: tuple[str, ...] = ()  # those that mean this family where no --model is given
    files: Mapping[str, str] = field(default_factory=dict)  # its own names for files in the folder of a run (runs/folder.py)
    lines: Mapping[str, str] = field(default_factory=dict)  # what the training program says (runs/loop.py)

    def checked(self, options: Mapping[str, float]) -> dict[str, float]:
        """All of its options, these as they are given; one that it does not have is an error unless it is off (0)."""
        for name, value in options.items():
            if value and name not in self.options:
                raise UsageError(f"{name} is {value:g}, but {self.name} has no such option: leave it out")
        return {name: options.get(name, value) for name, value in self.options.items()}


def max_seq_len(config) -> int:
    """The most positions that a model of this config takes; a recurrent one takes any number."""
    return getattr(config, "max_seq_len", sys.maxsize)
