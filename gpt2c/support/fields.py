"""Dataclass fields that describe themselves: help, spellings, choices. Command lines, config files and help are made from them
(gpt2c/commands/flags.py)."""

import dataclasses
import difflib
from typing import NamedTuple

from gpt2c.errors import UsageError

LONGER = 4  # times: a word so much longer than another is not like it, and long to compare
NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def flag(
    default,
    help,
    *names,
    metavar=None,
    choices=None,
    default_text=None,
    hidden=False,
    group=None,
    deprecated=None,
    main=False,
    replaces=(),
):
    """A dataclass field with what a flag needs besides its name and type.

    names: further spellings, dashes included. deprecated: {spelling: advice}, accepted with a warning.
    group: the title of a section of the help that lasts until the next field with a group.
    default_text: what the help shows as the default where the value itself does not say it.
    main: shown by --help, which leaves the others to --help-all. replaces: other fields, whose defaults do not count where this
    one is given.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "names": names,
            "metavar": metavar,
            "choices": choices,
            "default_text": default_text,
            "hidden": hidden,
            "group": group,
            "deprecated": deprecated or {},
            "main": main,
            "replaces": replaces,
        },
    )


class Layer(NamedTuple):
    """Values of settings by field name, and where they come from."""

    origin: str
    values: dict


def require_at_least(instance, **least):
    """An error for the first of these fields that is less than what it is given here; a NaN is."""
    for name, bound in least.items():
        if not getattr(instance, name) >= bound:
            raise UsageError(f"{name} is {getattr(instance, name)}, expected at least {bound}")


def nearest(word, meanings):
    """The question "; did you mean A or B?" from {spelling: what to show}; "" if nothing is like `word`."""
    shown = {letters(spelling): text for spelling, text in meanings.items()}
    if len(word) > LONGER * max(map(len, shown), default=0):
        return ""
    close = difflib.get_close_matches(letters(word), shown, n=5)
    close = list(dict.fromkeys(shown[key] for key in close))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def letters(spelling):
    """What all spellings of a name share, whatever their case, dashes and underscores."""
    return spelling.lower().replace("-", "").replace("_", "")
