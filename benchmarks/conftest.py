"""Options of the kernel benchmarks, and the table they end with.

    python -m pytest benchmarks --benchmark-enable [--isas all] [--bench-threads N] [-k NAME]

Without --benchmark-enable nothing is timed: every case is verified once, at a small size.
"""

import sys
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pytest

import gpt2c
from gpt2c.peak import measured_bandwidth, measured_peak

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # reference.py

SPEEDS = pytest.StashKey[list[dict]]()  # one row of the table for each case that was timed


def pytest_addoption(parser):
    group = parser.getgroup("kernel benchmarks")
    group.addoption("--isas", choices=("best", "all"), help="instruction sets to run (default: the best)")
    group.addoption("--bench-threads", type=int, metavar="N", help="threads to run on (default: all cores)")


def pytest_configure(config):
    config.stash[SPEEDS] = []
    config.option.benchmark_quiet = True  # pytest-benchmark's own table does not know flops and bytes


@pytest.fixture(scope="session")
def threads(pytestconfig):
    count = pytestconfig.getoption("--bench-threads", None) or gpt2c.info()["cores"]
    gpt2c.set_num_threads(count)
    return count


@pytest.fixture(scope="session")
def limit(threads):
    """limit(isa, unit): what this machine can do at most, measured in this session."""
    return cache(lambda isa, unit: measured_peak(isa) if unit == "GFLOP/s" else measured_bandwidth())


@pytest.fixture
def speeds(pytestconfig):
    return pytestconfig.stash[SPEEDS]


def pytest_terminal_summary(terminalreporter, config):
    line, machine = terminalreporter.write_line, gpt2c.info()
    for isa, rows in groupby(config.stash[SPEEDS], itemgetter("isa")):
        rows = list(rows)
        limits = " and ".join(sorted({f"{row['limit']:.0f} {row['unit']}" for row in rows}))
        threads = rows[0]["threads"]
        terminalreporter.section(f"{machine['cpu']}, {isa}, {threads} threads, {machine['compiler']}")
        line(f"share: of {limits}, measured; arrays that fit in the caches exceed the bandwidth of memory")
        line(f"{'kernel':<22} {'case':<17} {'shape':<31} {'median ms':>10} {'speed':>14} {'share':>6}")
        for row in rows:
            speed = f"{row['speed']:.1f} {row['unit']:<7}"
            where = f"{row['kernel']:<22} {row['case']:<17} {row['shape']:<31}"
            line(f"{where} {row['ms']:>10.3f} {speed:>14} {row['share']:>6.0%}")
