"""Pictures: loss curves of runs, the roofline of a benchmark, and what is said where nothing can be drawn."""

import importlib.util
import json
import os

import numpy as np
import pytest
from programs import call, run

from gpt2c.bench import tables
from gpt2c.errors import InputError, UsageError
from gpt2c.runs.logs import read_metrics
from gpt2c.support import pictures

PNG = b"\x89PNG\r\n\x1a\n"
MACHINE = {"date": "2026-01-02 03:04", "cpu": "A$1 CPU", "threads": 2, "peak": {"avx2": 200.0}, "bandwidth": 50.0}
KERNEL = {"section": "kernels", "isa": "avx2", "kernel": "gelu_forward", "case": "T64", "intensity": 1.0, "gflop_s": 30.0}

drawing = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="pictures need matplotlib")


def plot(folder, *words, code=0):
    return call(folder, "plot", *words, code=code)


def write_run(folder, losses):
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": loss, **({"val_loss": loss + 0.1} if step % 2 == 0 else {})})
             for step, loss in enumerate(losses)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def two_runs(tmp_path):
    write_run(tmp_path / "first", [4, 3, 2.5, 2.25])
    write_run(tmp_path / "_b$", [4, 3.5, 3])
    return tmp_path


@drawing
def test_several_runs_are_one_picture(two_runs):
    done = plot(two_runs, "first", "_b$/")
    assert done.stdout == "written: loss.png\n"
    assert (two_runs / "loss.png").read_bytes().startswith(PNG)
    plot(two_runs, "first", "--out", "one.svg")
    assert "<svg" in (two_runs / "one.svg").read_text()


@drawing
def test_the_legend_names_the_runs_and_the_curves(two_runs):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
        pictures.loss_curves({name: read_metrics(two_runs / name) for name in ("first", "_b$")}, two_runs / "a.svg")
        pictures.roofline(MACHINE, [KERNEL], two_runs / "b.svg")
    curves, roof = (two_runs / "a.svg").read_text(), (two_runs / "b.svg").read_text()
    named = [f"{name}: {curve}" for name in ("first", " _b$") for curve in ("training", "validation")]
    assert all(f">{text}<" in curves for text in (*named, "update", "loss"))
    told = "1  gelu_forward", "T64", "norms, activations and others", "A$1 CPU, 2 threads", "avx2: 200 GFLOP/s; memory 50 GB/s"
    assert [text for text in told if f">{text}<" not in roof] == []


def drawn(monkeypatch, picture, *what):
    """The axes of a picture that is not written."""
    kept = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: kept.append(figure))
    picture(*what, "x.png")
    return kept[0].axes[0]


@drawing
def test_a_single_run_has_no_title_and_what_came_before_training_no_line(monkeypatch):
    rows = [{"step": 0, "loss": 9.0, "val_loss": 9.0}, {"step": 10, "loss": 5.0, "val_loss": 6.0}, {"step": 20, "val_loss": 5.0}]
    axes = drawn(monkeypatch, pictures.loss_curves, {"20260101-120000-gpt2": rows})
    assert axes.get_legend_handles_labels()[1] == ["training", "validation"] and not axes.get_title()
    _, points, line = axes.lines
    assert list(points.get_xdata()) == [0, 10, 20] and points.get_linestyle() == "None"
    assert list(line.get_xdata()) == [10, 20] and line.get_linestyle() == "-"


@drawing
def test_no_kernel_is_above_the_roof_and_each_kind_has_a_colour(monkeypatch):
    fast = [
        KERNEL | {"kernel": "residual_forward", "intensity": 0.1, "gflop_s": 20.0},  # from the cache: 200 GB/s
        KERNEL | {"kernel": "matmul_forward", "intensity": 100.0, "gflop_s": 210.0},  # more than the peak that was measured
        KERNEL | {"kernel": "matmul_backward_x", "case": "qkv-T1024", "intensity": 90.0, "gflop_s": 150.0},
    ]
    axes = drawn(monkeypatch, pictures.roofline, MACHINE, fast)
    roofs = [line for line in axes.lines if len(line.get_xdata()) == 3]
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(roofs) == 2 and len(points) == 3
    for point in points:
        x, y = point.get_xdata()[0], point.get_ydata()[0]
        above = [np.interp(np.log(x), np.log(roof.get_xdata()), np.log(roof.get_ydata())) for roof in roofs]
        assert np.log(y) <= max(above) + 1e-6
    colours = [point.get_color() for point in points]
    assert colours[1] == colours[2] != colours[0]


@drawing
def test_a_roofline(tmp_path):
    path, _ = tables.save(MACHINE, [KERNEL, {"section": "models", "isa": "avx2", "ms": 1.0}], tmp_path)
    assert path.name == "2026-01-02-03-04-a-1-cpu.json"
    assert tables.load_kernels(path) == (MACHINE, [KERNEL])
    done = plot(tmp_path, "--roofline", path)
    assert done.stdout == "written: roofline.png\n"
    assert (tmp_path / "roofline.png").read_bytes().startswith(PNG)


@drawing
@pytest.mark.parametrize(
    "name, message", [("loss.doc", "ends in one of"), ("loss", "ends in one of"), ("no/loss.png", "no folder")]
)
def test_a_picture_that_cannot_be_written(two_runs, name, message):
    with pytest.raises(UsageError, match=message):
        pictures.loss_curves({"first": read_metrics(two_runs / "first")}, two_runs / name)
    assert sorted(path.name for path in two_runs.iterdir()) == ["_b$", "first"]


def test_without_matplotlib_the_user_is_told_how_to_get_it(two_runs):
    (two_runs / "matplotlib").mkdir()
    (two_runs / "matplotlib" / "__init__.py").write_text("raise ImportError('not here')")
    done = run(two_runs, "plot", "first", code=2, PYTHONPATH=f"{two_runs}{os.pathsep}{os.environ['PYTHONPATH']}")
    assert done.stdout == ""
    assert done.stderr == 'gpt2c plot: pictures need matplotlib, which is not installed: pip install "gpt2c[plot]"\n'
    assert not (two_runs / "loss.png").exists()


def test_a_line_that_is_being_written_does_not_count(two_runs):
    with open(two_runs / "first" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(two_runs / "first")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"[1]",
        b"5",
        b'{"loss": 1}',
        b'{"step": "1", "loss": 2}',
        b'{"step": 1, "loss": null}',
        b'{"step": 1, "loss": [2]}',
        b'{"step": 1%s}' % (b"0" * 5000),
        b"[" * 10**5,
        b"\xff",
    ],
)
def test_what_is_no_row_of_a_run_is_refused(two_runs, line):
    with open(two_runs / "first" / "metrics.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(InputError, match="line 5 of .* is not a row of a run"):
        read_metrics(two_runs / "first")


@pytest.mark.parametrize("change, message", [
    (lambda b: [], "is not a benchmark"),
    (lambda b: b | {"rows": 5}, "is not a benchmark"),
    (lambda b: b | {"rows": []}, "has 0 rows of kernels, expected 1 to 1000"),
    (lambda b: b | {"rows": 1001 * b["rows"]}, "has 1001 rows of kernels"),
    (lambda b: b | {"rows": [KERNEL | {"gflop_s": -1}]}, "is not a benchmark"),
    (lambda b: b | {"rows": [KERNEL | {"intensity": float("nan")}]}, "is not a benchmark"),
    (lambda b: b | {"rows": [KERNEL | {"kernel": 5}]}, "is not a benchmark"),
    (lambda b: b | {"rows": [KERNEL | {"isa": "avx3"}]}, "is not a benchmark"),
    (lambda b: b | {"machine": MACHINE | {"bandwidth": "fast"}}, "is not a benchmark"),
])  # fmt: skip
def test_what_is_no_benchmark_is_refused(tmp_path, change, message):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(change({"machine": MACHINE, "rows": [KERNEL]})))
    with pytest.raises(InputError, match=message):
        tables.load_kernels(path)


@pytest.mark.parametrize("words, code, message", [
    ([], 2, "name the folders of runs, or a benchmark with --roofline"),
    (["first", "--roofline", "b.json"], 2, "name the folders of runs, or a benchmark with --roofline"),
    (["missing"], 4, "missing is not the folder of a run: there is no missing/metrics.jsonl"),
    (["empty"], 4, "metrics.jsonl has no rows yet"),
    (["--roofline", "first/metrics.jsonl"], 4, "is not a benchmark"),
])  # fmt: skip
def test_errors_are_one_sentence(two_runs, words, code, message):
    (two_runs / "empty").mkdir()
    (two_runs / "empty" / "metrics.jsonl").touch()
    done = plot(two_runs, *words, code=code)
    assert done.stderr.count("\n") == 1 and message in done.stderr and not (two_runs / "missing").exists()
