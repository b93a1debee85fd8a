"""Command-line flags, config files and help, all three made from the fields of dataclasses.

A field `max_steps: int = 40` is the flag `--max-steps N`, the key `max_steps` of a TOML file and an entry of
the help. `flag()` adds a help text and further spellings; a plain field works too. Its type decides what is
accepted: bool, int, float, str, a union of these (tried in that order), or a tuple or list of them for a flag
that may be repeated. A flag that can be a bool may stand alone and has a `--no-` form: `resume: bool | str`
is `--resume [TEXT]`.

Long flags match ignoring case, `-` and `_`. A word that starts with `-` and is not a number is always a flag,
so a value like that is written `--flag=-value`. Where several dataclasses claim one spelling, a field's own
name goes before any further spelling, then the first class wins. Defaults < TOML file (`--config`) < command
line.
"""

import dataclasses
import itertools
import json
import math
import shutil
import sys
import textwrap
import tomllib
import typing

from gpt2c.errors import InputError, UsageError
from gpt2c.support.fields import NOUNS, flag, letters, nearest

BOOLS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
METAVARS = {bool: "", int: "N", float: "X", str: "TEXT"}
HELP_COLUMN = 34


class Flag(typing.NamedTuple):
    """One field of one dataclass, seen from the command line."""

    owner: int  # index of its dataclass
    name: str  # of the field
    kinds: tuple  # the types of one value, in the order they are tried
    many: type | None  # tuple or list where the flag may be repeated
    default: object
    meta: dict  # the arguments of flag()

    @property
    def spellings(self):
        return ["--" + self.name.replace("_", "-"), *self.meta["names"], *self.meta["deprecated"]]


@dataclasses.dataclass
class General:
    """The flags of every program."""

    config: str = flag(None, "read flags from a TOML file; the command line goes before it", metavar="FILE", group="general")
    help: bool = flag(False, "print this help", "-h", default_text="")


def parse(argv, classes, prog, description="", positional=(), defaults=None, elsewhere=None):
    """([one instance per dataclass], the set of field names that were given), or print the help and exit.

    positional: the fields that take the words without a flag, in order; a repeatable last one takes the rest.
    defaults: {field name: value} that goes before the dataclasses' own. A field without any default is None.
    elsewhere: (a flag, {value of it: a dataclass whose flags count only then}): who uses one all the same is told so.
    """
    flags, words = _table([*classes, General], defaults)
    for word in itertools.takewhile(lambda word: word != "--", argv):
        asked = words.get(_key(word.partition("=")[0])) if _is_flag(word) else None
        if asked and asked.name == "help":
            print(help_text(prog, description, classes, positional, defaults))
            raise SystemExit(0)
    values, rest = _from_argv(argv, words, prog, *elsewhere or ())
    _from_rest(rest, _named(positional, flags), values, prog)
    values = _with_file(values, words, len(classes))
    instances = [
        cls(**{f.name: values.get((i, f.name), f.default) for f in flags if f.owner == i}) for i, cls in enumerate(classes)
    ]
    return instances, {name for _, name in values}


def peek(argv, cls, *names):
    """The values of these fields of `cls`, passing over everything else.

    This tells what must be known before `parse` can have all dataclasses: the model family, whose fields are
    flags as well.
    """
    flags, words = _table([cls, General])
    words = {key: f for key, f in words.items() if f.name in (*names, "config")}
    values = _with_file(_from_argv(argv, words)[0], words, 1, strict=False)
    return tuple(values.get((0, f.name), f.default) for f in _named(names, flags))


def split(argv, cls):
    """(the words of `cls`'s flags with their values, all other words)."""
    _, words = _table([cls])
    ours, others, queue = [], [], list(argv)
    while queue:
        word = queue.pop(0)
        f = words.get(_key(word.partition("=")[0])) if _is_flag(word) else None
        (ours if f else others).append(word)
        if f and "=" not in word and queue and not _is_flag(queue[0]) and _read(queue[0], f.kinds) is not None:
            ours.append(queue.pop(0))
    return ours, others


def mentions(argv, spellings):
    """Whether the command line has a flag in one of these spellings."""
    keys = {_key(spelling) for spelling in spellings}
    return any(_key(word.partition("=")[0]) in keys for word in argv if _is_flag(word))


def help_text(prog, description, classes, positional=(), defaults=None):
    """The help: usage, description and one entry per flag under the titles of their groups."""
    flags, words = _table([*classes, General], defaults)
    width = max(shutil.get_terminal_size().columns, 2 * HELP_COLUMN)
    usage = [f"[{_metavar(f)}{' ...' if f.many else ''}]" for f in _named(positional, flags)]
    sections, title, owner = {}, "flags", 0
    for f in flags:
        if f.owner != owner:
            title, owner = [*classes, General][f.owner].__module__.rpartition(".")[2], f.owner
        title = f.meta["group"] or title
        names = [s for s in f.spellings if words[_key(s)] is f and s not in f.meta["deprecated"]]
        if names and not f.meta["hidden"]:
            sections.setdefault(title, []).append(_help_entry(f, names, width))
    notes = (
        "Long flags ignore case, - and _. --flag=VALUE and --flag VALUE are the same; --no-flag turns a "
        "switch off. The last of a repeated flag counts."
    )
    tables = ["\n".join([f"{title}:", *entries]) for title, entries in sections.items()]
    usage = " ".join(["usage:", prog, *usage, "[flags]"])
    blocks = [usage, _fill(description, width), *tables, _fill(notes, width)]
    return "\n\n".join(block for block in blocks if block)


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
                line = "" if value is None else f"{field.name} = {_toml(value)}\n"
                lines.setdefault(_key(field.name), line)
    return "".join(lines.values())


def _table(classes, defaults=None):
    """Every flag in order, and {key of a spelling: its flag}."""
    flags = [f for owner, cls in enumerate(classes) for f in _flags_of(cls, owner, defaults or {})]
    words = {}
    for rank in (slice(0, 1), slice(1, None)):  # every field's own name goes before any other spelling
        for f in flags:
            for spelling in f.spellings[rank]:
                other = words.setdefault(_key(spelling), f)
                if other is not f and other.owner == f.owner:
                    cls = classes[f.owner].__name__
                    raise ValueError(f"{spelling} names both {other.name} and {f.name} of {cls}")
    return flags, words


def _flags_of(cls, owner, defaults):
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
            default = defaults.get(field.name, default)
            yield Flag(owner, field.name, kinds, many, default, {**plain, **field.metadata})


def _named(names, flags):
    return [next(f for f in flags if f.name == name) for name in names]


def _key(spelling):
    """What all ways to write a spelling share: one dash or two, and the letters. A bare word is long."""
    dashes = "-" if spelling[:1] == "-" and spelling[:2] != "--" else "--"
    return dashes + letters(spelling)


def _is_flag(word):
    return word.startswith("-") and word != "-" and _read(word, (float,)) is None


def _number(value):
    number = float(value)
    if math.isnan(number) or math.isinf(number) and "inf" not in str(value).lower():
        raise ValueError
    return number


READERS = {bool: lambda value: BOOLS[str(value).lower()], int: int, float: _number, str: str}


def _read(value, kinds):
    """`value` as the first of `kinds` that it can be, or None."""
    for kind in kinds:
        try:
            return READERS[kind](value)
        except (KeyError, ValueError, OverflowError):
            pass
    return None


def _checked(value, kinds, f, label):
    result, choices = _read(value, kinds), f.meta["choices"]
    if result is None or choices and result not in choices:
        wanted = "one of " + ", ".join(filter(None, map(str, choices))) if choices else " or ".join(map(NOUNS.get, f.kinds))
        raise UsageError(f"{label}: expected {wanted}, found {value!r}")
    return result


def _put(values, f, value):
    """A repeatable flag collects its values, of any other the last wins."""
    at = (f.owner, f.name)
    values[at] = f.many([*values.get(at, ()), value]) if f.many else value


def _from_argv(argv, words, prog=None, chooser="", elsewhere=None):
    """({(owner, name): value}, the words that belong to no flag); without `prog` skips unknown flags."""
    values, rest, queue = {}, [], list(argv)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return values, rest + queue
        if not _is_flag(word):
            rest.append(word)
            continue
        spelling, equals, text = word.partition("=")
        key = _key(spelling)
        f = words.get(key)
        off = words.get("--" + key.removeprefix("--no"))
        if f is None and off is not None and bool in off.kinds and not equals:
            f, equals, text = off, "=", "false"
        if f is None:
            if prog:
                owners = [value for value, cls in (elsewhere or {}).items() if key in _table([cls])[1]]
                hint = (
                    f", which goes with {chooser} {' or '.join(owners)}"
                    if owners
                    else nearest(spelling, {known: f.spellings[0] for known, f in words.items()})
                )
                raise UsageError(f"unknown flag {spelling}{hint} ({prog} --help lists all)")
            continue
        if not equals:
            follows = queue[0] if queue and not _is_flag(queue[0]) else None
            if bool in f.kinds and (follows is None or _read(follows, f.kinds) is None):
                text = "true"
            elif follows is None:
                found = (
                    f"the flag {queue[0]} (write {spelling}={queue[0]} if that is the value)"
                    if queue
                    else "the end of the command line"
                )
                raise UsageError(f"{spelling}: expected a value, found {found}")
            else:
                text = queue.pop(0)
        _put(values, f, _checked(text, f.kinds, f, spelling))
        advice = {_key(old): advice for old, advice in f.meta["deprecated"].items()}.get(key)
        if advice and prog:
            print(f"{prog}: {spelling} is deprecated: {advice}", file=sys.stderr)
    return values, rest


def _from_rest(rest, fields, values, prog):
    for n, word in enumerate(rest):
        if n >= len(fields) and not (fields and fields[-1].many):
            raise UsageError(f"unexpected argument {word!r}; flags begin with -- ({prog} --help lists all)")
        f = fields[min(n, len(fields) - 1)]
        _put(values, f, _checked(word, f.kinds, f, _metavar(f)))


def _with_file(values, words, general, strict=True):
    """`values` of the command line over those of its --config file; `general` is the owner of --config."""
    path = values.pop((general, "config"), None)
    if path is None:
        return values
    try:
        with open(path, "rb") as file:
            leaves = list(_leaves(tomllib.load(file)))
    except OSError as error:
        raise InputError(f"cannot read the config file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error
    words = {key: f for key, f in words.items() if f.owner != general}
    from_file = {}
    for name, value in leaves:
        f = words.get(_key(name)) or words.get(_key("-" + name))
        if f:
            items = value if f.many and isinstance(value, list) else [value]
            for n, item in enumerate(items):  # a string is no number here, and 1 is not true
                kinds = [k for k in f.kinds if type(item) is k or k is float and type(item) is int]
                items[n] = _checked(item, kinds, f, f"{path}: {name}")
            from_file[f.owner, f.name] = f.many(items) if f.many else items[0]
        elif strict:
            near = nearest(name, {key: f.name for key, f in words.items()})
            raise UsageError(f"{path}: unknown key {name}{near}")
    return from_file | values


def _leaves(table):
    """The (key, value) pairs of a TOML document, whatever tables they are in."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def _metavar(f):
    return f.meta["metavar"] or "|".join(map(str, f.meta["choices"] or ())) or METAVARS[f.kinds[-1]]


def _help_entry(f, names, width):
    value = f"[{_metavar(f)}]" if bool in f.kinds and _metavar(f) else _metavar(f)
    left = f"{names[0]} {value}".strip() + (f"  ({', '.join(names[1:])})" if names[1:] else "")
    default = f.meta["default_text"]
    if default is None and f.default not in (None, "", (), []):
        values = f.default if f.many else [f.default]
        default = ", ".join(v if isinstance(v, str) else _toml(v) for v in values)
    notes = "; ".join([f"default {default}"] * bool(default) + ["may be repeated"] * bool(f.many))
    right = (f.meta["help"] + (f" ({notes})" if notes else "")).strip()
    if len(left) + 4 <= HELP_COLUMN:
        return _fill(right, width, "  " + left.ljust(HELP_COLUMN - 2), HELP_COLUMN).rstrip()
    return (_fill(left, width, "  ", 6) + "\n" + _fill(right, width, " " * HELP_COLUMN, HELP_COLUMN)).rstrip()


def _fill(text, width, first="", indent=0):
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False) or first


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
