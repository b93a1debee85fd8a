"""Threads of Python and children of fork: several models run at once, settings change meanwhile, and a child goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2c

HERE = Path(__file__).parent


def check(name):
    """A check of at_once.py in a process of its own, which may die or hang."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ["PYTHONPATH"]])}
    words = [sys.executable, "-X", "faulthandler", str(HERE / "at_once.py"), name]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"


CHECKS = [
    "steps_keep_their_bits",
    "a_run_keeps_its_settings",
    "threads_that_come_during_a_run_wait_for_the_next",
    "a_program_runs_once_at_a_time",
]


@pytest.mark.parametrize("name", CHECKS)
def test_at_once(name):
    check(name)


@pytest.mark.skipif(not gpt2c.info()["openmp"], reason="built without threads")
@pytest.mark.parametrize("name", ["a_child_goes_on_with_one_thread", "a_child_may_have_the_first_threads"])
def test_forked(name):
    check(name)
