"""Tasks whose answers can be checked: where prompts come from, and what a completion is worth.

A task of one's own is a Task in TASKS, or for the command line one named `task` in a Python file:

    from gpt2c import Task, by_position

    def ask(rng):
        n = rng.integers(50)
        return f"{n}+{n}=", str(2 * n)

    task = Task(ask, by_position, answers="0123456789")
"""

import hashlib
import json
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from gpt2c.errors import InputError, UsageError
from gpt2c.support.fields import nearest
from gpt2c.support.rng import checked_seed

LETTERS, DIGITS = "abcdefghij", "0123456789"
EXAMPLES = 20_000  # to train on
KNOWN = 1000  # by which a task is known
ENDS = "\n|"  # a completion ends with either


@dataclass(frozen=True)
class Task:
    make: Callable[[np.random.Generator], tuple[str, str]]  # a prompt and its answer
    reward: Callable[[str, str], float]  # of a completion without its end, given the answer: 1 where it is right
    answers: str  # the characters that answers are made of

    @property
    def identity(self):
        """By which a checkpoint knows a task again: a digest of its first prompts and answers."""
        return hashlib.sha256(json.dumps(self.pairs(KNOWN)).encode()).hexdigest()

    def pairs(self, examples=EXAMPLES, seed=0):
        """Prompts with their answers: what a model reads before it is rewarded for answers of its own."""
        rng = np.random.default_rng(checked_seed(seed))
        return [self.make(rng) for _ in range(examples)]


def by_position(text, answer):
    """The part of positions at which both have the same character. What is missing or too much counts as different."""
    equal = sum(a == b for a, b in zip(text, answer))
    return equal / max(len(text), len(answer), 1)


def by_position_or_half(text, answer):
    """1 where it is right, else half of by_position."""
    return 1.0 if text == answer else 0.5 * by_position(text, answer)


def by_number(text, answer):
    """The same, where 08 and +8 are right for 8."""
    number = re.fullmatch(r"[+-]?[0-9]{1,999}", text)
    return 1.0 if number and int(text) == int(answer) else 0.5 * by_position(text, answer)


def _letters(rng, fewest, most):
    return "".join(rng.choice(list(LETTERS), rng.integers(fewest, most + 1)))


def _copy(rng):
    word = _letters(rng, 2, 6)
    return f"{word}:", word


def _reverse(rng):
    word = _letters(rng, 2, 5)
    return f"{word}>", word[::-1]


def _arithmetic(rng):
    a, b, sign = int(rng.integers(10)), int(rng.integers(10)), "+-*"[rng.integers(3)]
    return f"{a}{sign}{b}=", str({"+": a + b, "-": a - b, "*": a * b}[sign])


TASKS = {
    "copy": Task(_copy, by_position, LETTERS),
    "reverse": Task(_reverse, by_position_or_half, LETTERS),
    "arithmetic": Task(_arithmetic, by_number, DIGITS + "-"),
}


def task_named(name) -> Task:
    """A task of TASKS, or the `task` of a Python file, which is run for it."""
    if name in TASKS:
        return TASKS[name]
    if not name.endswith(".py"):
        near = nearest(name, {known: known for known in TASKS})
        raise UsageError(f"there is no task {name!r}{near}; the tasks are {', '.join(TASKS)}, or name a Python file")
    _answer_to_former_name()
    try:
        task = runpy.run_path(name).get("task")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    if not isinstance(task, Task):
        raise InputError(f"{name} defines no `task`, expected a gpt2c.Task of that name")
    return task


def _answer_to_former_name():
    """Files of former versions import these names from gpt2c.tasks."""
    former = ModuleType("gpt2c.tasks")

    def named(name):
        if name.startswith("__") or name not in globals():
            raise AttributeError(f"module 'gpt2c.tasks' has no attribute {name!r}")
        warnings.warn(f"gpt2c.tasks is no more: from gpt2c import {name}", FutureWarning, stacklevel=2)
        return globals()[name]

    former.__dict__["__getattr__"] = named
    sys.modules["gpt2c.tasks"] = former


def task_pairs(words):
    """The prompts and answers that NAME or NAME:EXAMPLES stands for."""
    name, _, examples = words.rpartition(":")
    if not name or not examples.isdecimal():
        name, examples = words, EXAMPLES
    return task_named(name).pairs(int(examples))
