"""The model families by name, and their configs."""

import dataclasses
import typing
from numbers import Integral, Real

from gpt2c.errors import UsageError
from gpt2c.models import chargpt, gpt2, hybrid, llama, mingru, trm
from gpt2c.models.family import Family
from gpt2c.support.fields import NOUNS, nearest

FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Registers a family under its name, for models, files and flags."""
    FAMILIES[family.name] = family


for module in gpt2, chargpt, mingru, trm, hybrid, llama:
    register_family(module.FAMILY)


def family_named(name: str) -> Family:
    if name not in FAMILIES:
        raise UsageError(f"unknown model family {name!r}; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def other_configs(name):
    """The flag that chooses a family, and {family: Config} of all but this one."""
    return "--model", {other: family.Config for other, family in FAMILIES.items() if other != name}


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
