"""The places that runs write to: one run each, only their own files, whatever happens to them meanwhile."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from disk import ReadOnlyDisk
from programs import call

from gpt2c.data import write_shard
from gpt2c.errors import InputError, ResourceError, UsageError
from gpt2c.formats import native
from gpt2c.runs import folder as runs
from gpt2c.runs.folder import Run
from gpt2c.runs.logs import read_metrics
from gpt2c.training.trainer import Trainer

SMALL = "-e scratch --num-layers 1 --channels 8 --num-heads 1 --max-seq-len 8 --vocab-size 17 -b 1 -t 8 -v 0 -s 0".split()


@pytest.fixture
def folder(tmp_path, undrawn):
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


# ---- what happens to them in the middle of a run


def before_updates(monkeypatch, change):
    """change(step) before each update."""
    real = Trainer.update

    def update(trainer, *args):
        change(trainer.step)
        return real(trainer, *args)

    monkeypatch.setattr(Trainer, "update", update)


def steps(folder):
    return [int(name[5:13]) for name in names(folder) if name.startswith("ckpt")]


def test_a_disk_that_is_read_only_for_a_while_costs_the_saves_of_that_while(folder, monkeypatch):
    disk = ReadOnlyDisk()
    before_updates(monkeypatch, lambda step: setattr(disk, "read_only", step in (2, 3)))
    with disk.mounted(monkeypatch):
        done = train(folder, "-o", "out", "-x", 6, "-n", 1)
    assert steps(folder / "out") == [1, 2, 5, 6]
    assert [row["step"] for row in read_metrics(folder / "out")] == list(range(6))
    assert len((folder / "out/main.log").read_text().splitlines()) == 6
    said = [line for line in done.stderr.splitlines() if "not saved" not in line]
    assert said == [
        "the logs in out cannot be written for now (Read-only file system): their lines are kept until they can",
        "the logs in out are written again",
    ]
    assert done.stderr.count("not saved: cannot write") == 2
    assert "saved again: out/ckpt_00000005.safetensors" in done.stdout


def test_a_reason_that_lasts_is_said_once_whichever_log_it_hits(tmp_path, monkeypatch):
    """A line that still fits does not mean that all is well."""
    said = []
    run = Run(tmp_path, warn=said.append)
    run.take()
    honest = runs.add_lines

    def add_lines(path, lines):
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(path, lines)

    rows = dict(loss=1.5, lr=0.1, grad_norm=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "add_lines", add_lines)
        for step in range(3):
            assert not run.log(step, **rows)
    assert len(said) == 1 and "(No space left on device)" in said[0]
    assert run.append("samples.txt", "--- step 3") and len(said) == 2  # with any line all are tried again
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("wanted", [[], ["--save-path", "far/m.bin"]])
def test_a_folder_that_is_removed_is_made_again(folder, monkeypatch, wanted):
    def remove(step):
        if step == 3:
            shutil.rmtree(folder / "out")
            shutil.rmtree(folder / "far")

    before_updates(monkeypatch, remove)
    (folder / "far").mkdir()
    done = train(folder, "-o", "out", "-x", 6, "-n", 2, *wanted)
    again = "was removed during the run: it is made again, without what was in it"
    assert done.stderr.splitlines() == [f"out {again}", *[f"{folder}/far {again}"] * bool(wanted)]
    assert [row["step"] for row in read_metrics(folder / "out")] == [3, 4, 5]
    assert (folder / "out/config.toml").exists()
    if wanted:
        assert names(folder / "far") == ["m.bin", "m_step4.bin", "m_step6.bin"]
    else:
        assert steps(folder / "out") == [4, 6]


def test_a_folder_that_another_run_has_taken_over_is_left_to_it(folder, monkeypatch):
    other = []

    def replace(step):
        if step == 3:
            shutil.rmtree(folder / "out")
            other.append(Run(folder / "out"))
            other[0].take()

    before_updates(monkeypatch, replace)
    done = train(folder, "-o", "out", "-x", 6, "-n", 2, code=5)
    assert names(folder / "out") == []
    assert done.stderr.count("another process is training into out") == 3  # the logs, the save on the way, the last one
    assert done.stderr.splitlines()[-1].endswith("nothing of this run is saved")


def test_a_last_save_that_fails_says_what_there_is(folder, monkeypatch):
    for every, left in (
        (0, "nothing of this run is saved"),
        (3, "the newest checkpoint of this run is 3/ckpt_00000003.safetensors"),
    ):
        disk = ReadOnlyDisk()
        before_updates(monkeypatch, lambda step, disk=disk: setattr(disk, "read_only", step == 3))
        with disk.mounted(monkeypatch):
            done = train(folder, "-o", every, "-x", 4, "-n", every, code=5)
        last = done.stderr.splitlines()[-1]
        assert last.startswith("gpt2c train: cannot write ") and last.endswith(f"Read-only file system; {left}")
        assert "Traceback" not in done.stderr


def test_a_second_name_that_fails_is_a_warning(folder, monkeypatch):
    def fail(*_):
        raise ResourceError("cannot write it: no room")

    monkeypatch.setattr(runs, "second_name", fail)
    words = "--model mingru --dim 8 --depth 1 --data x_train.bin --vocab-size 17 -b 1 -t 8 -v 0 -s 0 -o out -x 3 -n 1 --keep 1"
    done = call(folder, "train", *words.split())
    assert steps(folder / "out") == [3]
    assert done.stderr.splitlines() == ["out/ckpt_00000003.safetensors has no second name: cannot write it: no room"]


def test_old_checkpoints_that_cannot_be_deleted_are_a_warning(folder, monkeypatch):
    disk = ReadOnlyDisk("unlink")
    before_updates(monkeypatch, lambda step: setattr(disk, "read_only", step in (2, 3)))
    with disk.mounted(monkeypatch):
        done = train(folder, "-o", "out", "-x", 5, "-n", 1, "--keep", 1)
    assert done.stderr == "old checkpoints stay for now: Read-only file system\n"
    assert steps(folder / "out") == [5]


def test_log_lines_that_were_undone_are_not_written_later(tmp_path, monkeypatch):
    """After a rollback, with a disk that had no room before it."""
    run = Run(tmp_path)
    run.take()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "add_lines", lambda path, lines: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no room")))
        for step in range(4):
            run.log(step, loss=1.0, lr=0.1, grad_norm=1.0)
    run.forget(2)
    run.log(2, loss=1.0, lr=0.1, grad_norm=1.0)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]


def test_a_rollback_goes_on_where_the_logs_cannot_be_changed(folder, monkeypatch):
    def forget(*_):
        raise InputError("cannot read out/main.log: Input/output error")

    def spoil(step):
        if step == 3 and not spoiled:
            spoiled.append(step)
            monkeypatch.setattr(Run, "forget", forget)
            trainers[0].model.params.flat[...] = np.nan

    spoiled, trainers, real = [], [], Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda self, *args: (trainers.append(self), real(self, *args))[1])
    before_updates(monkeypatch, spoil)
    done = train(folder, "-o", "out", "-x", 5, "-n", 1, "--on-anomaly", "rollback")
    assert "rolled back to out/ckpt_00000003.safetensors" in done.stderr and "Input/output error" in done.stderr
    assert steps(folder / "out") == [1, 2, 3, 4, 5]
