"""Jinja for templates that nobody has vouched for: bounded in time, in memory and in what they write.

They run in Jinja's immutable sandbox with the part of its library that chat templates use. Each step of a template, which
`_Metered` marks in its tree, looks at the time that the thread has taken, and pays for the text and the lists that it makes from
a budget. What could make much of little (repeating, joining, replacing) pays first; what cannot be bounded (powers, formats) is
not there.
"""

import functools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from gpt2c.errors import Gpt2cError, TokenizationError

LONGEST = 50_000  # characters of a template; reading one takes up to 50 us for each
SECONDS = 5.0  # of this thread's time
CHARACTERS = 8 << 20  # that a template may make
ENTRY = 64  # characters that an entry of a list is paid as
DEEPEST = 64  # lists within lists
MOST_STEPS = 10_000  # of a range
SHOWN = 200  # characters of an error

USED = (
    *("abs", "capitalize", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "lower", "map"),
    *("reject", "rejectattr", "reverse", "select", "selectattr", "title", "trim", "upper"),
)
METHODS = {
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper"),
    *("join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rpartition", "rsplit"),
    *("rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"),
}


OPEN, CLOSE = "\ud801", "\ud802"  # around what the model writes; no text of a message can have them


class Budget:
    """What is left to one rendering, and whether it writes OPEN and CLOSE."""

    def __init__(self, characters, borders):
        self.left, self.end, self.borders = characters, time.thread_time() + SECONDS, borders

    def pay(self, characters):
        self.left -= characters
        if self.left < 0:
            raise TokenizationError("the chat template makes more text than any conversation needs; use another template")
        if time.thread_time() > self.end:
            raise TokenizationError(f"the chat template takes more than {SECONDS:g} seconds; use another template")


_BUDGET: ContextVar[Budget] = ContextVar("budget")


def render(template, variables, given, borders=False):
    """The text of a template; `given` characters are in the variables, and it may make more text for that."""
    token = _BUDGET.set(Budget(CHARACTERS + 16 * given, borders))
    try:
        with refusals("the chat template cannot write these messages"):
            return template.render(variables)
    finally:
        _BUDGET.reset(token)


@contextmanager
def refusals(what):
    """Makes whatever a template raises a TokenizationError that begins with `what`."""
    try:
        yield
    except Gpt2cError:
        raise
    except Exception as error:  # a template may do anything wrong that a program can
        why = " ".join(str(error).split())[:SHOWN].encode(errors="replace").decode() or type(error).__name__
        raise TokenizationError(f"{what}: {why}") from None


def _seen(value):
    """The value, which was there already: the time alone counts."""
    _BUDGET.get().pay(0)
    return value


def _paid(value):
    """The value, which has been made and is paid for."""
    _BUDGET.get().pay(_size(value))
    return value


def _size(value):
    """What a value itself is paid as, without those in it."""
    return len(value) if isinstance(value, str) else ENTRY * len(value) if isinstance(value, (list, tuple, dict)) else 0


def _checked(value):
    """The value, if writing or comparing it takes no more than is left: a list may hold another one many times."""
    left, level = _BUDGET.get().left, [value]
    for _ in range(DEEPEST):
        inner = []
        for entry in level:
            if isinstance(entry, dict):
                inner += [*entry.keys(), *entry.values()]
            elif isinstance(entry, (list, tuple)):
                inner += entry
            left -= ENTRY + (len(entry) if isinstance(entry, str) else 0)  # as it is written
            if left < ENTRY * len(inner):
                raise TokenizationError("the chat template makes lists that are too large; use another template")
        if not inner:
            return value
        level = inner
    raise TokenizationError(f"the chat template has lists within lists more than {DEEPEST} times; use another template")


def _text(value):
    """What is written for a value."""
    if isinstance(value, str):
        return _paid(value)
    if not isinstance(value, (int, float, list, tuple, dict, jinja2.Undefined, type(None))):
        raise TypeError(f"it writes a {type(value).__name__}, which is no text")
    return _paid(str(_checked(value)))


def _joined(parts, between=""):
    parts, between = [_text(part) for part in parts], _text(between)
    _BUDGET.get().pay(len(between) * len(parts))
    return _paid(between.join(parts))


def _replaced(text, old, new, count=None):
    text, old, new = _text(text), _text(old), _text(new)
    _BUDGET.get().pay(len(new) * text.count(old))
    return _paid(text.replace(old, new, -1 if count is None else count))


def _json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    if not (indent is None or type(indent) is int and 0 <= indent <= 8) or separators and max(map(len, separators)) > 8:
        raise ValueError(f"tojson has indent {indent!r} and separators {separators!r}, expected short ones")
    found = _checked(value)
    return _paid(json.dumps(found, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys))


def _range(*bounds):
    found = range(*bounds)
    if len(found) > MOST_STEPS:
        raise ValueError(f"a range has {len(found)} steps, expected at most {MOST_STEPS}")
    return found


def _raise(message):
    raise jinja2.TemplateError(_text(message))


def _paying(function):
    @functools.wraps(function)  # and with it what Jinja passes it first
    def paying(*args, **kwargs):
        found = function(*args, **kwargs)
        return _paid(list(found) if isinstance(found, Iterator) else found)

    return paying


class _Metered(NodeTransformer):
    """Marks the steps of a template's tree, and lets `own` change its own text."""

    def __init__(self, own):
        self._own = own

    def visit_TemplateData(self, node):
        return nodes.Const(self._own(node.data))  # is written, and paid, as any value

    def visit_Const(self, node):
        return nodes.Const(self._own(node.value)) if isinstance(node.value, str) else node

    def visit_Concat(self, node):
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None)

    def visit_For(self, node):
        self.generic_visit(node)
        node.iter = self._marked(node.iter, "a look")
        return node

    def visit_CallBlock(self, node):
        raise jinja2.TemplateAssertionError("call blocks are not known", node.lineno)

    def _look(self, node):
        self.generic_visit(node)
        return self._marked(node, "a look")

    visit_Compare = visit_Test = _look

    def _value(self, node):
        self.generic_visit(node)
        return self._marked(node, "a value")

    visit_Call = _value

    def visit_Getitem(self, node):
        self.generic_visit(node)
        return self._marked(node, "a value" if isinstance(node.arg, nodes.Slice) else "a look")

    def _collection(self, node):
        self.generic_visit(node)
        return self._marked(node, "a collection") if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Tuple = visit_Dict = _collection

    @staticmethod
    def _marked(node, what):
        return nodes.Filter(node, what, [], [], None, None)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, around what the model writes: text as any other, unless borders are asked for."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([_Metered._marked(nodes.Const(border), "a border")]) for border in (OPEN, CLOSE))
        return [begin, *body, end]


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=jinja2.pass_context(lambda context, value: _text(value)),  # with a context: never ahead of rendering
        )
        self.filters = {name: _paying(FILTERS[name]) for name in USED} | {
            "join": _joined,
            "replace": _replaced,
            "safe": _text,
            "string": _text,
            "tojson": _json,
            "a look": jinja2.pass_context(lambda context, value: _seen(value)),
            "a value": jinja2.pass_context(lambda context, value: _paid(value)),
            "a border": jinja2.pass_context(lambda context, border: border * _BUDGET.get().borders),
            "a collection": jinja2.pass_context(lambda context, value: _paid(_checked(value))),
        }
        self.globals = {
            "dict": lambda *args, **kwargs: _checked(dict(*args, **kwargs)),
            "namespace": lambda *args, **kwargs: Namespace(*args, **kwargs),
            "raise_exception": _raise,
            "range": _range,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def read(self, source, own):
        """The template of a source, in whose own text own(text) has taken the place of each text."""
        if len(source) > LONGEST:
            raise TokenizationError(f"the chat template has {len(source):,} characters, expected at most {LONGEST:,}")
        with refusals("the chat template cannot be read"):
            tree = _Metered(own).visit(self.parse(source))
            tree.set_lineno(1)
            tree.set_environment(self)
            return self.from_string(tree)

    def is_safe_attribute(self, obj, attr, value):
        if isinstance(obj, str):
            return attr in METHODS
        return not isinstance(obj, (int, float)) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value):
        return None  # there is none

    def call(self, context, function, /, *args, **kwargs):
        text, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(text, str) and name == "join":
            function = functools.partial(_joined, between=text)
        elif isinstance(text, str) and name == "replace":
            function = functools.partial(_replaced, text)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context, operator, left, right):
        if operator == "**" or operator == "%" and isinstance(left, str):
            raise SecurityError(f"the operator {operator} is not known")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    _BUDGET.get().pay(_size(value) * max(times, 0))
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int) and abs(found) >= 1 << 63:
            raise OverflowError("a number has more than 64 bits")
        return _paid(found)
