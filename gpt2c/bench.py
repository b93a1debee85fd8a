"""Measure speed: python -m gpt2c.bench [kernels|models] [flags], or gpt2c bench.

Kernels are verified and then timed at the shapes of GPT-2 124M; models are trained, prompted and sampled.
Shares are of what this machine can do at most, measured just before; arrays that fit in its caches exceed the
bandwidth of memory. Leave it alone while it runs: whatever else it does is measured too.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import gpt2c
from gpt2c import benchmarks, flags, kernel_cases, tables
from gpt2c.cli import run_program
from gpt2c.errors import Gpt2cError, UsageError
from gpt2c.flags import flag

RIVALS = ("torch", "numpy")


@dataclass
class BenchConfig:
    what: str = flag("", "what to measure", choices=("kernels", "models"), default_text="both")
    filter: str = flag("", "only what has this in its name, such as matmul_forward, T1024 or train-gpt2-t64")
    isa: tuple[str, ...] = flag((), "instruction set, or all", metavar="NAME", default_text="the best")
    threads: int = flag(0, "threads to use", default_text="one per core")
    seconds: float = flag(1.0, "time everything at least so long, and at least five times")
    compare: tuple[str, ...] = flag(
        (), "torch: training beside PyTorch; numpy: products beside NumPy's", metavar="NAME"
    )
    torch_python: str = flag("", "the Python that has PyTorch", metavar="PATH", default_text="this one")
    profile: bool = flag(False, "show instead where the time of a training step goes")
    shape: str = flag(benchmarks.SHAPES[0], "the model of --profile", choices=benchmarks.SHAPES)
    out: str = flag(
        "", "folder for <date>-<machine>.json and .csv", "-o", metavar="DIR", default_text="none is written"
    )


def main(argv):
    (config,), _ = flags.parse(argv, [BenchConfig], "gpt2c bench", __doc__.partition("\n\n")[2], ["what"])
    if config.threads:
        gpt2c.set_num_threads(config.threads)
    isas, rivals = chosen_isas(split(config.isa)), split(config.compare)
    if unknown := set(rivals) - set(RIVALS):
        raise UsageError(f"--compare: expected {' or '.join(RIVALS)}, found {', '.join(sorted(unknown))}")
    kernels, models = ([], []) if config.profile else chosen_cases(config.what, config.filter)
    if config.out:
        make_folder(config.out)
    if "numpy" in rivals:
        use_as_many_threads_in_numpy()

    machine, modes, python = benchmarks.machine(isas), (), config.torch_python or sys.executable
    if "numpy" in rivals:
        machine["numpy"] = np.__version__
    if "torch" in rivals:
        try:
            machine["torch"] = benchmarks.torch_version(python)
            modes = benchmarks.TORCH_MODES
        except UsageError as error:
            print(f"no comparison with PyTorch: {error}")
    print(tables.header(machine))
    rows = []
    try:
        for row in measured(config, isas, kernels, models, machine, "numpy" in rivals, modes, python):
            if not rows or rows[-1]["section"] != row["section"]:
                print(f"\n{tables.titles(row['section'])}")
            print(tables.line(row), flush=True)
            rows.append(row)
    finally:  # what was measured before an interrupt is worth keeping
        if config.out and rows:
            print("\nwritten: " + ", ".join(map(str, tables.save(machine, rows, config.out))))


def split(words):
    """What is given several times, or once with commas."""
    return [name for word in words for name in word.split(",")]


def chosen_isas(names):
    usable = gpt2c.info()["isas"]
    if names == ["all"]:
        return usable
    for name in names:
        gpt2c.set_isa(name)  # an error for what is not usable
    return names or [gpt2c.info()["isa"]]


def chosen_cases(what, text):
    """([kernel cases], [model cases]) to measure."""
    kernels = [] if what == "models" else list(kernel_cases.gpt2_cases(**kernel_cases.GPT2_124M))
    models = [] if what == "kernels" else list(benchmarks.MODEL_CASES.values())
    chosen = [[case for case in cases if text in case.name] for cases in (kernels, models)]
    if not any(chosen):
        names = " or ".join(cases[0].name for cases in (kernels, models) if cases)
        raise UsageError(f"nothing to measure has {text!r} in its name; names are such as {names}")
    return chosen


def make_folder(folder):
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None


def use_as_many_threads_in_numpy():
    """Starts this program anew where NumPy's BLAS, which looks only when it is loaded, saw another number."""
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(gpt2c.info()["threads"]))
    if not threads.items() <= os.environ.items():
        os.environ.update(threads)
        os.execv(sys.executable, sys.orig_argv)


def measured(config, isas, kernels, models, machine, with_numpy, torch_modes, python):
    """The rows, one by one."""
    for isa in isas:
        gpt2c.set_isa(isa)
        if config.profile:
            yield from benchmarks.profile(benchmarks.MODEL_CASES[f"train-{config.shape}"], isa, machine)
        for case in kernels:
            yield benchmarks.measure_kernel(case, isa, machine, config.seconds, with_numpy)
    for isa in isas:
        for case in models:
            for precision in ("fp32", "bf16") if case.work == "train" else ("fp32",):
                yield benchmarks.measure_model(case, isa, machine, config.seconds, precision)
            for mode in benchmarks.torch_modes(case, torch_modes):
                try:
                    yield benchmarks.measure_torch(case, mode, python, isa, machine, config.seconds)
                except Gpt2cError as error:  # such as compile where there is no compiler
                    print(f"torch {mode}: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_program("gpt2c bench", main)
