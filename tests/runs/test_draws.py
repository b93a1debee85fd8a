"""Whatever a run is made of, and wherever it is ended: resumed, it is the run that was left alone, to the bit.

    python -m pytest tests/runs/test_draws.py --draws 300 --first-draw 1000

Each draw (draws.py) is a run by itself, and the same run ended at drawn moments, each time resumed with another number of threads
and another recompute. The parameters, moments and every other byte of the last checkpoint are the same, and so are the samples,
and the metrics in all but wall times.
"""

import contextlib
import gc
import io
import json
import os
import random
import signal
import sys
import time
from unittest import mock

import mpi
import pytest
from draws import draw_run
from programs import as_before

from gpt2c.__main__ import main
from gpt2c.models.model import Model
from gpt2c.runs.folder import Run
from gpt2c.runs.logs import read_metrics
from gpt2c.support import files
from gpt2c.training.trainer import Trainer

WALL_TIMES = {"ms", "tok_s"}
MOMENTS = [
    (Model, "loss_and_grad"),
    (Model, "evaluate"),
    (Trainer, "sample"),
    (Trainer, "save"),
    (Run, "append"),
    (files.os, "replace"),
]
PROCESSES = 6


def pytest_generate_tests(metafunc):
    first, count = (metafunc.config.getoption(name) for name in ("--first-draw", "--draws"))
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(first, first + count))
    if "process" in metafunc.fixturenames:
        metafunc.parametrize("process", range(first, first + max(1, count * PROCESSES // 60)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draws")
    words = random.Random(0).choices("the mill wheel turns all day and a frog sits by its door".split(), k=400)
    (folder / "text.txt").write_text(" ".join(words))
    talks = words[:30]
    rows = [[{"role": "user", "content": ask}, {"role": "assistant", "content": say}] for ask, say in zip(talks, talks[1:])]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    with mock.patch.dict(os.environ, GPT2C_CACHE=str(folder / "cache"), GPT2C_LOG="warning"):
        yield folder


class Killed(BaseException):
    """The end of a process."""


def attempt(folder, words, event=None, ending=None):
    """gpt2c train in this process; at its event of this number it is ended. (Whether it came to its end, the number of
    events)."""
    seen = [0]

    def counted(honest):
        def call(*args, **kwargs):
            seen[0] += 1
            if seen[0] == event:
                if ending is Killed:
                    raise Killed
                signal.raise_signal(ending)
            return honest(*args, **kwargs)

        return call

    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_before())
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        for owner, name in MOMENTS:
            stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
        stack.enter_context(mock.patch.object(sys, "argv", ["gpt2c", "train", *words]))
        try:
            main()
        except Killed:
            return False, seen[0]
        except SystemExit as end:
            assert end.code in (0, 128 + signal.SIGTERM), said.getvalue()
            return end.code == 0, seen[0]
        finally:
            gc.collect()  # the folder's lock goes with the process
    raise AssertionError("the program returned")


def rows(folder):
    return [{name: value for name, value in row.items() if name not in WALL_TIMES} for row in read_metrics(folder)]


def assert_same(draw, straight, resumed):
    last = max(straight.glob("ckpt_*"))
    assert max(resumed.glob("ckpt_*")).name == last.name, draw
    for name in (last.name, "best.safetensors", "samples.txt", "main.log"):
        pair = [folder / name for folder in (straight, resumed)]
        assert pair[0].exists() == pair[1].exists(), f"{draw}: {name} is in one of them"
        assert not pair[0].exists() or pair[0].read_bytes() == pair[1].read_bytes(), f"{draw}: {name} differs"
    assert rows(straight) == rows(resumed), draw


def test_a_drawn_run_that_is_ended_and_resumed_is_the_run_left_alone(folder, undrawn, number):
    draw, rng = draw_run(number), random.Random(~number)
    straight, resumed = (f"{name}{number}" for name in ("straight", "resumed"))
    done, events = attempt(folder, [*draw.words, *draw.ways[0], "-o", straight])
    assert done, draw
    for at, way in zip(draw.stops, draw.ways):
        ending = rng.choice([Killed, signal.SIGTERM])
        attempt(folder, [*draw.words, *way, "-o", resumed, "--resume"], 1 + int(at * events), ending)
    for _ in range(2):  # what SIGTERM ended before there was anything to save begins anew
        done, _ = attempt(folder, [*draw.words, *draw.ways[-1], "-o", resumed, "--resume"])
    assert done, draw
    assert_same(draw, folder / straight, folder / resumed)


def test_a_drawn_run_in_processes_of_its_own_that_are_killed(folder, process):
    draw = draw_run(1_000_000 + process, ranks=(1, 1, 2) if not mpi.why_not() else (1,))
    rng, total = random.Random(~process), int(draw.words[draw.words.index("-x") + 1])
    straight, resumed = (f"{name}_process{process}" for name in ("straight", "resumed"))
    program = ["-m", "gpt2c.train", *draw.words]
    mpi.finish(draw.ranks, *program, *draw.ways[0], "-o", straight, folder=folder, GPT2C_LOG="info")
    for at, way in zip(draw.stops, draw.ways):
        words = [*program, *way, "-o", resumed, "--resume"]
        with mpi.started(draw.ranks, *words, folder=folder, GPT2C_LOG="info") as running:
            for line in running.stdout:
                if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= at * total:
                    break
            time.sleep(rng.random() / 50)
            mpi.end(running)
    mpi.finish(draw.ranks, *program, *draw.ways[-1], "-o", resumed, "--resume", folder=folder, GPT2C_LOG="info")
    assert_same(draw, folder / straight, folder / resumed)


DEFAULTS = {
    "gpt2": "--num-layers 1 --channels 16 --num-heads 2 --max-seq-len 24 -e scratch -t 16 -b 2",
    "chargpt": "--num-layers 1 --channels 16 --num-heads 2 --max-seq-len 24 -t 16 -b 2",
    "mingru": "--dim 12 --depth 2 -b 3 -t 16",
    "hybrid": "--hidden 8 --embed 6 --num-layers 2 --order lanes --update-chunks 2 --backprop-chunks 4 -b 2 -t 12 --save-path=",
    "trm": "--channels 16 --hidden 16 --num-heads 2 --max-seq-len 24 -t 16 -b 2 --adaptive",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", DEFAULTS)
def test_killed_sixty_times_a_run_is_the_one_left_alone(folder, family):
    rng, kills, total = random.Random(family), int(os.environ.get("GPT2C_KILLS", 60)), 60
    program = ["-m", "gpt2c.train", "--model", family, *DEFAULTS[family].split(), "--data", "text.txt"]
    program += f"-x {total} -n 1 --keep 3 -v 10 -m 2 -s 20 -g 5".split()
    straight, resumed = f"straight_{family}", f"resumed_{family}"
    mpi.finish(1, *program, "-o", straight, folder=folder, GPT2C_LOG="info")
    while True:
        words = [*program, "--threads", rng.choice([1, 2, 3]), "-r", rng.choice([0, 1, 2]), "-o", resumed, "--resume"]
        with mpi.started(1, *words, folder=folder, GPT2C_LOG="info") as running:
            for line in running.stdout:
                if line.startswith("run: "):
                    break
            if kills:
                time.sleep(rng.uniform(0, 0.05))
                mpi.end(running)
            out, err = running.communicate()
        if running.returncode == -signal.SIGKILL:
            kills -= 1
            continue
        assert running.returncode == 0, out + err
        assert_same(family, folder / straight, folder / resumed)
        if not kills:
            return
        for path in (folder / resumed).glob("*.safetensors"):  # it came to its end: from the beginning again
            path.unlink()
