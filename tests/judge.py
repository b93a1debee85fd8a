"""Other programs as judges of what gpt2c reads and writes. They are in a Python of their own, which GPT2C_JUDGE names;
tests/judges has what runs there."""

import json
import os
import subprocess
from pathlib import Path

import pytest

JUDGES = Path(__file__).parent / "judges"


def asked(judge, seconds=600, **request):
    """What a judge, a program of tests/judges, answers to a request; without it the test is skipped."""
    python = os.environ.get("GPT2C_JUDGE")
    if not python:
        pytest.skip(f"GPT2C_JUDGE names no Python with what tests/judges/{judge}.py imports")
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    how = dict(input=json.dumps(request), capture_output=True, text=True, timeout=seconds, env=apart)
    done = subprocess.run([python, JUDGES / f"{judge}.py"], **how)
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
