"""Measure speed: python -m gpt2c bench [kernels|models|generate] [flags], or gpt2c bench.

Kernels are verified and then timed, most at the shapes of GPT-2 124M; models are timed in training.
generate: reading a prompt, decoding, and 8 sequences at once, verified before, with weights of each type; beside llama.cpp on the
same GGUF file where this Python, or that of GPT2C_JUDGE, has xllamacpp. Decoding is bound by reading weights and cache, 8
sequences by the products that a prompt takes as well.
Shares are of the peak FLOP/s or memory bandwidth of this machine, measured just before; arrays that fit in its caches
can exceed the bandwidth. Run nothing else meanwhile: it would be measured too.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2c import settings
from gpt2c.bench import cluster, generation, kernel_cases, tables
from gpt2c.bench import measure as benchmarks
from gpt2c.commands.command_line import parse
from gpt2c.errors import Gpt2cError, UsageError
from gpt2c.models.frozen import CHOICES
from gpt2c.models.model import create
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.streams import say
from gpt2c.training.config import TrainConfig
from gpt2c.training.ranks import world
from gpt2c.training.trainer import Trainer

RIVALS = ("torch", "numpy")


@dataclass
class BenchConfig:
    what: str = flag("", "what to measure", choices=("kernels", "models", "generate"), default_text="kernels and models")
    filter: str = flag("", "only cases with this in their name, such as matmul_forward, T1024, train-gpt2-t64 or decode")
    checkpoint: str = flag("", "with generate: model, any file that is read", metavar="FILE", default_text="a new GPT-2 124M")
    weights: tuple[str, ...] = flag(
        (), "with generate: what weights are kept as, as for generate, or all", metavar="TYPE", default_text="stored"
    )
    isa: tuple[str, ...] = flag((), "instruction set, or all", metavar="NAME", default_text="the best")
    threads: int = flag(0, "CPU threads to use", default_text="one per core")
    seconds: float = flag(1.0, "minimum time to measure each case, in seconds; each is run at least five times")
    compare: tuple[str, ...] = flag(
        (), "torch: compare training with PyTorch; numpy: compare matrix products with NumPy", metavar="NAME"
    )
    torch_python: str = flag("", "Python interpreter that has PyTorch", metavar="PATH", default_text="this one")
    profile: bool = flag(False, "profile a training step instead: show how its time divides over kernels")
    shape: str = flag(benchmarks.SHAPES[0], "model for --profile and --mpi", choices=benchmarks.SHAPES)
    mpi: bool = flag(
        False,
        "data-parallel scaling instead: cost and gain of the ranks that mpirun has started, and a prediction "
        "for more, one per node",
    )
    batches: int = flag(4, "with --mpi: batches per rank and update")
    link_gbit: float = flag(10.0, "with --mpi: bandwidth of the network link between nodes, each way, in Gbit/s")
    link_us: float = flag(50.0, "with --mpi: latency of the network link between nodes, in microseconds")
    out: str = flag(
        "", "output directory for <date>-<machine>.json and .csv", "-o", metavar="DIR", default_text="none is written"
    )

    def __post_init__(self):
        require_at_least(self, seconds=0, batches=1)
        if self.filter and (self.profile or self.mpi):
            raise UsageError("--filter does nothing here: the model of --profile and --mpi is --shape NAME")
        if (self.checkpoint or self.weights) and self.what != "generate":
            raise UsageError("--checkpoint and --weights are for gpt2c bench generate")
        if self.what == "generate" and (self.profile or self.mpi or self.compare):
            raise UsageError("--profile, --mpi and --compare do nothing for gpt2c bench generate; leave them out")
        if min(self.link_gbit, self.link_us) <= 0:
            raise UsageError(f"link_gbit is {self.link_gbit:g} and link_us {self.link_us:g}, expected more than 0")


def main(argv):
    (config,), _ = parse(argv, [BenchConfig], "gpt2c bench", __doc__.partition("\n\n")[2], ["what"])
    if config.mpi:
        return measure_ranks(config)
    if config.threads:
        settings.set_num_threads(config.threads)
    isas, rivals = chosen_isas(split(config.isa)), split(config.compare)
    if unknown := set(rivals) - set(RIVALS):
        raise UsageError(f"--compare: expected {' or '.join(RIVALS)}, found {', '.join(sorted(unknown))}")
    if config.out:
        make_folder(config.out)
    if config.what == "generate":
        measure_generation(config, isas)
        return
    kernels, models = ([], []) if config.profile else chosen_cases(config.what, config.filter)
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
    show(measured(config, isas, kernels, models, machine, "numpy" in rivals, modes, python), machine, config.out)


def show(found, machine, out):
    """Prints rows as they come, and writes them to the folder, if there is one."""
    print(tables.header(machine))
    rows = []
    try:
        for row in found:
            if not rows or rows[-1]["section"] != row["section"]:
                print(f"\n{tables.titles(row['section'])}")
            print(tables.line(row), flush=True)
            rows.append(row)
    finally:  # what was measured before an interrupt is worth keeping
        if out and rows:
            say("\nwritten: " + ", ".join(map(str, tables.save(machine, rows, out))))


def measure_generation(config, isas):
    """Shows generation with each type of weights, from the file that is named or a new one."""
    chosen = CHOICES if config.weights == ("all",) else split(config.weights) or ["stored"]
    if unknown := set(chosen) - set(CHOICES):
        raise UsageError(f"--weights: expected {', '.join(CHOICES)} or all, found {', '.join(sorted(unknown))}")
    python = os.environ.get("GPT2C_JUDGE") or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        path = config.checkpoint
        if not path:
            path = Path(folder) / "gpt2-124M"
            create("gpt2").save(path)
        works = generation.fitting(path, config.filter)
        machine, version = benchmarks.machine(isas), generation.llama_cpp(python)
        if version:
            machine["llama.cpp"] = version
        how = (config.seconds, version and python, folder)
        show((row for isa in isas for weights in chosen
              for row in generation.measure(path, weights, works, isa, machine, *how)), machine, config.out)  # fmt: skip


def measure_ranks(config):
    """Prints what gpt2c.cluster measures and predicts."""
    ranks, case = world(), benchmarks.MODEL_CASES[f"train-{config.shape}"]
    ranks.quiet()
    ranks.settle(config.threads)
    threads = settings.info()["threads"]
    print(
        f"{ranks.size} ranks, {ranks.neighbours} of them here with {threads} threads each; {case.shape}, batches of {case.B} x "
        f"{case.T}, {config.batches} of each rank in an update",
        flush=True,
    )
    model = case.create()
    S, costs = model.params.nbytes, cluster.costs(case, model, ranks)
    print(f"a batch {1e3 * costs.batch:.1f} ms, an update {1e3 * costs.update:.1f} ms, adding {costs.summing / 1e9:.1f} GB/s")
    if ranks.size > 1:
        compare_ranks(config, case, model, costs, ranks)
    link = cluster.Link(config.link_gbit * 1e9 / 8, config.link_us * 1e-6)
    print(
        f"\npredicted, with {config.link_gbit:g} Gbit/s and {config.link_us:g} us between nodes:\n"
        f"{'nodes':>6} {'tokens':>9} {'ms':>9} {'exchanging':>11} {'tok/s':>10} {'efficiency':>11}"
    )
    for N, tokens, seconds, exchanging, speed, efficiency in cluster.predictions(S, case.B * case.T, config.batches, costs, link):
        print(f"{N:6d} {tokens:9d} {1e3 * seconds:9.1f} {1e3 * exchanging:11.1f} {speed:10.0f} {efficiency:11.1%}")


def compare_ranks(config, case, model, costs, ranks):
    """Sums over the ranks that are there, and an update as it is and as it was to be expected."""
    measured = []
    print(f"\nsums over all ranks:\n{'bytes':>12} {'ms':>10} {'GB/s':>8}")
    for floats, seconds in cluster.sums(ranks):
        measured.append((floats, seconds))
        print(f"{4 * floats:12d} {1e3 * seconds:10.3f} {8 * floats * (1 - 1 / ranks.size) / seconds / 1e9:8.2f}", flush=True)
    link = cluster.fitted(measured, ranks, costs.summing)
    S = model.params.nbytes
    print(
        f"the link: {8e-9 * link.bandwidth:.1f} Gbit/s each way, {1e6 * link.latency:.1f} us a message\n"
        f"hidden behind the computation of a batch: {cluster.hidden(case, model, ranks):.0%} of a sum by MPI alone",
        flush=True,
    )
    loader = benchmarks.one_batch(case)
    trainer = Trainer(
        model, loader, config=TrainConfig(max_steps=sys.maxsize, total_batch_size=config.batches * ranks.size * case.B * case.T)
    )
    now, expected = cluster.median(trainer.update, ranks, 3), cluster.step(S, ranks.size, config.batches, costs, link)
    print(
        f"an update: {1e3 * now:.1f} ms, predicted {1e3 * expected:.1f} ms ({expected / now - 1:+.1%}); "
        f"{trainer.tokens_per_step / now:.0f} tok/s"
    )


def split(words):
    """What is given several times, or once with commas."""
    return [name for word in words for name in word.split(",")]


def chosen_isas(names):
    usable = settings.info()["isas"]
    if names == ["all"]:
        return usable
    for name in names:
        settings.set_isa(name)  # an error for what is not usable
    return names or [settings.info()["isa"]]


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
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(settings.info()["threads"]))
    if not threads.items() <= os.environ.items():
        os.environ.update(threads)
        os.execv(sys.executable, sys.orig_argv)


def measured(config, isas, kernels, models, machine, with_numpy, torch_modes, python):
    """The rows, one by one."""
    for isa in isas:
        settings.set_isa(isa)
        if config.profile:
            yield from benchmarks.profile(benchmarks.MODEL_CASES[f"train-{config.shape}"], isa, machine)
        for case in kernels:
            yield benchmarks.measure_kernel(case, isa, machine, config.seconds, with_numpy)
    for isa in isas:
        for case in models:
            for precision in ("fp32", "bf16"):
                yield benchmarks.measure_model(case, isa, machine, config.seconds, precision)
            for mode in benchmarks.torch_modes(case, torch_modes):
                try:
                    yield benchmarks.measure_torch(case, mode, python, isa, machine, config.seconds)
                except Gpt2cError as error:  # such as compile where there is no compiler
                    print(f"torch {mode}: {error}", file=sys.stderr)
