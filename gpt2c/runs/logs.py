"""Reading the logs of a run: metrics.jsonl, one object per update, and main.log, llm.c's lines."""

import json
import re
from pathlib import Path

from gpt2c.errors import InputError
from gpt2c.support.files import open_input


def step_of_line(line):
    """The step of a line of main.log; None of any other line."""
    found = re.match(rb"s:([0-9]{1,18}) ", line)
    return int(found[1]) if found else None


def step_of_row(line):
    """The step of a line of metrics.jsonl; None of any other line."""
    row = _row(line)
    return row["step"] if row else None


def _row(line):
    """A line of metrics.jsonl: an object with numbers for step and, where it has them, loss and val_loss; else None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in {"step", "loss", "val_loss"} & {"step", *row}):
        return None
    return row


def _is_number(value):
    """Whether it is one that a float can hold."""
    return type(value) is float or type(value) is int and value.bit_length() < 1024


def read_metrics(folder):
    """The rows of a run's metrics.jsonl. A last line cut short does not count: the run may be going on."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"{folder} is not the folder of a run: there is no {path}")
    with open_input(path) as file:
        lines = file.read().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            raise InputError(
                f"line {number} of {path} is not a row of a run: expected an object with numbers for step, loss and val_loss"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no rows yet: the run has not done an update")
    return rows
