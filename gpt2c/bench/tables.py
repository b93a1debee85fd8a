"""The rows of gpt2c.benchmarks as text, JSON and CSV."""

import csv
import io
import json
import re
from pathlib import Path

from gpt2c.errors import InputError
from gpt2c.support.files import atomic_write, open_input

MOST_POINTS = 1000  # that a picture has room for


def _text(key):
    return lambda row: row[key]


def _number(key, form, factor=1):
    return lambda row: "-" if row[key] is None else format(factor * row[key], form)


def _speed(row):
    by_memory = row["bound"] == "memory"
    return f"{row['gb_s' if by_memory else 'gflop_s']:.1f} {'GB/s' if by_memory else 'GFLOP/s':<7}"


# Of each section: the title of a column, how it is set, and what a row has there.
COLUMNS = {
    "kernels": [
        ("isa", "<10", _text("isa")), ("kernel", "<31", _text("kernel")), ("case", "<16", _text("case")),
        ("shape", "<31", _text("shape")), ("ms", ">10", _number("ms", ".3f")), ("speed", ">14", _speed),
        ("share", ">6", _number("share", ".0%")), ("of", "<12", _text("of")), ("NumPy ms", ">10", _number("numpy_ms", ".3f")),
        ("NumPy/gpt2c", ">11", _number("ratio", ".2f")),
    ],
    "models": [
        ("isa", "<10", _text("isa")), ("work", "<8", _text("work")), ("model", "<12", _text("model")),
        ("system", "<18", _text("system")), ("ms", ">10", _number("ms", ".2f")),
        ("tok/s", ">8", _number("tok_s", ".0f")), ("GFLOP/s", ">8", _number("gflop_s", ".1f")),
        ("share", ">6", _number("share", ".0%")), ("of", "<12", _text("of")),
        ("peak MB", ">8", _number("peak_memory", ".0f", 1e-6)), ("time/gpt2c", ">10", _number("ratio", ".2f")),
    ],
    "generate": [
        ("isa", "<10", _text("isa")), ("weights", "<8", _text("weights")), ("MB", ">7", _number("bytes", ".0f", 1e-6)),
        ("work", "<22", _text("work")), ("tok/s", ">8", _number("tok_s", ".1f")), ("bound", ">8", _number("bound", ".1f")),
        ("share", ">6", _number("share", ".0%")), ("of", "<12", _text("of")), ("times one", ">9", _number("times_one", ".2f")),
        ("llama.cpp", ">9", _number("llama_cpp_tok_s", ".1f")), ("gpt2c/llama.cpp", ">15", _number("ratio", ".2f")),
    ],
    "profile": [
        ("isa", "<10", _text("isa")), ("model", "<12", _text("model")), ("kernel", "<31", _text("kernel")),
        ("calls", ">6", _number("calls", "d")), ("ms", ">10", _number("ms", ".3f")),
        ("of step", ">7", _number("part", ".1%")), ("GFLOP/s", ">8", _number("gflop_s", ".1f")),
        ("share", ">6", _number("share", ".0%")), ("of", "<12", _text("of")),
    ],
}  # fmt: skip


def header(machine):
    """machine() of gpt2c.benchmarks in two or three lines."""
    peaks = ", ".join(f"{isa} {peak:.0f}" for isa, peak in (machine["peak"] | machine["product_peak"]).items())
    openmp, commit = "" if machine["openmp"] else " without OpenMP", machine["commit"] or "(no commit)"
    others = [f"{name} {machine[name]}" for name in ("numpy", "torch", "llama.cpp") if name in machine]
    return (
        f"gpt2c {machine['version']} {commit}, {machine['date']}, {machine['compiler']}{openmp}\n"
        f"{machine['cpu']}, {machine['threads']} threads ({machine['cores']} cores); "
        f"measured peak in GFLOP/s: {peaks}; bandwidth {machine['bandwidth']:.0f} GB/s, reading "
        f"{machine['read_bandwidth']:.0f}" + ("\nbeside it: " + ", ".join(others) if others else "")
    )


def titles(section):
    """The line above a section's rows. A share is of what the next column names, as measured."""
    return " ".join(format(title, form) for title, form, _ in COLUMNS[section]).rstrip()


def line(row):
    return " ".join(format(cell(row), form) for _, form, cell in COLUMNS[row["section"]]).rstrip()


def save(machine, rows, folder):
    """Writes <date>-<machine>.json and .csv; returns their paths. In the CSV every row has all the facts."""
    words = f"{machine['date']} {machine['cpu']}".lower()
    stem = re.sub("[^a-z0-9]+", "-", words).strip("-")
    path, number = Path(folder) / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = Path(folder) / f"{stem}-{number}.json"
    with atomic_write(path) as file:
        file.write(json.dumps({"machine": machine, "rows": rows}, indent=1).encode())
    facts = {name: fact for name, fact in machine.items() if name != "product_peak"}
    full = [row | facts | {"peak": machine["peak"][row["isa"]]} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in full for key in row)))
    writer.writeheader()
    writer.writerows(full)
    with atomic_write(path.with_suffix(".csv")) as file:
        file.write(text.getvalue().encode())
    return path, path.with_suffix(".csv")


def _machine_and_kernels(bench):
    """(machine, rows of kernels) of a parsed file; None if it is no benchmark."""
    machine, rows = (bench.get("machine"), bench.get("rows")) if isinstance(bench, dict) else (None, None)
    if not isinstance(machine, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return None
    rows, peak = [row for row in rows if row.get("section") == "kernels"], machine.get("peak")
    texts = [machine.get("cpu"), *(row.get(key) for row in rows for key in ("kernel", "case", "isa"))]
    if not isinstance(peak, dict) or not all(isinstance(text, str) for text in texts):
        return None
    numbers = [machine.get("threads"), machine.get("bandwidth"), *(peak.get(row["isa"]) for row in rows)]
    numbers += [row.get(key) for row in rows for key in ("intensity", "gflop_s")]
    good = all(type(number) in (int, float) and 1e-9 < number < 1e9 for number in numbers)
    return (machine, rows) if good else None


def load_kernels(path):
    """(machine, rows of kernels) of a JSON file that `save` wrote."""
    with open_input(path) as file:
        try:
            found = _machine_and_kernels(json.load(file))
        except (ValueError, RecursionError):
            found = None
    if not found:
        raise InputError(f"{path} is not a benchmark; name a .json file that gpt2c bench --out has written")
    machine, rows = found
    if not 0 < len(rows) <= MOST_POINTS:
        raise InputError(
            f"{path} has {len(rows)} rows of kernels, expected 1 to {MOST_POINTS}; measure with gpt2c bench kernels --out DIR"
        )
    return machine, rows
