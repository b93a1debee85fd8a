"""However a run is stopped, it goes on with the same bits, and nobody has to repair anything.

GPT2C_KILLS sets how often the run that saves after every step is killed; -m slow kills it 200 times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.formats.native import metadata
from gpt2c.models.files import load_run

SHAPE = "-e scratch --num-layers 1 --channels 16 --num-heads 1 --max-seq-len 16 --vocab-size 97"
TINY = [*SHAPE.split(), *"--data x_train.bin -b 2 -t 16 -l 1e-2 -v 10 -m 2 -s 15 -g 4".split()]

# Runs the training program and says on stdout, unbuffered, when it comes to a phase: a method before which it waits.
PHASES = """
import os, sys, time
import gpt2c.__main__, gpt2c.runs.start, gpt2c.training.trainer, gpt2c.formats.native, gpt2c.models.model
def announce(owner, name, phase, after=0):
    honest, calls = getattr(owner, name), [0]
    def told(*args, **kwargs):
        calls[0] += 1
        if calls[0] == after + 1:
            os.write(1, f"PHASE {phase}\\n".encode())
            time.sleep(0.25)
        return honest(*args, **kwargs)
    setattr(owner, name, told)
phase = sys.argv.pop(1)
owner, name, after = {
    "start": (gpt2c.runs.start, "choose_source", 0), "step": (gpt2c.models.model.Model, "loss_and_grad", 17),
    "evaluation": (gpt2c.models.model.Model, "evaluate", 5), "sampling": (gpt2c.training.trainer.Trainer, "sample", 0),
    "saving": (gpt2c.formats.native, "_digest", 9)}[phase]
announce(owner, name, phase, after)
gpt2c.__main__.main("train")
"""


@pytest.fixture
def folder(tmp_path):
    return with_data(tmp_path)


def with_data(folder):
    write_shard(folder / "x_train.bin", np.random.default_rng(0).integers(0, 97, 1000))
    return folder


def start(folder, *words, program=("-m", "gpt2c.train")):
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(folder, *words):
    """To the end, in this process: another one than that which was stopped."""
    return call(folder, "train", *words).stdout


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The checkpoint of 40 uninterrupted steps."""
    folder = with_data(tmp_path_factory.mktemp("straight"))
    finish(folder, *TINY, "-o", "straight", "-x", 40)
    return folder / "straight/ckpt_00000040.safetensors"


def assert_same_run(folder, straight):
    """Parameters, moments, the next batch and the state of sampling are all in these bytes, and nothing else but flags."""
    assert (folder / "out" / straight.name).read_bytes() == straight.read_bytes()
    for name in ("samples.txt", "main.log"):
        assert (folder / "out" / name).read_bytes() == (straight.parent / name).read_bytes(), name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_run_goes_on(folder, straight, number):
    process = start(folder, *TINY, "-o", "out", "-x", "40")
    for line in process.stdout:
        if line.startswith("step   12/"):
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and f"{number.name}: saving after this step" in err, out + err
    assert f"stopped: {number.name}: step " in out
    finish(folder, "-o", "out", "--resume", "--threads", "1")
    assert_same_run(folder, straight)


@pytest.mark.parametrize(
    "number, phase",
    [
        (signal.SIGTERM, "start"),
        (signal.SIGTERM, "step"),
        (signal.SIGTERM, "evaluation"),
        (signal.SIGTERM, "sampling"),
        (signal.SIGTERM, "saving"),
    ],
)
def test_a_signal_in_any_phase(folder, straight, number, phase):
    """The checkpoint is at most one step behind, and the run goes on as if nothing had been."""
    process = start(folder, phase, *TINY, "-o", "out", "-x", 40, "-n", 1, program=["-c", PHASES])
    step = 0
    for line in process.stdout:
        if line.startswith("step "):
            step = int(line.split()[1].split("/")[0])
        if line.startswith("PHASE"):
            time.sleep(0.05)
            process.send_signal(number)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out + err
    if phase == "start":
        assert "nothing has been trained yet" in err and not (folder / "out").exists()
    else:
        newest = max((folder / "out").glob("ckpt_*"))
        model, run = load_run(newest)
        assert run.values["step"] in (step, step + 1) and np.isfinite(model.params.flat).all()
    finish(folder, *TINY, "-o", "out", "--resume", "-x", 40)
    assert_same_run(folder, straight)


def test_a_second_signal_leaves_at_once(folder):
    """Even in the middle of a kernel, where Python's own handlers wait: the last checkpoint is untouched."""
    slow = [
        "-e",
        "scratch",
        "--num-layers",
        "4",
        "--channels",
        "256",
        "--num-heads",
        "4",
        "--max-seq-len",
        "512",
        "--vocab-size",
        "97",
        "--data",
        "x_train.bin",
        "-b",
        1,
        "-t",
        512,
        "-d",
        512 * 60,
        "-v",
        0,
        "-s",
        0,
        "-o",
        "out",
        "-x",
        50,
        "-n",
        1,
    ]
    process = start(folder, *slow)
    for line in process.stdout:
        if line.startswith("step    1/"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 0.5 and "once more to leave at once" in err
    (checkpoint,) = (folder / "out").glob("ckpt_*")
    assert load_run(checkpoint)[1].values["step"] == 1


def test_the_same_signal_sent_twice_by_a_launcher_counts_once(folder):
    process = start(folder, *TINY, "-o", "out", "-x", 100000)
    for line in process.stdout:
        if line.startswith("step   12/"):
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and len(list((folder / "out").glob("ckpt_*"))) == 1


def test_usr1_saves_and_goes_on(folder):
    process = start(folder, *TINY, "-o", "out", "-x", 100000, "--log-every", 1)
    seen, asked = 0, False
    for line in process.stdout:
        seen += line.startswith("step ")
        if seen == 5 and not asked:
            process.send_signal(signal.SIGUSR1)
            asked = True
        if asked and list((folder / "out").glob("ckpt_*")):
            break
    (saved,) = (folder / "out").glob("ckpt_*")
    assert metadata(saved)["step"] >= 5
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and len(list((folder / "out").glob("ckpt_*"))) == 2


def kill_and_resume(folder, straight, kills, seed):
    """Runs that save after each step, killed at random moments and resumed, until `kills` were killed; then to the end.

    A run that has come to its end is begun anew. Returns how often that was.
    """
    rng, ended = random.Random(seed), 0
    words = [*TINY, "-o", "out", "-x", 40, "-n", 1, "--keep", 3, "--resume"]
    newest = 0
    while kills:
        process = start(folder, *words)
        for line in process.stdout:
            if line.startswith("run: "):  # the training begins
                break
        time.sleep(rng.uniform(0, 0.025))
        process.kill()
        out, err = process.communicate(timeout=60)
        if process.returncode == 0:
            assert_same_run(folder, straight)
            ended, newest = ended + 1, 0
            for path in [*(folder / "out").glob("ckpt_*")]:
                path.unlink()
            continue
        assert process.returncode == -signal.SIGKILL, err
        kills -= 1
        steps = [load_run(path)[1].values["step"] for path in (folder / "out").glob("ckpt_*")]  # every one is whole
        assert max(steps, default=0) >= newest, "a step that was saved is lost"
        newest = max(steps, default=0)
        if newest >= 38:
            finish(folder, *words)
            assert_same_run(folder, straight)
            ended, newest = ended + 1, 0
            for path in [*(folder / "out").glob("ckpt_*")]:
                path.unlink()
    finish(folder, *words)
    assert_same_run(folder, straight)
    assert not list((folder / "out").glob(".*.tmp"))
    return ended


def test_killed_while_saving_every_step(folder, straight):
    kill_and_resume(folder, straight, int(os.environ.get("GPT2C_KILLS", 5)), seed=1)


@pytest.mark.slow
def test_killed_two_hundred_times_while_saving_every_step(folder, straight):
    kill_and_resume(folder, straight, 200, seed=2)


def test_memory_stays_flat(folder):
    """At most 1 MiB more after 2,000 steps with validation, sampling and saving than after the first 300."""
    model = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)
    loaders = [gpt2c.DataLoader(str(folder / "x_train.bin"), B=2, T=16, shuffle=shuffle) for shuffle in (True, False)]
    config = gpt2c.TrainConfig(max_steps=2300, val_every=10, val_steps=2, skip_loss_z=1e9)
    trainer = gpt2c.Trainer(model, *loaders, config)
    from gpt2c.runs.folder import Run

    run, process, before = Run(folder / "out"), psutil.Process(), None
    run.take()
    for step in trainer:
        run.log(step.step, step.val_loss, loss=step.loss, lr=step.lr, grad_norm=step.grad_norm)
        if trainer.step % 20 == 0:
            trainer.sample([1], 8)
            trainer.save(run.on_the_way(trainer.step))
            run.retain(2, trainer.step)
        if trainer.step == 300:
            before = process.memory_info().rss
    assert process.memory_info().rss - before <= 2**20
    assert Path(run.last(2300)).exists()


def test_the_last_validation_is_in_both_logs_or_is_done_again(folder):
    """A run that is killed between the two has it in one of them."""
    words = [*TINY, "-o", "out", "-x", 10]
    finish(folder, *words)
    logs = {name: (folder / "out" / name).read_bytes() for name in ("main.log", "metrics.jsonl")}
    assert all(b"10" in text.splitlines()[-1] for text in logs.values())
    for cut in logs:
        path = folder / "out" / cut
        path.write_bytes(b"".join(logs[cut].splitlines(keepends=True)[:-1]))
        finish(folder, *words, "--resume")
        assert {name: (folder / "out" / name).read_bytes() for name in logs} == logs, cut
