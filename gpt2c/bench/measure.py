"""The speed of kernels and models, as shares of this machine's peak.

A measurement is a row: a dict of plain values, None where there is nothing to say. machine() has the facts
that the rows of a session share. Models run in processes of their own (Worker): their peak memory is theirs.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from gpt2c import settings
from gpt2c._core import Stream
from gpt2c.bench import kernel_cases, kernel_setups
from gpt2c.engine.flops import FLOPS, flops
from gpt2c.engine.peak import FMA, PRECISIONS, measured_bandwidth, measured_peak, measured_read_bandwidth, raised, unit
from gpt2c.errors import Gpt2cError, ResourceError, UsageError
from gpt2c.models import llama
from gpt2c.models.model import Model, create
from gpt2c.models.registry import make_config
from gpt2c.training.config import TrainConfig
from gpt2c.training.optimizers import Optimizer
from gpt2c.training.trainer import Trainer

RUNS = 5  # at least so many give a median
PAUSE = 0.2  # seconds until the threads of who ran last sleep; OpenBLAS lets its own spin for half of that
ROOT = Path(__file__).parents[2]
TORCH_MODES = ("eager", "compile", "bf16+compile")
EAGER_ONLY = ("hybrid",)  # whose loop over time takes PyTorch many minutes to compile


class ModelCase(NamedTuple):
    shape: str
    B: int
    T: int
    config: dict  # fields other than the family's defaults
    family: str = "gpt2"

    @property
    def name(self):
        return f"train-{self.shape}"

    def create(self):
        return create(self.family, **self.config)

    def unfilled(self):
        """The model without a number in it: memory that nobody touches is never taken."""
        return Model(self.family, make_config(self.family, self.config))


SMALL = {"max_seq_len": 64, "vocab_size": 65, "num_layers": 4, "num_heads": 4, "channels": 128}
MEDIUM = {"max_seq_len": 256, "vocab_size": 65, "num_layers": 6, "num_heads": 6, "channels": 384}
LIKE_GPT2 = {"max_seq_len": 1024, "vocab_size": 50304, "num_layers": 12, "num_heads": 12, "channels": 768}
MODEL_CASES = {
    case.name: case
    for case in (
        ModelCase("gpt2-t64", 4, 64, {}),
        ModelCase("gpt2-t1024", 4, 1024, {}),
        ModelCase("char-0.8M", 12, 64, SMALL),
        ModelCase("char-10M", 16, 256, MEDIUM),
        ModelCase("chargpt-1.2M", 32, 64, {}, "chargpt"),
        ModelCase("mingru-0.6M", 32, 256, {"dim": 128}, "mingru"),
        ModelCase("hybrid-2M", 4, 180, {"hidden": 128, "num_layers": 2}, "hybrid"),
        ModelCase("llama-1.3M", 8, 128, {"vocab_size": 4096}, "llama"),
        ModelCase("llama-t1024", 4, 1024, LIKE_GPT2, "llama"),
        ModelCase("smollm2-t64", 4, 64, llama.SIZES["smollm2-135m"], "llama"),
        ModelCase("trm-0.4M", 16, 80, {"vocab_size": 1000}, "trm"),
    )
}
SHAPES = tuple(case.shape for case in MODEL_CASES.values())


def machine(isas):
    """What must be known to compare rows; peak in GFLOP/s for each instruction set and for each unit that multiplies matrices
    in place of multiply-adds, bandwidth in GB/s."""
    about = settings.info()
    facts = {name: about[name] for name in ("version", "cpu", "cores", "threads", "compiler", "openmp")}
    units = {unit(isa, precision): (isa, precision) for isa in isas for precision in PRECISIONS}
    return {
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "commit": commit(),
        **facts,
        "peak": {isa: measured_peak(isa) for isa in isas},
        "product_peak": {name: measured_peak(*how) for name, how in units.items() if name != FMA},
        "bandwidth": measured_bandwidth(),
        "read_bandwidth": measured_read_bandwidth(),
    }


def share(speed, machine, isa, precision=None):
    """What a row says of a speed in GFLOP/s: which part it is of the peak of which unit, that of products in this precision or
    else multiply-adds. A peak that is exceeded is measured again."""
    of = unit(isa, precision) if precision else FMA
    peaks, key = (machine["peak"], isa) if of == FMA else (machine["product_peak"], of)
    peaks[key] = raised(peaks[key], speed, isa, precision)
    return {"share": speed / peaks[key], "of": of, "roof": peaks[key]}


def share_of_memory(speed, bandwidth):
    """The same of a speed in GB/s; what the caches hold exceeds the bandwidth of memory."""
    return {"share": speed / bandwidth, "of": "memory", "roof": bandwidth}


def commit():
    """The commit of the source tree that this module lies in, if any; "-dirty" where files differ from it."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def medians(steps, seconds, warm_up=True):
    """The median seconds of each step: a function that does its work once and returns how long that took.

    At least RUNS runs and `seconds` each. Several take turns, so that a machine that drifts does so for all.
    The first run of a turn warms up, and does not count; without `warm_up` it does, which is for steps of many calls.
    """
    turns, times = RUNS if len(steps) > 1 else 1, [[] for _ in steps]
    for turn in range(1, turns + 1):
        for step, mine in zip(steps, times):
            if len(steps) > 1:
                time.sleep(PAUSE)
            if warm_up:
                step()
            end = time.perf_counter() + seconds / turns
            while len(mine) < RUNS * turn // turns or time.perf_counter() < end:
                mine.append(step())
    return [statistics.median(mine) for mine in times]


def call_seconds(program):
    """The seconds of each call of one run."""
    seconds = np.empty(len(program))
    program.run(seconds)
    return seconds


def clocked(function):
    """The function as a step for medians()."""

    def step():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return step


# ---- kernels


def kernel_row(case, program, isa, machine, seconds, numpy_seconds=None):
    """A case of kernel_cases that took so long."""
    operations, moved = kernel_cases.amount(case, program)
    by_memory = kernel_cases.bound_by_memory(case)
    memory = machine["read_bandwidth" if case.title in kernel_cases.READ_ONLY else "bandwidth"]
    precision = "fp32" if case.kernel in FLOPS else None
    return {
        "section": "kernels", "isa": isa, "kernel": case.title, "case": case.label,
        "shape": case.shape, "ms": 1e3 * seconds,
        "gflop_s": operations / seconds / 1e9, "gb_s": moved / seconds / 1e9, "intensity": operations / moved,
        "bound": "memory" if by_memory else "arithmetic",
        **(share_of_memory(moved / seconds / 1e9, memory) if by_memory
           else share(operations / seconds / 1e9, machine, isa, precision)),
        "numpy_ms": numpy_seconds and 1e3 * numpy_seconds, "ratio": numpy_seconds and numpy_seconds / seconds,
    }  # fmt: skip


def measure_kernel(case, isa, machine, seconds, with_numpy=False):
    program, numpy = kernel_setups.prepare(case)
    steps = [lambda: call_seconds(program).sum()] + ([clocked(numpy)] if with_numpy and numpy else [])
    return kernel_row(case, program, isa, machine, *medians(steps, seconds))


# ---- models


def training_step(case):
    """What the Trainer does for one update, always on the same random tokens."""
    return Trainer(case.create(), one_batch(case), config=TrainConfig(max_steps=sys.maxsize)).update


def one_batch(case):
    """A loader that always gives the same random tokens."""
    x, y = batch(case)
    return SimpleNamespace(B=case.B, T=case.T, world=1, num_batches=1, next_batch=lambda: (x, y), skip=lambda: None)


def batch(case):
    """Random tokens and targets, (B, T) each."""
    vocab = case.unfilled().config.vocab_size
    return np.random.default_rng(1).integers(vocab, size=(2, case.B, case.T), dtype=np.int32)


def model_flops(case):
    """Useful operations of a training step. Nothing is run."""
    step = case.unfilled().program(case.B, case.T)
    return flops(step.forward_program) + flops(step.backward_program)


def serve(name, isa, threads, precision):
    """The other end of a Worker: a step of MODEL_CASES[name] for each line of standard input."""
    with served():
        settings.set_isa(isa)
        settings.set_num_threads(threads)
        settings.set_matmul_precision(precision)
        case = MODEL_CASES[name]
        step = clocked(training_step(case))
        for _ in sys.stdin:
            print(step(), flush=True)


@contextlib.contextmanager
def served():
    """Ends the process of a Worker with one line where something is wrong; its exit code says what."""
    try:
        yield
    except (Gpt2cError, MemoryError) as error:
        print(f"gpt2c bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, Gpt2cError) else ResourceError.exit_code)


class Worker:
    """A process that does a step for each line it is sent and answers with the seconds it took, or else in JSON.

    Calling it is a step.
    """

    def __init__(self, command, env=None):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
        )  # Ctrl-C is for this process, which then ends the other

    def __call__(self, line=""):
        try:
            print(line, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.communicate()  # whatever it still prints
            code = self.process.returncode
            error = Gpt2cError(
                f"the process {' '.join(self.process.args)} ended with code {code} before it was measured; "
                "what it printed tells why"
            )
            error.exit_code = code if code in (2, 5) else 1
            raise error from None

    def peak_memory(self):
        """The most bytes it has held so far; None where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()


def gpt2c_worker(case, isa, machine, precision):
    call = f"serve({case.name!r}, {isa!r}, {machine['threads']}, {precision!r})"
    return Worker([sys.executable, "-c", f"from gpt2c.bench.measure import serve; {call}"])


def torch_worker(case, mode, python, machine):
    config = {"B": case.B, "T": case.T, **asdict(case.unfilled().config)}
    env = dict(os.environ)
    env.pop("GOMP_SPINCOUNT", None)  # which gpt2c has set for itself
    return Worker([python, str(torch_script(case.family)), mode, str(machine["threads"]), json.dumps(config)], env)


def torch_modes(case, modes):
    """Those of PyTorch's modes in which a case is measured."""
    return [mode for mode in modes if mode == "eager" or case.family not in EAGER_ONLY]


def torch_script(family):
    return ROOT / "benchmarks" / f"torch_{family}.py"


def torch_version(python):
    """PyTorch's version as `python` has it."""
    if not torch_script("gpt2").exists():
        raise UsageError(f"there is no {torch_script('gpt2')}, expected in gpt2c's source tree")
    command = [python, "-c", "import torch; print(torch.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot run {python}: {error.strerror}") from None
    if done.returncode:
        raise UsageError(f"{python} has no PyTorch; name a Python that has it with --torch-python")
    return done.stdout.strip()


def model_row(case, isa, machine, seconds, worker, system, precision, ratio=None):
    """A training step of a model that took so long."""
    speed = model_flops(case) / seconds / 1e9
    return {
        "section": "models", "isa": isa, "work": "train", "model": case.shape, "system": system,
        "ms": 1e3 * seconds, "tok_s": case.B * case.T / seconds, "gflop_s": speed, "bound": "arithmetic",
        **share(speed, machine, isa, precision), "peak_memory": worker.peak_memory(), "ratio": ratio,
    }  # fmt: skip


def measure_model(case, isa, machine, seconds, precision="fp32"):
    with gpt2c_worker(case, isa, machine, precision) as ours:
        system = "gpt2c" if precision == "fp32" else f"gpt2c {precision}"
        return model_row(case, isa, machine, medians([ours], seconds)[0], ours, system, precision)


def measure_torch(case, mode, python, isa, machine, seconds):
    """PyTorch's row; its ratio is to gpt2c, in the same precision, which takes turns with it."""
    precision = "bf16" if "bf16" in mode else "fp32"
    with gpt2c_worker(case, isa, machine, precision) as ours, torch_worker(case, mode, python, machine) as theirs:
        our_seconds, their_seconds = medians([ours, theirs], seconds)
        return model_row(case, isa, machine, their_seconds, theirs, f"torch {mode}", precision, their_seconds / our_seconds)


# ---- where a training step's time goes


def profile(case, isa, machine):
    """One row per kernel of a training step, the longest first, and one of all; medians of RUNS steps."""
    model = case.create()
    step = model.program(case.B, case.T)
    step.tokens[...], step.targets[...] = batch(case)
    model.stream, optimizer = Stream("record"), Optimizer(model)
    model.zero_grad()
    before = model.stream.program()
    optimizer.norm()
    optimizer.update(lr=1e-4, t=1)
    programs = [before, step.forward_program, step.backward_program, model.stream.program()]
    runs = [np.concatenate([call_seconds(program) for program in programs]) for _ in range(1 + RUNS)]

    totals = {}  # kernel -> calls, seconds, operations
    calls = [call for program in programs for call in program.calls]
    for (kernel, sizes), seconds in zip(calls, np.median(runs[1:], axis=0)):
        operations = FLOPS[kernel](**sizes) if kernel in FLOPS else 0
        totals[kernel] = totals.get(kernel, np.zeros(3)) + (1, seconds, operations)
    totals = {"all": sum(totals.values()), **totals}
    whole, nothing = totals["all"][1], {"share": None, "of": ""}
    rows = [{
        "section": "profile", "isa": isa, "model": case.shape, "kernel": kernel, "calls": int(count),
        "ms": 1e3 * seconds, "part": seconds / whole,
        "gflop_s": operations / seconds / 1e9 if operations else None,
        **(share(operations / seconds / 1e9, machine, isa, "fp32") if operations else nothing),
    } for kernel, (count, seconds, operations) in totals.items()]  # fmt: skip
    return sorted(rows, key=lambda row: (row["kernel"] == "all", -row["ms"]))
