"""Command-line flags from the fields of dataclasses: the table of them, and how a word becomes a value.

A field `max_steps: int = 40` is the flag `--max-steps N`, the key `max_steps` of a TOML file and an entry of
the help. `flag()` adds a help text and further spellings; a plain field works too. Its type decides what is
accepted: bool, int, float, str, a union of these (tried in that order), or a tuple or list of them for a flag
that may be repeated. A flag that can be a bool may stand alone and has a `--no-` form: `resume: bool | str`
is `--resume [TEXT]`.

Long flags match ignoring case, `-` and `_`. A word that starts with `-` and is not a number is always a flag,
so a value like that is written `--flag=-value`. Where several dataclasses claim one spelling, a field's own
name goes before any further spelling, then the first class wins. (argparse has neither these spellings nor values
that know which layer they came from: what is left of it would not be smaller.)
"""

import dataclasses
import math
import typing

from gpt2c.errors import UsageError
from gpt2c.support.fields import NOUNS, flag, letters

BOOLS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


class Flag(typing.NamedTuple):
    """One field of one dataclass, seen from the command line."""

    owner: int  # index of its dataclass
    name: str  # of the field
    kinds: tuple  # the types of one value, in the order they are tried
    many: type | None  # tuple or list where the flag may be repeated
    default: object
    meta: dict  # the arguments of flag()

    @property
    def long(self):
        return "--" + self.name.replace("_", "-")

    @property
    def spellings(self):
        return [self.long, *self.meta["names"], *self.meta["deprecated"]]


@dataclasses.dataclass
class General:
    """The flags of every program."""

    config: str = flag(
        None,
        "config file: read flags from a TOML file; the command line takes precedence",
        metavar="FILE",
        group="general",
        main=True,
    )
    help: bool = flag(False, "print this help", "-h", default_text="", main=True)
    help_all: bool = flag(False, "print the help of all flags", default_text="", main=True)


def table(classes):
    """Every flag in order, and {key of a spelling: its flag}."""
    flags = [f for owner, cls in enumerate(classes) for f in _flags_of(cls, owner)]
    words = {}
    for rank in (slice(0, 1), slice(1, None)):  # every field's own name goes before any other spelling
        for f in flags:
            for spelling in f.spellings[rank]:
                other = words.setdefault(key_of(spelling), f)
                if other is not f and other.owner == f.owner:
                    cls = classes[f.owner].__name__
                    raise ValueError(f"{spelling} names both {other.name} and {f.name} of {cls}")
    return flags, words


def _flags_of(cls, owner):
    hints, plain = typing.get_type_hints(cls), flag(None, "").metadata
    for field in dataclasses.fields(cls):
        if field.init:
            hint = hints[field.name]
            many = typing.get_origin(hint) if typing.get_origin(hint) in (tuple, list) else None
            kinds = tuple(kind for kind in NOUNS if kind in (typing.get_args(hint) or (hint,)))
            if not kinds:
                raise TypeError(f"{cls.__name__}.{field.name}: a flag cannot hold {hint}")
            default = None if field.default is dataclasses.MISSING else field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            yield Flag(owner, field.name, kinds, many, default, {**plain, **field.metadata})


def named(names, flags):
    return [next(f for f in flags if f.name == name) for name in names]


def key_of(spelling):
    """What all ways to write a spelling share: one dash or two, and the letters. A bare word is long."""
    dashes = "-" if spelling[:1] == "-" and spelling[:2] != "--" else "--"
    return dashes + letters(spelling)


def is_flag(word):
    return word.startswith("-") and word != "-" and read_value(word, (float,)) is None


def _number(value):
    number = float(value)
    if math.isnan(number) or math.isinf(number) and "inf" not in str(value).lower():
        raise ValueError
    return number


READERS = {bool: lambda value: BOOLS[str(value).lower()], int: int, float: _number, str: str}


def read_value(value, kinds):
    """`value` as the first of `kinds` that it can be, or None."""
    for kind in kinds:
        try:
            return READERS[kind](value)
        except (KeyError, ValueError, OverflowError):
            pass
    return None


def checked(value, kinds, f, label):
    result, choices = read_value(value, kinds), f.meta["choices"]
    if result is None or choices and result not in choices:
        wanted = "one of " + ", ".join(filter(None, map(str, choices))) if choices else " or ".join(map(NOUNS.get, f.kinds))
        raise UsageError(f"{label}: expected {wanted}, found {value!r}")
    return result
