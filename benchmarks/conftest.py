"""Options of the kernel benchmarks, and the table they end with.

    python -m pytest benchmarks --benchmark-enable [--isas all] [--bench-threads N] [-k NAME]

Without --benchmark-enable nothing is timed: every case is verified once, at a small size.
"""

from functools import cache

import pytest

import gpt2c
from gpt2c import _core
from gpt2c.bench import measure as benchmarks
from gpt2c.bench import tables

ROWS = pytest.StashKey[list[dict]]()  # one for each case that was timed
MACHINE = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("kernel benchmarks")
    group.addoption("--isas", choices=("best", "all"), help="instruction sets to run (default: the best)")
    group.addoption("--bench-threads", type=int, metavar="N", help="threads to run on (default: all cores)")


def pytest_configure(config):
    config.stash[ROWS] = []
    config.option.benchmark_quiet = True  # pytest-benchmark's own table does not know flops and bytes


@pytest.fixture(scope="session", autouse=True)
def threads(pytestconfig):
    gpt2c.set_num_threads(pytestconfig.getoption("--bench-threads", None) or gpt2c.info()["cores"])


@pytest.fixture(scope="session")
def machine(pytestconfig, threads):
    """machine(): what this machine can do at most, measured when it is first asked for."""

    @cache
    def measured():
        pytestconfig.stash[MACHINE] = benchmarks.machine(_core.isas())
        return pytestconfig.stash[MACHINE]

    return measured


@pytest.fixture
def speeds(pytestconfig):
    return pytestconfig.stash[ROWS]


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash[ROWS]:
        terminalreporter.section("kernels")
        for line in [*tables.header(config.stash[MACHINE]).splitlines(), tables.titles("kernels"), *map(tables.line, rows)]:
            terminalreporter.write_line(line)
