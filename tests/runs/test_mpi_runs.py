"""Runs on several ranks, and every way to stop them. GPT2C_RANK_KILLS sets how often ranks are killed; -m slow kills 20 times."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from mpi import finish, started

import gpt2c
from gpt2c.data import write_shard
from gpt2c.runs.logs import read_metrics
from gpt2c.tokenizers.tokenizer import Tokenizer

MODEL = "-e scratch --num-layers 1 --channels 16 --num-heads 1 --max-seq-len 16 --vocab-size 97"
TINY = [*MODEL.split(), *"--data x_train.bin -b 2 -t 16 -d 128 -l 1e-2 -v 10 -m 3 -s 15 -g 4".split()]


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


def test_a_run_in_epochs_with_lines_of_its_family(mpi, tmp_path):
    words = "--model hybrid --hidden 8 --num-layers 1 --data x_train.bin --vocab-size 97 -b 2 -t 16 --epochs 1 -v 0 -s 0".split()
    out, _ = finish(2, "-m", "gpt2c.train", *words, folder=with_data(tmp_path))
    assert out.count("Saved binary checkpoint to checkpoint.bin") == 1


def test_learning_from_rewards(mpi, tmp_path):
    """The same prompts and coins, so the same answers; the third rank of three has nothing to complete."""
    tokenizer = Tokenizer.make("char", "\n0123456789+-*=:>abcdefghij")
    model = gpt2c.create("mingru", dim=32, depth=1, vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.save(tmp_path / "start.safetensors")
    program = ["-m", "gpt2c", "rlvr", "start.safetensors"]
    words = "--steps 5 --prompts 2 --max-new-tokens 8 --eval-prompts 10 --lr 1e-3 --kl 0.1".split()
    told = []
    for ranks in (1, 3):
        out, _ = finish(ranks, *program, *words, "-o", f"out{ranks}", folder=tmp_path)
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
    model = "--model gpt2 --num-layers 1 --channels 16 --num-heads 1".split()
    words = ["--pretrain", facts, "--instruct", questions, "--pretrain-epochs", 4, "--instruct-epochs", 4, "-b", 1, "-o", "out"]
    out, _ = finish(2, "-m", "gpt2c.train", *model, *words, folder=tmp_path)
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
