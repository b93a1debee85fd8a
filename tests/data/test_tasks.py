"""Tasks: their questions, answers and rewards."""

import numpy as np
import pytest
from families import model_of

from gpt2c.data.tasks import TASKS, Task, by_number, by_position, by_position_or_half, task_named, task_pairs
from gpt2c.errors import InputError, UsageError
from gpt2c.training.grpo import Grpo, GrpoConfig


@pytest.mark.parametrize("name, end, sizes", [("copy", ":", range(2, 7)), ("reverse", ">", range(2, 6))])
def test_words_are_copied_and_reversed(name, end, sizes):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        prompt, answer = TASKS[name].make(rng)
        assert prompt[-1] == end and answer == (prompt[:-1] if name == "copy" else prompt[-2::-1])
        assert set(answer) <= set("abcdefghij")
        seen.add(len(answer))
    assert seen == set(sizes)


def test_sums_differences_and_products_are_right():
    rng, signs = np.random.default_rng(0), set()
    for _ in range(300):
        prompt, answer = TASKS["arithmetic"].make(rng)
        a, sign, b, equals = prompt
        assert equals == "=" and int(answer) == {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(a), int(b))
        signs.add(sign)
    assert signs == set("+-*")


@pytest.mark.parametrize(
    "reward, text, answer, expected",
    [
        (by_position, "abc", "abc", 1),
        (by_position, "abd", "abc", 2 / 3),
        (by_position, "", "abc", 0),
        (by_position, "abcd", "abc", 0.75),
        (by_position, "ab", "abc", 2 / 3),
        (by_position, "bca", "abc", 0),
        (by_position_or_half, "cba", "cba", 1),
        (by_position_or_half, "cbaa", "cba", 0.375),
        (by_position_or_half, "cbb", "cba", 1 / 3),
        (by_number, "12", "12", 1),
        (by_number, "012", "12", 1),
        (by_number, "-3", "-3", 1),
        (by_number, "12x", "12", 1 / 3),
        (by_number, "1_2", "12", 1 / 6),
        (by_number, "13", "12", 0.25),
        (by_number, "", "0", 0),
        (by_number, "1" * 5000, "1", 0.5 / 5000),
        (by_number, "٣", "3", 0),
    ],
)
def test_rewards(reward, text, answer, expected):
    assert reward(text, answer) == pytest.approx(expected)


def test_pairs_of_a_task_are_always_the_same():
    pairs = TASKS["copy"].pairs(50)
    assert len(pairs) == 50 and pairs == TASKS["copy"].pairs(50) == task_pairs("copy:50") != TASKS["copy"].pairs(50, seed=1)


OWN = """
from gpt2c import Task, by_position

def ask(rng):
    n = rng.integers(50)
    return f"{n}+{n}=", str(2 * n)

task = Task(ask, by_position, answers="0123456789")
"""


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "double.py").write_text(OWN)
    task = task_named(str(tmp_path / "double.py"))
    prompt, answer = task.make(np.random.default_rng(0))
    assert 2 * int(prompt.split("+")[0]) == int(answer)
    assert Grpo(model_of(), task, GrpoConfig(prompts=2)).update().tokens
    monkeypatch.setitem(TASKS, "double", task)
    assert task_named("double") is task
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="defines no `task`"):
        task_named(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match="cannot read"):
        task_named(str(tmp_path / "missing.py"))
    with pytest.raises(UsageError, match="no task 'revers'; did you mean reverse"):
        task_named("revers")


def test_a_task_file_of_a_former_version(tmp_path):
    (tmp_path / "double.py").write_text(OWN.replace("from gpt2c import", "from gpt2c.tasks import"))
    with pytest.warns(FutureWarning, match="from gpt2c import Task"):
        task = task_named(str(tmp_path / "double.py"))
    assert task.pairs(3) and isinstance(task, Task)
