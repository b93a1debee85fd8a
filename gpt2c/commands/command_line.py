"""Settings in layers, merged once: defaults < what a program adds < config file < command line.

A CommandLine is passed from the first look at it (`peek`) to the merge of all layers (`merge`): its words and its config file
are read once, and programs that need other settings add a Layer below or above them. Each value knows the layer that it comes
from.
"""

import itertools
import re
import sys
from dataclasses import dataclass

from gpt2c.commands.config_file import read_config, toml_value, values_of
from gpt2c.commands.flags import General, checked, is_flag, key_of, named, read_value, table
from gpt2c.commands.help_text import help_text, metavar
from gpt2c.errors import UsageError
from gpt2c.support.fields import Layer, nearest


class CommandLine:
    """The words of a command line with its config file, and the layers that a program puts `below` and `above` them."""

    def __init__(self, argv, below=(), above=()):
        self.argv, self.below, self.above = list(argv), tuple(below), tuple(above)
        self._files = {}
        self.warned = set()  # deprecated spellings that a warning was printed of

    @classmethod
    def of(cls, argv):
        """The CommandLine of these words, or what is one already."""
        return argv if isinstance(argv, cls) else cls(argv)

    def between(self, below=(), above=()):
        """The same words with further layers under and over those that are there."""
        line = CommandLine(self.argv, [*self.below, *below], [*self.above, *above])
        line._files, line.warned = self._files, self.warned
        return line

    def file(self, path):
        """The pairs of a config file, which is read once."""
        if path not in self._files:
            self._files[path] = read_config(path)
        return self._files[path]

    def mentions(self, spellings):
        """Whether there is a flag in one of these spellings."""
        keys = {key_of(spelling) for spelling in spellings}
        return any(key_of(word.partition("=")[0]) in keys for word in self.argv if is_flag(word))


@dataclass(frozen=True)
class Settings:
    """The values after the merge of all layers."""

    instances: list  # one per dataclass
    given: set  # the names of fields that were given
    origins: dict  # {(number of the dataclass, field): the layer} of each value that is not the default

    def explained(self):
        """A line for each setting that is not at its default: the flag, its value, and the layer it comes from."""
        rows = {}
        for (owner, name), origin in self.origins.items():
            flag = "--" + name.replace("_", "-")
            rows.setdefault(flag, (toml_value(getattr(self.instances[owner], name)), origin))
        width = max((len(flag) for flag in rows), default=0)
        wide = max((len(value) for value, _ in rows.values()), default=0)
        return "\n".join(f"  {flag:<{width}}  {value:<{wide}}  {origin}" for flag, (value, origin) in rows.items())


def parse(argv, classes, prog, description="", positional=(), defaults=None, elsewhere=None):
    """`merge` for programs with one layer of defaults: ([one instance per dataclass], the set of field names that were given)."""
    settings = merge(argv, classes, prog, description, positional, [Layer("", defaults)] if defaults else [], elsewhere)
    return settings.instances, settings.given


def merge(line, classes, prog, description="", positional=(), layers=(), elsewhere=None):
    """The Settings of a CommandLine, or of its words; or print the help and exit.

    positional: the fields that take the words without a flag, in order; a repeatable last one takes the rest.
    layers: what goes before the dataclasses' own defaults, the weakest first. A field without any default is None.
    elsewhere: (a flag, {value of it: a dataclass whose flags count only then}): for such a flag the error names that value.
    """
    line = CommandLine.of(line)
    layers = [*layers, *line.below]
    flags, words = table([*classes, General])
    _print_help(line, words, prog, description, classes, positional, layers)
    values, rest, typed = _from_words(line, words, prog, *elsewhere or ())
    _from_rest(rest, named(positional, flags), values, prog)
    config = values.pop((len(classes), "config"), None)
    ours = {key: f for key, f in words.items() if f.owner < len(classes)}
    stack = [
        (layer.origin, {(f.owner, f.name): layer.values[f.name] for f in flags if f.name in layer.values}) for layer in layers
    ]
    given = [(config, values_of(line.file(config), config, ours))] if config else []
    given += [("command line", values), *((layer.origin, _by_flag(layer, words)) for layer in line.above)]
    names = {name for _, layer in given for _, name in layer}
    void = {other for f in flags if f.name in names for other in f.meta["replaces"]}
    merged, origins = {}, {}
    for origin, layer in [*((origin, _without(layer, void)) for origin, layer in stack), *given]:
        merged |= layer
        origins |= dict.fromkeys(layer, origin)
    instances = []
    for owner, cls in enumerate(classes):
        fields = {f.name: merged.get((owner, f.name), f.default) for f in flags if f.owner == owner}
        instances.append(_made(cls, fields, {name: word for (at, name), word in typed.items() if at == owner}))
    return Settings(instances, names, {at: origin for at, origin in origins.items() if merged[at] != _default(flags, at)})


def peek(line, cls, *names):
    """The values of these fields of `cls`, passing over everything else.

    For what must be known before `merge` can have all dataclasses: the model family, whose fields are flags too.
    """
    line = CommandLine.of(line)
    flags, words = table([cls, General])
    words = {key: f for key, f in words.items() if f.name in (*names, "config")}
    values = _from_words(line, words)[0]
    config = values.pop((1, "config"), None)
    values = (values_of(line.file(config), config, words, strict=False) if config else {}) | values
    by_name = {name: value for layer in line.below for name, value in layer.values.items()}
    by_name |= {name: value for (owner, name), value in values.items() if owner == 0}
    by_name |= {name: value for layer in line.above for name, value in layer.values.items()}
    return tuple(by_name.get(f.name, f.default) for f in named(names, flags))


def split(argv, cls):
    """(the words of `cls`'s flags with their values, all other words)."""
    _, words = table([cls])
    ours, others, queue = [], [], list(argv)
    while queue:
        word = queue.pop(0)
        f = words.get(key_of(word.partition("=")[0])) if is_flag(word) else None
        (ours if f else others).append(word)
        if f and "=" not in word and queue and not is_flag(queue[0]) and read_value(queue[0], f.kinds) is not None:
            ours.append(queue.pop(0))
    return ours, others


def _print_help(line, words, prog, description, classes, positional, layers):
    for word in itertools.takewhile(lambda word: word != "--", line.argv):
        asked = words.get(key_of(word.partition("=")[0])) if is_flag(word) else None
        if asked and asked.name in ("help", "help_all") and asked.owner == len(classes):
            defaults = {name: value for layer in layers for name, value in layer.values.items()}
            print(help_text(prog, description, classes, positional, defaults, asked.name == "help_all"))
            raise SystemExit(0)


def _made(cls, fields, typed):
    """An instance; an error names the fields as they were typed."""
    try:
        return cls(**fields)
    except UsageError as error:
        flags = {name: "--" + name.replace("_", "-") for name in fields}
        flags |= {word[2:].replace("-", "_"): word for word in typed.values() if word.startswith("--")} | typed
        certain = "|".join(name for name in flags if "_" in name) or "$^"
        perhaps = "|".join(name for name in flags if "_" not in name) or "$^"  # just a word, unless its value follows
        pattern = rf"(?<![\w-])(?:(?:{certain})\b|(?:{perhaps})(?= is | \())"
        raise type(error)(re.sub(pattern, lambda found: flags[found[0]], str(error))) from None


def _default(flags, at):
    return next(f.default for f in flags if (f.owner, f.name) == at)


def _without(layer, names):
    return {at: value for at, value in layer.items() if at[1] not in names}


def _by_flag(layer, words):
    """A layer's values for the flags of those names."""
    flags = {name: words[key_of("--" + name)] for name in layer.values}
    return {(f.owner, f.name): layer.values[name] for name, f in flags.items()}


def _put(values, f, value):
    """A repeatable flag collects its values, of any other the last wins."""
    at = (f.owner, f.name)
    values[at] = f.many([*values.get(at, ()), value]) if f.many else value


def _from_words(line, words, prog=None, chooser="", elsewhere=None):
    """({(owner, name): value}, the words that belong to no flag, {(owner, name): the flag as typed}); without `prog` skips
    unknown flags."""
    values, rest, typed, queue = {}, [], {}, list(line.argv)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return values, rest + queue, typed
        if not is_flag(word):
            rest.append(word)
            continue
        spelling, equals, text = word.partition("=")
        key = key_of(spelling)
        f = words.get(key)
        off = words.get("--" + key.removeprefix("--no"))
        if f is None and off is not None and bool in off.kinds and not equals:
            f, equals, text = off, "=", "false"
        if f is None:
            if prog:
                raise _unknown(spelling, key, words, prog, chooser, elsewhere or {})
            continue
        if not equals:
            text = _value_of(spelling, f, queue)
        _put(values, f, checked(text, f.kinds, f, spelling))
        typed[f.owner, f.name] = spelling
        advice = {key_of(old): advice for old, advice in f.meta["deprecated"].items()}.get(key)
        if advice and prog and key not in line.warned:
            line.warned.add(key)
            print(f"{prog}: {spelling} is deprecated: {advice}", file=sys.stderr)
    return values, rest, typed


def _value_of(spelling, f, queue):
    """The text of a flag's value, taken from the words that follow it."""
    follows = queue[0] if queue and not is_flag(queue[0]) else None
    if bool in f.kinds and (follows is None or read_value(follows, f.kinds) is None):
        return "true"
    if follows is None:
        hint = (
            f"the flag {queue[0]} (write {spelling}={queue[0]} if that is the value)" if queue else "the end of the command line"
        )
        raise UsageError(f"{spelling}: expected a value, found {hint}")
    return queue.pop(0)


def _unknown(spelling, key, words, prog, chooser, elsewhere):
    owners = [value for value, cls in elsewhere.items() if key in table([cls])[1]]
    hint = f", which goes with {chooser} {' or '.join(owners)}" if owners else ""
    hint = hint or nearest(spelling, {known: f.long for known, f in words.items()})
    return UsageError(f"unknown flag {spelling}{hint} ({prog} --help lists all)")


def _from_rest(rest, fields, values, prog):
    for n, word in enumerate(rest):
        if n >= len(fields) and not (fields and fields[-1].many):
            raise UsageError(f"unexpected argument {word!r}; flags begin with -- ({prog} --help lists all)")
        f = fields[min(n, len(fields) - 1)]
        _put(values, f, checked(word, f.kinds, f, metavar(f)))
