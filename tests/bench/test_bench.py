"""The benchmark: cases that are verified before they are timed, rows that say what they measured."""

import csv
import json
import sys

import numpy as np
import pytest
from programs import call, run

import gpt2c
from gpt2c._core import DOORS
from gpt2c.bench import kernel_cases, kernel_setups
from gpt2c.bench import measure as benchmarks
from gpt2c.bench.kernel_oracles import expected
from gpt2c.engine import peak
from gpt2c.errors import Gpt2cError, UsageError

SIZES = {"B": 2, "lengths": (3, 5), "C": 24, "H": 3, "V": 97, "P": 128, "parameters": 1009}
CASES = {case.name: case for case in kernel_cases.gpt2_cases(**SIZES)}
SHAPE = {"max_seq_len": 8, "vocab_size": 65, "num_layers": 2, "num_heads": 2, "channels": 32}
TINY = benchmarks.ModelCase("tiny", 2, 8, SHAPE)
MACHINE = {"peak": {"avx2": 200.0}, "bandwidth": 50.0, "read_bandwidth": 40.0, "threads": 1}


@pytest.fixture
def quick(monkeypatch):
    """What the machine can do is measured on little: test_shares.py is about measuring."""
    for name, value in {"RUNS": 2, "STEPS": 10, "FLOATS": 10**6, "PRODUCTS": ((64, 64, 64),)}.items():
        monkeypatch.setattr(peak, name, value)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_kernel_is_measured():
    """By `peak` the others are."""
    assert {case.kernel for case in CASES.values()} | {"peak"} == set(DOORS)


@pytest.mark.parametrize("name", CASES)
def test_every_output_is_verified(name):
    case = CASES[name]
    subject, outputs = kernel_setups.set_up(case), kernel_setups.outputs(case.kernel)
    assert len(subject.want) >= len(outputs) > 0
    sample = kernel_setups.Sample(case)
    for output, want in zip(outputs, subject.want):
        assert want is not None
        assert output in case.absent or np.size(want) == np.size(sample.of(output, subject.arrays[output]))


@pytest.mark.parametrize("output, name", [(0, "da"), (1, "db")])
def test_a_wrong_result_is_not_timed(monkeypatch, output, name):
    def off(kernel, arguments):
        want = list(expected(kernel, arguments))
        want[output] = want[output] * (1 + 1e-5)
        return want

    monkeypatch.setattr(kernel_setups, "expected", off)
    message = f"residual_backward-T1 is wrong by 1.0e-05 of its norm in {name}, expected at most 1.3e-06"
    with pytest.raises(Gpt2cError, match=message):
        kernel_setups.prepare(kernel_setups.Case("residual_backward", "T1", {"R": 1000}))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("matmul")])
def test_numpy_is_given_the_same_work(name):
    case = CASES[name]
    subject = kernel_setups.set_up(case)
    kernel_setups.NUMPY[case.kernel](**subject.call(case))
    subject.verify(case)  # and not the kernel


def test_a_row_counts_operations_and_bytes():
    case = kernel_setups.Case("matmul_forward", "x", {"R": 2, "C": 3, "N": 5})
    row = benchmarks.kernel_row(case, kernel_setups.prepare(case)[0], "avx2", MACHINE, 1e-9, 3e-9)
    assert row["shape"] == "R=2 C=3 N=5" and row["bound"] == "arithmetic"
    assert row["gflop_s"] == pytest.approx(2 * 2 * 3 * 5) and row["gb_s"] == pytest.approx(4 * (2 * 3 + 5 * 3 + 5 + 2 * 5))
    assert row["share"] == pytest.approx(60 / 200) and row["ratio"] == pytest.approx(3)

    case = kernel_setups.Case("residual_forward", "x", {"R": 10})
    row = benchmarks.kernel_row(case, kernel_setups.prepare(case)[0], "avx2", MACHINE, 1e-9)
    assert (row["bound"], row["ratio"]) == ("memory", None)
    assert row["share"] == pytest.approx(120 / 50) and row["intensity"] == pytest.approx(10 / 120)


def test_a_share_is_of_the_unit_that_did_the_work_and_never_more_than_all_of_it(monkeypatch):
    case = kernel_setups.Case("matmul_forward", "x", {"R": 2, "C": 3, "N": 5})
    program = kernel_setups.prepare(case)[0]
    machine = MACHINE | {"peak": {"amx": 50.0, "avx2": 50.0}, "product_peak": {"AMX fp32": 120.0, "AMX bf16": 600.0}}
    row = benchmarks.kernel_row(case, program, "amx", machine, 1e-9)
    assert (row["share"], row["of"], row["roof"]) == (0.5, "AMX fp32", 120)
    for precision, roof in (("fp32", 120), ("bf16", 600)):
        with benchmarks.Worker(["cat"]) as worker:
            row = benchmarks.model_row(TINY, "amx", machine, 1.0, worker, "gpt2c", precision)
        assert (row["of"], row["share"]) == (f"AMX {precision}", benchmarks.model_flops(TINY) / 1e9 / roof)
    other = next(case for case in CASES.values() if case.kernel == "gru_forward")  # computes, but no product of matrices
    row = benchmarks.kernel_row(other, kernel_setups.prepare(other)[0], "amx", machine, 1.0)
    assert (row["of"], row["roof"]) == ("fp32 FMA", 50)
    monkeypatch.setattr("gpt2c.engine.peak.measured_peak", lambda *_: 75.0)
    row = benchmarks.kernel_row(case, program, "avx2", machine, 1e-9)
    assert (row["share"], row["of"], row["roof"]) == (60 / 75, "fp32 FMA", 75) and machine["peak"]["avx2"] == 75


def test_medians_of_steps_that_take_turns_leave_out_what_warms_up(monkeypatch):
    monkeypatch.setattr(benchmarks, "PAUSE", 0)
    order = []

    def taking(name, *seconds):
        answers = iter(seconds)

        def step():
            order.append(name)
            return next(answers)

        return step

    assert benchmarks.medians([taking("a", 99, 5, 1, 4, 2, 3)], 0) == [3]
    assert order == ["a"] * 6
    order.clear()
    turns = [taking("a", 99, 1, 99, 2, 99, 3, 99, 4, 99, 5), taking("b", 0, 10, 0, 20, 0, 30, 0, 40, 0, 50)]
    assert benchmarks.medians(turns, 0) == [3, 30]
    assert order == ["a", "a", "b", "b"] * 5


def test_the_profile_accounts_for_the_whole_step():
    rows = benchmarks.profile(TINY, "avx2", MACHINE)
    *kernels, whole = rows
    assert whole["kernel"] == "all" and whole["part"] == 1
    assert sum(row["ms"] for row in kernels) == pytest.approx(whole["ms"])
    assert sum(row["calls"] for row in kernels) == whole["calls"]
    assert kernels == sorted(kernels, key=lambda row: -row["ms"])
    found = {row["kernel"]: row for row in kernels}
    assert {"matmul_forward", "attention_backward", "crossentropy_backward", "adamw", "global_norm", "zero"} <= set(found)
    layer, positions = (4 * 32 * 32 + 8 * 32 * 32, 2 * 8)  # weights of a block; the padded vocabulary has 128 rows
    operations = 2 * positions * (2 * layer + 128 * 32)
    assert found["matmul_forward"]["gflop_s"] == pytest.approx(operations / found["matmul_forward"]["ms"] / 1e6)
    assert found["adamw"]["gflop_s"] is None
    assert whole["gflop_s"] * whole["ms"] * 1e6 == pytest.approx(benchmarks.model_flops(TINY))


def test_kernels_in_a_table_a_json_and_a_csv(tmp_path, quick):
    done = call(".", "bench", "kernels", "--filter", "embedding_forward", "--seconds", 0, "--out", tmp_path / "new" / "out")
    about = gpt2c.info()
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gpt2c ") and about["compiler"] in lines[0] and about["cpu"] in lines[1]
    assert "measured peak in GFLOP/s: " + about["isa"] in lines[1] and "bandwidth " in lines[1]
    assert sum("embedding_forward" in line for line in lines) == 2

    (path,) = (tmp_path / "new" / "out").glob("*.json")
    bench_file = json.loads(path.read_text())
    machine, rows = bench_file["machine"], bench_file["rows"]
    assert path.name.startswith(machine["date"][:10]) and str(path) in lines[-1]
    assert [(row["kernel"], row["case"]) for row in rows] == [("embedding_forward", "T64"), ("embedding_forward", "T1024")]
    for row in rows:
        assert f"{row['ms']:.3f}" in done.stdout
        assert row["share"] == pytest.approx(row["gb_s"] / machine["bandwidth"])
    with open(path.with_suffix(".csv"), newline="") as file:
        table = list(csv.DictReader(file))
    for row, line in zip(rows, table, strict=True):
        assert float(line["ms"]) == row["ms"] and line["numpy_ms"] == "" and line["cpu"] == machine["cpu"]
        assert float(line["peak"]) == machine["peak"][row["isa"]] and line["date"] == machine["date"]


def test_products_beside_numpy():
    done = run(
        ".", "bench", "kernels", "--filter", "matmul_forward-attproj-T64", "--seconds", 0, "--compare", "numpy", "--threads", 1
    )
    assert f"beside it: numpy {np.__version__}" in done.stdout and " 1 threads " in done.stdout
    assert float(done.stdout.split()[-1]) > 0 and float(done.stdout.split()[-2]) > 0


def test_a_model_is_trained_and_a_missing_pytorch_is_told(tmp_path, quick):
    python = script(tmp_path / "python", "exit 1")
    done = call(
        ".", "bench", "models", "--filter", "train-char-0.8M", "--seconds", 0, "--compare", "torch", "--torch-python", python
    )
    assert f"no comparison with PyTorch: {python} has no PyTorch; name a Python" in done.stdout
    full, rounded = (line.split() for line in done.stdout.splitlines()[-2:])
    assert full[1:4] == ["train", "char-0.8M", "gpt2c"] and float(full[4]) > 0 and float(full[5]) > 0
    assert rounded[1:5] == ["train", "char-0.8M", "gpt2c", "bf16"] and float(rounded[5]) > 0


def test_pytorch_s_row_is_a_ratio_of_medians(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "PAUSE", 0)
    monkeypatch.setattr(benchmarks, "gpt2c_worker", lambda *_: benchmarks.Worker([script(tmp_path / "ours", answering(0.25))]))
    theirs = script(tmp_path / "theirs", f'case "$1" in -c) echo 9.9 ;; *) {answering(0.5)} ;; esac')
    assert benchmarks.torch_version(theirs) == "9.9"
    row = benchmarks.measure_torch(TINY, "compile", theirs, "avx2", MACHINE, 0)
    assert (row["system"], row["ms"], row["ratio"], row["tok_s"]) == ("torch compile", 500, 2, 32)
    assert row["share"] == pytest.approx(benchmarks.model_flops(TINY) / 0.5 / 200e9)


def answering(seconds):
    return f"while read line; do echo {seconds}; done"


def test_a_process_that_ends_early_is_an_error(tmp_path):
    dies = script(tmp_path / "dies", "exit 5")
    with benchmarks.Worker([dies]) as worker, pytest.raises(Gpt2cError, match="code 5 before it was measured") as caught:
        worker()
    assert caught.value.exit_code == 5
    with pytest.raises(UsageError, match="cannot run .*missing: No such file"):
        benchmarks.torch_version(str(tmp_path / "missing"))


def test_a_worker_knows_its_own_peak_memory():
    command = "import sys; a = bytes(range(256)) * 400_000\nfor _ in sys.stdin: print(1, flush=True)"
    with benchmarks.Worker([sys.executable, "-c", command]) as worker:
        worker()
        peak = worker.peak_memory()
    assert peak is None or 102e6 < peak < 202e6  # the bytes, and a Python beside them


SMALL = {"mingru": {"dim": 8}, "hybrid": {"hidden": 8}, "trm": {"vocab_size": 20, "channels": 8, "hidden": 8}}


@pytest.mark.parametrize(
    "case",
    [case._replace(config=SMALL.get(case.family, TINY.config), T=min(case.T, 8)) for case in benchmarks.MODEL_CASES.values()],
    ids=lambda case: case.name,
)
def test_steps_run_again_and_again(case):
    step = benchmarks.training_step(case)
    step()
    step()
    assert benchmarks.model_flops(case) > 0


@pytest.mark.parametrize("words, message", [
    (["kernles"], "expected one of kernels, models, generate, found 'kernles'"),
    (["kernels", "--filter", "softmax"], "nothing to measure has 'softmax' in its name"),
    (["--isa", "sse9"], "instruction set 'sse9' is not usable here"),
    (["--compare", "torch,jax"], "--compare: expected torch or numpy, found jax"),
    (["--shape", "gpt5"], "--shape: expected one of gpt2-t64"),
    (["--profile", "--filter", "char"], "--filter does nothing here: the model of --profile and --mpi is --shape NAME"),
    (["--filter", "residual", "--out", "file"], "cannot make the folder file: File exists"),
])  # fmt: skip
def test_errors_are_one_sentence(tmp_path, words, message):
    (tmp_path / "file").touch()
    done = call(tmp_path, "bench", *words, code=2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and done.stdout == ""
