"""The places that runs write to: one run each, only their own files, whatever happens to them meanwhile."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from programs import call

from gpt2c.data import write_shard
from gpt2c.errors import UsageError
from gpt2c.formats import native
from gpt2c.runs.folder import Run

SMALL = "-e scratch --num-layers 1 --channels 8 --num-heads 1 --max-seq-len 8 --vocab-size 17 -b 1 -t 8 -v 0 -s 0".split()


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 17, 500))
    return tmp_path


def train(folder, *words, code=0):
    return call(folder, "train", *SMALL, "--data", "x_train.bin", *words, code=code)


def names(folder):
    return sorted(os.listdir(folder))


# ---- what a killed save left


def test_only_leftovers_of_this_run_s_own_files_go(tmp_path):
    """Not those of a run with a similar name, which is in the middle of a save."""
    ours = ["m.bin", "m_best.bin", "m_step12.bin", "m_epoch3.bin"]
    others = ["m2.bin", "model.bin", "m.bin2", "m_step.bin", "m_other.bin", "m_best_best.bin", "m.binary.bin", "m.txt"]
    for name in (*ours, *others):
        (tmp_path / f".{name}.0123abcd.tmp").touch()
    run = Run(save_path=tmp_path / "m.bin")
    run.take()
    assert {name for name in names(tmp_path) if name.endswith(".tmp")} == {f".{name}.0123abcd.tmp" for name in others}


def test_in_its_folder_too(tmp_path):
    ours = [
        "ckpt_00000001.safetensors",
        "best.safetensors",
        "config.toml",
        "metrics.jsonl",
        "main.log",
        "samples.txt",
        "loss.png",
    ]
    ours += ["model_epoch_2.bin", "final.bin", "vocab.txt"]
    others = ["m.bin", "my_ckpt_00000001.safetensors", "ckpt_1.bin", "model_epoch_x.bin"]
    for name in (*ours, *others):
        (tmp_path / f".{name}.0123abcd.tmp").touch()
    Run(tmp_path, names={"epoch": "model_epoch_{epoch}.bin", "last": "final.bin", "tokenizer": "vocab.txt"}).take()
    assert names(tmp_path) == sorted(f".{name}.0123abcd.tmp" for name in others)


def test_leftovers_of_a_file_behind_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "m.bin").symlink_to("far/real.bin")
    (tmp_path / "far/.real.bin.0123abcd.tmp").touch()
    Run(save_path=tmp_path / "m.bin").take()
    assert names(tmp_path / "far") == []


# ---- one run at a time


def test_two_runs_do_not_save_to_one_file(tmp_path):
    first, second = Run(save_path=tmp_path / "m.bin"), Run(save_path=tmp_path / "m.bin")
    first.take()
    with pytest.raises(UsageError, match="another process is saving to .*m.bin: wait for it, or choose another --save-path"):
        second.take()
    Run(save_path=tmp_path / "m2.bin").take()
    del first
    second.take()
    del second
    assert names(tmp_path) == []  # no lock stays behind


def test_a_link_is_no_way_around_the_lock(tmp_path):
    (tmp_path / "link.bin").symlink_to("m.bin")
    run = Run(save_path=tmp_path / "m.bin")
    run.take()
    with pytest.raises(UsageError, match="another process is saving to"):
        Run(save_path=tmp_path / "link.bin").take()


HOLD = """
import os, sys, time
from gpt2c.runs.folder import Run
run = Run(save_path=sys.argv[1])
run.take()
print("taken", flush=True)
time.sleep(60)
"""


def test_a_killed_run_keeps_nobody_out(folder):
    with subprocess.Popen([sys.executable, "-c", HOLD, folder / "m.bin"], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "taken\n"
            done = train(folder, "--save-path", "m.bin", "-x", 1, code=2)
            assert done.stderr.count("\n") == 1 and "another process is saving to m.bin" in done.stderr
        finally:
            other.kill()
    assert names(folder) == [".m.bin.lock", "x_train.bin"]
    train(folder, "--save-path", "m.bin", "-x", 1)
    assert names(folder) == ["m.bin", "x_train.bin"]


def test_a_lock_that_its_holder_removes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The file was opened before and locked after its holder let it go: another one has its name by then."""
    real, first = fcntl.flock, [True]

    def flock(descriptor, how):
        if first.pop() if first else False:
            (tmp_path / ".m.bin.lock").unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    run = Run(save_path=tmp_path / "m.bin")
    run.take()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="another process"):
        Run(save_path=tmp_path / "m.bin").take()


def test_where_there_are_no_locks_a_run_goes_without(tmp_path, monkeypatch):
    def flock(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    Run(tmp_path, tmp_path / "m.bin").take()


def test_a_place_that_cannot_be_written_to_is_known_at_the_start(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *more, **how):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match="cannot write .*m.bin: Read-only file system; choose another --save-path"):
        Run(save_path=tmp_path / "m.bin").take()


# ---- a folder and a file to save to


def test_a_folder_with_a_file_to_save_to(folder):
    """Logs go to the one, checkpoints to the other; again, and resumed."""
    both = ["-o", "out", "--save-path", "m.bin"]
    train(folder, *both, "-x", 2)
    done = train(folder, *both, "-x", 3)
    assert "moved to left_1, because this run begins at step 0: m.bin" in done.stderr
    done = train(folder, *both, "-x", 5, "--resume")
    assert "resumed from m.bin at step 3" in done.stdout
    assert native.metadata(folder / "m.bin")["step"] == 5 and len(list((folder / "out").glob("*.safetensors"))) == 0
    assert len((folder / "out/metrics.jsonl").read_text().splitlines()) == 5
