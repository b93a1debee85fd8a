"""Settings as a TOML file: written beside a run, read with --config."""

import dataclasses
import json
import tomllib

from gpt2c.commands.flags import checked, key_of
from gpt2c.errors import InputError, UsageError
from gpt2c.support.fields import nearest


def to_toml(*instances):
    """A config file that `parse` with the same dataclasses reads back to the same values.

    TOML has no None: such fields are left out. Of a field that several dataclasses have, the first one's is
    written, which is the one that can be set by that name.
    """
    lines = {}
    for instance in instances:
        for field in dataclasses.fields(instance):
            value = getattr(instance, field.name)
            if field.init:
                line = "" if value is None else f"{field.name} = {toml_value(value)}\n"
                lines.setdefault(key_of(field.name), line)
    return "".join(lines.values())


def toml_value(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def read_config(path):
    """The (key, value) pairs of a config file, whatever tables they are in."""
    try:
        with open(path, "rb") as file:
            return list(_leaves(tomllib.load(file)))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error


def _leaves(table):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def values_of(leaves, path, words, strict=True):
    """{(owner, name): value} of the pairs of a config file, for the flags of a table; `strict`: all others are an error."""
    values = {}
    for name, value in leaves:
        f = words.get(key_of(name)) or words.get(key_of("-" + name))
        if f:
            items = value if f.many and isinstance(value, list) else [value]
            for n, item in enumerate(items):  # a string is no number here, and 1 is not true
                kinds = [k for k in f.kinds if type(item) is k or k is float and type(item) is int]
                items[n] = checked(item, kinds, f, f"{path}: {name}")
            values[f.owner, f.name] = f.many(items) if f.many else items[0]
        elif strict:
            near = nearest(name, {key: f.name for key, f in words.items()})
            raise UsageError(f"{path}: unknown key {name}{near}")
    return values
