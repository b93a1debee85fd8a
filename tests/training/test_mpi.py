"""Several ranks under MPI: the same losses on any number of them, the same bits on the same number, and every way to be
stopped. GPT2C_RANK_KILLS sets how often ranks are killed; -m slow kills 20 times. Ranks that wait for one another for ever
are ended after PATIENCE, and none outlives its test.
"""

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import gpt2c
from gpt2c.bench import cluster
from gpt2c.data import write_shard
from gpt2c.data.lanes import Lanes
from gpt2c.errors import UsageError
from gpt2c.formats.native import read
from gpt2c.models.family import FAMILIES
from gpt2c.runs.folder import read_metrics
from gpt2c.runs.resume import recorded_flags
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.training.config import TrainConfig
from gpt2c.training.ranks import MpiWorld, World, world
from gpt2c.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
RANKS = str(Path(__file__).parent / "ranks.py")
TINY = [
    "-e",
    "scratch",
    "--num-layers",
    "1",
    "--channels",
    "16",
    "--num-heads",
    "1",
    "--max-seq-len",
    "16",
    "--vocab-size",
    "97",
    "--data",
    "x_train.bin",
    "-b",
    "2",
    "-t",
    "16",
    "-d",
    "128",
    "-l",
    "1e-2",
    "-v",
    "10",
    "-m",
    "3",
    "-s",
    "15",
    "-g",
    "4",
]

# What Open MPI's launcher wants to be told where there are few cores, or only the superuser.
OPEN_MPI = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
PATIENCE = 100  # seconds
ENVIRONMENT = os.environ | OPEN_MPI | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launcher():
    return shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def why_not():
    """Why there is nothing to test here; "" where there is."""
    if importlib.util.find_spec("mpi4py") is None:
        return 'mpi4py is not installed: pip install -e ".[mpi]"'
    if not launcher():
        return "there is no mpirun"
    done = subprocess.run(
        [launcher(), "-n", "2", sys.executable, "-c", "from gpt2c.training.ranks import world; assert world().size == 2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"mpirun does not start two ranks: {done.stdout}{done.stderr}" if done.returncode else ""


@pytest.fixture(autouse=True)
def anew():
    """No world is remembered from one test to the next."""
    world.cache_clear()
    yield
    world.cache_clear()


@pytest.fixture(scope="module")
def mpi():
    """MPI is optional: where it cannot be installed, or starts no ranks, there is nothing to test."""
    if why := why_not():
        pytest.skip(why)


@contextlib.contextmanager
def started(ranks, *words, folder, **environment):
    command = [sys.executable, *map(str, words)]
    if ranks > 1:
        command = [launcher(), "-n", str(ranks), *command]
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT | environment
    )
    watchdog = threading.Timer(PATIENCE, end, [process])
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        end(process)


def end(process):
    """Kills a launcher and its ranks, if it still runs: whoever reads what they say or waits for them goes on."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def finish(ranks, *words, folder, code=0, **environment):
    with started(ranks, *words, folder=folder, **environment) as process:
        out, err = process.communicate()
    assert process.returncode == code, out + err
    return out, err


# ---- five families on 1, 2, 3 and 4 ranks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(name, ranks, *words): the folder of such a call of ranks.py, made once."""
    folder = tmp_path_factory.mktemp("ranks")
    write_shard(folder / "d_train.bin", np.random.default_rng(0).integers(0, 31, 3000))

    def train(name, ranks, *words):
        if not (folder / name).exists():
            (folder / name).mkdir()
            finish(ranks, RANKS, "d_train.bin", name, *words, folder=folder)
        return folder / name

    return train


def assert_same_losses(one, other, steps=50, tolerance=1e-5, families=FAMILIES):
    """The losses of the last steps, and what was measured of them on the way."""
    for family in families:
        a, b = (json.loads((folder / f"{family}.json").read_text()) for folder in (one, other))
        assert len(b) == steps
        for column, allowed in enumerate((tolerance, 10 * tolerance, tolerance)):  # loss, norm of the gradients, validation
            old, new = ([row[column] for row in rows if row[column] is not None] for rows in (a[-steps:], b))
            np.testing.assert_allclose(new, old, rtol=allowed, err_msg=f"{family}, {column}")


def assert_same_bits(one, other, step):
    """All that a run is made of, but for the flag that says how moments were kept."""
    for family in FAMILIES:
        a, b = (read(folder / f"{family}_{step}.safetensors") for folder in (one, other))
        assert a.tensors.keys() == b.tensors.keys()
        for name in a.tensors:
            assert a.tensors[name].tobytes() == b.tensors[name].tobytes(), f"{family} {name}"
        for content in (a, b):
            content.run.values["config"].pop("zero")
        assert a.run.values == b.run.values


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_number_of_ranks(mpi, trained, ranks):
    assert_same_losses(trained("1", 1), trained(str(ranks), ranks))


def test_sharded_moments_give_the_same_bits(mpi, trained):
    assert_same_bits(trained("2", 2), trained("2-zero", 2, "zero"), 50)


def test_a_resumed_run_has_the_same_bits(mpi, trained):
    assert_same_bits(trained("2", 2), trained("2-again", 2, trained("2", 2)), 50)


@pytest.mark.parametrize("ranks, made, words", [(1, ("2-zero", 2, "zero"), []), (3, ("2", 2), ["zero"]), (2, ("1", 1), [])])
def test_a_run_goes_on_with_another_number_of_ranks(mpi, trained, ranks, made, words):
    """mingru's gradients reach back into a chunk that was computed elsewhere: at first they do so no longer."""
    again = trained(f"{made[0]}-on-{ranks}", ranks, trained(*made), *words)
    assert_same_losses(trained("1", 1), again, 27, families=FAMILIES.keys() - {"mingru"})
    assert_same_losses(trained("1", 1), again, 27, tolerance=1e-3, families=["mingru"])
    old, new = (json.loads((folder / "mingru.json").read_text()) for folder in (trained("1", 1), again))
    np.testing.assert_allclose(new[0][0], old[23][0], rtol=1e-5)  # the state is whole


# ---- the program


@pytest.fixture(scope="module")
def straight(mpi, tmp_path_factory):
    """The checkpoint of 40 uninterrupted steps on two ranks."""
    folder = with_data(tmp_path_factory.mktemp("straight"))
    out, err = finish(2, "-m", "gpt2c.train", *TINY, "-o", "out", "-x", 40, folder=folder)
    assert out.count("step   40/40") == 1 and "2 ranks, 2 of them here with 1 threads each" in out and not err
    return folder / "out/ckpt_00000040.safetensors"


def with_data(folder):
    write_shard(folder / "x_train.bin", np.random.default_rng(0).integers(0, 97, 3000))
    return folder


def assert_same_run(folder, straight):
    for name in (straight.name, "main.log"):
        assert (folder / "out" / name).read_bytes() == (straight.parent / name).read_bytes(), name


def processes(parent):
    """The ranks below a launcher, by number."""
    found = {}
    for child in psutil.Process(parent.pid).children(recursive=True):
        environment = child.environ()
        rank = environment.get("PMI_RANK") or environment.get("OMPI_COMM_WORLD_RANK")
        if rank is not None and Path(child.exe()).name.startswith("python"):
            found[int(rank)] = child
    return found


@pytest.mark.parametrize("whom", [1, "launcher"])
def test_a_signal_to_any_stops_all_after_the_same_step(mpi, straight, tmp_path, whom):
    folder = with_data(tmp_path)
    with started(2, "-m", "gpt2c.train", *TINY, "-o", "out", "-x", 40, folder=folder) as process:
        for line in process.stdout:
            if line.startswith("step   12/"):
                (process if whom == "launcher" else processes(process)[whom]).send_signal(signal.SIGTERM)
                break
        out, err = process.communicate()
    assert process.returncode in (143, 1), out + err  # 1 is the launcher's own of Open MPI, which then hears no more of the ranks
    (saved,) = (folder / "out").glob("ckpt_*")
    assert saved != folder / "out" / straight.name and (process.returncode == 1 or "stopped: SIGTERM: step " in out)
    finish(2, "-m", "gpt2c.train", "-o", "out", "--resume", folder=folder)
    assert_same_run(folder, straight)


def kill_and_relaunch(folder, straight, kills, seed):
    """A run that saves after every step; random ranks are killed at random moments until there were `kills`."""
    rng, words = random.Random(seed), ["-m", "gpt2c.train", *TINY, "-o", "out", "-x", 40, "-n", 1, "--keep", 3, "--resume"]
    while kills:
        with started(2, *words, folder=folder) as process:
            for line in process.stdout:
                if line.startswith("run: "):
                    break
            time.sleep(rng.uniform(0, 0.15))
            ranks = list(processes(process).values())
            if not ranks:  # it has come to its end before
                process.communicate()
                assert_same_run(folder, straight)
                shutil.rmtree(folder / "out")
                continue
            rng.choice(ranks).kill()
            began = time.monotonic()
            process.communicate()
        assert process.returncode and time.monotonic() - began < 5
        assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
        kills -= 1
    finish(2, *words, folder=folder)
    assert_same_run(folder, straight)
    assert not list((folder / "out").glob(".*.tmp"))


def test_killed_ranks(straight, tmp_path):
    kill_and_relaunch(with_data(tmp_path), straight, int(os.environ.get("GPT2C_RANK_KILLS", 2)), seed=1)


@pytest.mark.slow
def test_killed_ranks_twenty_times(straight, tmp_path):
    kill_and_relaunch(with_data(tmp_path), straight, 20, seed=2)


def test_learning_from_rewards(mpi, tmp_path):
    """The same prompts and coins, so the same answers; the third rank of three has nothing to complete."""
    tokenizer = Tokenizer.make("char", "\n0123456789+-*=:>abcdefghij")
    model = gpt2c.create("mingru", dim=32, depth=1, vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save(tmp_path / "start.safetensors")
    words = [
        "-m",
        "gpt2c",
        "rlvr",
        "start.safetensors",
        "--steps",
        5,
        "--prompts",
        2,
        "--max-new-tokens",
        8,
        "--eval-prompts",
        10,
        "--lr",
        "1e-3",
        "--kl",
        "0.1",
    ]
    told = []
    for ranks in (1, 3):
        out, _ = finish(ranks, *words, "-o", f"out{ranks}", folder=tmp_path)
        rows = read_metrics(tmp_path / f"out{ranks}")
        told.append([[row[name] for name in ("reward", "loss", "grad_norm", "entropy", "kl", "tokens")] for row in rows])
        assert out.count("done: step 5 of 5") == 1
    np.testing.assert_allclose(told[1], told[0], rtol=1e-4, atol=1e-7)
    assert np.array(told[0])[:, 2].any()  # there was something to learn


def test_two_phases(mpi, tmp_path):
    facts, questions = tmp_path / "facts.json", tmp_path / "questions.json"
    facts.write_text(json.dumps(["the sky is blue", "grass is green", "snow is white"]), encoding="utf-8")
    questions.write_text(
        json.dumps([{"prompt": "what is the sky ?", "completion": "blue"}, {"prompt": "what is grass ?", "completion": "green"}]),
        encoding="utf-8",
    )
    out, _ = finish(
        2,
        "-m",
        "gpt2c.train",
        "--model",
        "gpt2",
        "--num-layers",
        1,
        "--channels",
        16,
        "--num-heads",
        1,
        "--pretrain",
        facts,
        "--instruct",
        questions,
        "--pretrain-epochs",
        4,
        "--instruct-epochs",
        4,
        "-b",
        1,
        "-o",
        "out",
        folder=tmp_path,
    )
    assert out.count("instruction questions: ") == 1 and out.count("done: step ") == 2


def test_an_error_of_all_is_told_once_and_an_error_of_one_ends_all(mpi, tmp_path):
    out, err = finish(2, "-m", "gpt2c.train", "-e", "none.bin", folder=tmp_path, code=4)
    assert (out + err).count("none.bin") == 1
    program = (
        "import sys, time; from gpt2c.training.ranks import world; w = world()\n"
        "if w.rank: raise ValueError('rank 1 is ill')\nw.barrier(); print('not reached')"
    )
    began = time.monotonic()
    with started(2, "-c", program, folder=tmp_path) as process:
        out, err = process.communicate()
    assert process.returncode and "rank 1 is ill" in err and "not reached" not in out and time.monotonic() - began < 10


# ---- without MPI


def test_without_a_launcher_nothing_of_mpi_is_imported():
    program = (
        "import sys, gpt2c.commands.train; from gpt2c.training.ranks import world; "
        "assert world().size == 1 and 'mpi4py' not in sys.modules"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI", "PRTE"))}
    subprocess.run([sys.executable, "-c", program], env=clean | {"PYTHONPATH": str(ROOT)}, check=True)


def test_a_launcher_without_mpi4py_is_an_error(monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="mpi4py is not installed"):
        world()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert world().size == 1


class Imagined(World):
    """Ranks of which only the numbers exist."""

    def __init__(self, rank=0, size=1, allowed=()):
        self.rank, self.size, self.neighbours, self._allowed = rank, size, len(allowed), allowed

    def _allowed_cores(self):
        return list(self._allowed)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1000, 1601])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_cover_everything_once(n, size):
    parts = [Imagined(rank, size).part(n) for rank in range(size)]
    assert [first for first, _ in parts[1:]] == [last for _, last in parts[:-1]] and (parts[0][0], parts[-1][1]) == (0, n)
    assert all(first % 16 == 0 or first == n for first, _ in parts)
    assert max(last - first for first, last in parts) - min(last - first for first, last in parts) <= 32


@pytest.mark.parametrize(
    "mine, others, expected",
    [
        ({0, 1, 2, 3}, [], 4),
        ({0, 1, 2, 3}, [{0, 1, 2, 3}], 2),
        ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, 1),
        ({0, 1}, [{2, 3}], 2),
        ({0}, [{1}, {2}, {3}], 1),
        ({0}, [{0}], 1),
    ],
)
def test_cores_are_divided_among_the_ranks_of_a_machine(monkeypatch, mine, others, expected):
    monkeypatch.setattr("gpt2c.training.ranks.allowed_cores", lambda: mine)
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4)
    monkeypatch.setattr("gpt2c.support.machine._cgroup_files", lambda name: [])
    assert Imagined(allowed=[mine, *others]).cores() == expected


def test_both_worlds_have_the_same_names():
    assert {name for name in vars(MpiWorld) if not name.startswith("_")} <= vars(World).keys()


def test_lanes_are_shared_out_anew(monkeypatch, tmp_path):
    """Four lanes of one process are two for each of two ranks; three ranks cannot share them."""
    write_shard(tmp_path / "x_train.bin", np.arange(300) % 31)
    model = gpt2c.create("mingru", dim=8, depth=1, vocab_size=31)
    trainer = Trainer(model, Lanes(tmp_path / "x_train.bin", 4, 8, 10), None, TrainConfig(batch_size=4, seq_len=8, max_steps=3))
    list(trainer)
    trainer.save(tmp_path / "x.safetensors")
    content = read(tmp_path / "x.safetensors")
    monkeypatch.setattr("gpt2c.runs.resume.world", lambda: Imagined(size=2))
    assert recorded_flags(content, TrainConfig)["batch_size"] == 2
    monkeypatch.setattr("gpt2c.runs.resume.world", lambda: Imagined(size=3))
    with pytest.raises(UsageError, match="has 4 lanes, which 3 ranks cannot share evenly"):
        recorded_flags(content, TrainConfig)


def test_the_tokens_of_an_update_are_recorded(tmp_path):
    """Where batches are dealt out, however many ranks take part."""
    write_shard(tmp_path / "x_train.bin", np.arange(300) % 31)
    model = gpt2c.create("gpt2", num_layers=1, channels=8, num_heads=1, vocab_size=31, max_seq_len=8)
    trainer = Trainer(model, gpt2c.DataLoader(tmp_path / "x_train.bin", 4, 8), None, TrainConfig(max_steps=1))
    list(trainer)
    trainer.save(tmp_path / "x.safetensors")
    assert recorded_flags(read(tmp_path / "x.safetensors"), TrainConfig)["total_batch_size"] == 32


# ---- predictions


def test_the_formula_of_an_update():
    """By hand: 4 ranks, 16 MiB; each sends 12 MiB twice and adds 12 MiB; parts of 4 MiB travel in 4 pieces."""
    link = cluster.Link(bandwidth=1e9, latency=1e-5)
    expected = 2 * 12 * 2**20 / 1e9 + 12 * 2**20 / 5e9 + 1e-5 * 3 * 5
    assert cluster.exchange(2**24, 4, link, 5e9) == pytest.approx(expected)
    costs = cluster.Costs(batch=0.1, update=0.02, summing=5e9)
    assert cluster.step(2**24, 4, 3, costs, link) == pytest.approx(0.32 + expected)
    rows = list(cluster.predictions(2**24, 100, 3, costs, link))
    assert [row[0] for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[0][2:] == (pytest.approx(0.32), 0, pytest.approx(300 / 0.32), 1) and rows[2][3] == pytest.approx(expected)
    assert all(first[5] > second[5] for first, second in zip(rows, rows[1:]))


def test_a_link_is_found_again():
    """From what sums take on it."""
    link, ranks = cluster.Link(2e9, 3e-5), Imagined(size=3)
    measured = [(floats, cluster.exchange(4 * floats, 3, link, 1e10)) for floats in cluster.SIZES]
    found = cluster.fitted(measured, ranks, 1e10)
    assert found.latency == pytest.approx(link.latency, rel=0.01) and found.bandwidth == pytest.approx(link.bandwidth, rel=0.01)


def test_the_benchmark_of_ranks(mpi, tmp_path):
    out, _ = finish(
        2, "-m", "gpt2c", "bench", "--mpi", "--shape", "char-0.8M", "--batches", 1, "--link-gbit", 25, folder=tmp_path
    )
    assert "2 ranks, 2 of them here with 1 threads each" in out and "sums over all ranks" in out and "an update: " in out
    assert "predicted, with 25 Gbit/s and 50 us" in out and out.splitlines()[-1].split()[0] == "1024"
