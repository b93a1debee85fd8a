"""What a rank knows of the others: who starts it, its part of an array, its cores."""

import importlib.util
import os
import subprocess
import sys

import pytest
from mpi import Imagined

from gpt2c.errors import UsageError
from gpt2c.training.ranks import MpiWorld, World, world


@pytest.fixture(autouse=True)
def anew():
    """No world is remembered from one test to the next."""
    world.cache_clear()
    yield
    world.cache_clear()


def test_without_a_launcher_nothing_of_mpi_is_imported():
    program = (
        "import sys, gpt2c.commands.train; from gpt2c.training.ranks import world; "
        "assert world().size == 1 and 'mpi4py' not in sys.modules"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "PRTE"))}
    subprocess.run([sys.executable, "-c", program], env=clean, check=True)


def test_a_launcher_without_mpi4py_is_an_error(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="mpi4py is not installed"):
        world()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert world().size == 1


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000, 1601])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_cover_everything_once(n, size):
    parts = [Imagined(rank, size).part(n) for rank in range(size)]
    assert [first for first, _ in parts[1:]] == [last for _, last in parts[:-1]] and (parts[0][0], parts[-1][1]) == (0, n)
    assert all(first % 16 == 0 or first == n for first, _ in parts)
    assert max(last - first for first, last in parts) - min(last - first for first, last in parts) <= 32


@pytest.mark.parametrize(
    "mine, others, expected",
    [
        ({0, 1, 2, 3}, [], 4),
        ({0, 1, 2, 3}, [{0, 1, 2, 3}], 2),
        ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, 1),
        ({0, 1}, [{2, 3}], 2),
        ({0}, [{1}, {2}, {3}], 1),
        ({0}, [{0}], 1),
    ],
)
def test_cores_are_divided_among_the_ranks_of_a_machine(monkeypatch, mine, others, expected):
    monkeypatch.setattr("gpt2c.training.ranks.allowed_cores", lambda: mine)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    monkeypatch.setattr("gpt2c.support.machine._cgroup_files", lambda name: [])
    assert Imagined(allowed=[mine, *others]).cores() == expected


def test_both_worlds_have_the_same_names():
    assert {name for name in vars(MpiWorld) if not name.startswith("_")} <= vars(World).keys()
