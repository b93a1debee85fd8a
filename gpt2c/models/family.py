"""The model families. A family is a module with three names:

    Config                            a frozen dataclass: what changes the architecture
    params(cfg) -> list[ParamSpec]    its parameter tensors, in file order
    forward(t, p, batch, cfg)         its forward pass on a tape (gpt2c.tape), returning ops.Output;
                                      p(name, layer=None) is a parameter, batch has tokens and targets (or None)

and, if it is recurrent,

    state(cfg, B) -> {name: shape}    what it carries from chunk to chunk for B lanes, (L, B, width) each; its forward takes
                                      it from t.incoming(name, layer) and leaves it with t.outgoing(name, layer, last)

and, where its document says so, what its programs start from: describe(text), the config fields behind the name of a size;
TRAINING and GENERATION, defaults of the flags of train and generate; TOKENIZER, the kind of tokenizer, and SPECIALS, the
special tokens of one that is made of characters; DATA, the text in the current folder that is trained on where nothing else
is named; SAVE_PATH, where a checkpoint goes if no flag says where; FILES, its own names for files in the folder of a run
(gpt2c.runs); FLAGS, those that mean this family where no --model is given; LINES, what the training program says
(gpt2c.loop); idle_parameters(cfg), how many of its parameters a token does not meet.

Everything else (training, checkpoints, generation, flags, memory estimates) works on these.
"""

import dataclasses
import sys
import typing
from numbers import Integral, Real
from types import ModuleType

from gpt2c.errors import UsageError
from gpt2c.models import chargpt, gpt2, hybrid, mingru, trm
from gpt2c.support.fields import NOUNS, nearest

FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2, "chargpt": chargpt, "mingru": mingru, "trm": trm, "hybrid": hybrid}


def family_named(name) -> ModuleType:
    """The module of a family."""
    if name not in FAMILIES:
        raise UsageError(f"unknown model family {name!r}; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def other_configs(name):
    """The flag that chooses a family, and {family: Config} of all but this one."""
    return "--model", {other: module.Config for other, module in FAMILIES.items() if other != name}


def usual(name):
    """What training starts from in this family, by flag."""
    return getattr(family_named(name), "TRAINING", {})


def max_seq_len(config):
    """The most positions that a model of this config takes; a recurrent one takes any number."""
    return getattr(config, "max_seq_len", sys.maxsize)


def idle_parameters(name, config):
    """How many of its parameters a token does not meet: those of experts that were not chosen."""
    count = getattr(family_named(name), "idle_parameters", None)
    return count(config) if count else 0


def make_config(name, fields):
    """A family's Config from a dict; a field that it does not have is an error naming the near ones."""
    family = family_named(name)
    known = {field.name: field.name for field in dataclasses.fields(family.Config)}
    hints = typing.get_type_hints(family.Config)
    for field, value in fields.items():
        if field not in known:
            raise UsageError(f"{name} has no field {field!r}{nearest(field, known)}; it has {', '.join(known)}")
        kind = hints[field]
        if not (
            type(value) is kind
            or kind in (int, float)
            and isinstance(value, (Integral, Real)[kind is float])
            and not isinstance(value, bool)
        ):
            raise UsageError(f"{name}: {field} is {value!r}, expected {NOUNS[kind]}")
    try:
        return family.Config(**fields)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from None
