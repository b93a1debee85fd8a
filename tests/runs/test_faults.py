"""Disks that fail, fill up, or lose power: the last complete checkpoint is always there, and the message is clear."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from disk import FailingDisk, RecordingDisk

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import InputError, ResourceError
from gpt2c.models.files import newest, read
from gpt2c.runs.folder import Run
from gpt2c.runs.logs import read_metrics
from gpt2c.support import files

SMALL = dict(num_layers=1, channels=8, num_heads=1, vocab_size=17, max_seq_len=8)


@pytest.fixture
def trainer(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 17, 500))
    loader = gpt2c.DataLoader(str(tmp_path / "x_train.bin"), B=1, T=8, shuffle=True)
    return gpt2c.Trainer(gpt2c.create("gpt2", **SMALL), loader, None, gpt2c.TrainConfig(max_steps=99))


def steps(run):
    return [read(path).run.values["step"] for path in run.checkpoints()]


FAULTS = [
    (operation, number, False) for operation in ("open", "write", "fsync", "replace") for number in (errno.EIO, errno.ENOSPC)
]


@pytest.mark.parametrize("operation, number, short", [*FAULTS, ("write", errno.ENOSPC, True), ("write", errno.EIO, True)])
@pytest.mark.parametrize("same_name", [False, True])
def test_whatever_operation_fails_the_last_checkpoint_stays(trainer, tmp_path, monkeypatch, operation, number, short, same_name):
    """Every k-th one in turn, until none is left to fail."""
    run = Run(tmp_path / "out", tmp_path / "out/x.bin" if same_name else None)
    run.take()
    trainer.update()
    trainer.save(run.last(1))
    k = 0
    while True:
        trainer.update()
        before = steps(run)
        disk = FailingDisk(operation, k, number, short)
        with disk.mounted(monkeypatch):
            try:
                trainer.save(run.last(trainer.step))
            except ResourceError as error:
                assert os.strerror(number) in str(error) and "cannot write" in str(error)
            else:
                assert not disk.failed
                break
        assert disk.failed
        assert steps(run) in (before, [*before[: -1 if same_name else None], trainer.step])  # the old one, or the new one
        assert not list((tmp_path / "out").glob(".*.tmp"))
        k += 1
    assert k >= (1 if operation in ("open", "replace") else 2)
    assert steps(run)[-1] == trainer.step


def power_losses(trainer, run, monkeypatch, saves=4):
    """(the steps whose save was complete, what a loss of power can leave) at every moment of several saves."""
    disk = RecordingDisk()
    with disk.mounted(monkeypatch):
        for _ in range(saves):
            trainer.update()
            trainer.save(run.on_the_way(trainer.step))
            disk.note(trainer.step)
            run.retain(2, trainer.step)
    return disk.states(run.folder)


def resumable(folder, found):
    """The step that a run would go on from in a folder with these files; 0 for none."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in found.items():
        (folder / os.path.basename(name)).write_bytes(content)
    try:
        content = newest(Run(folder).checkpoints(), lambda text: None)
    except InputError:
        return -1
    return content.run.values["step"] if content else 0


def worst(trainer, tmp_path, monkeypatch):
    """How many steps a loss of power can cost beyond the last complete save, at worst, and over how many states."""
    run = Run(tmp_path / "out")
    run.take()
    (tmp_path / "found").mkdir()
    lost, count = 0, 0
    for saved, folders in power_losses(trainer, run, monkeypatch):
        for found in folders:
            lost = max(lost, max(saved, default=0) - resumable(tmp_path / "found", found))
            count += 1
    return lost, count


def test_a_loss_of_power_loses_no_complete_save(trainer, tmp_path, monkeypatch):
    lost, count = worst(trainer, tmp_path, monkeypatch)
    assert lost == 0 and count > 500


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_the_simulation_notices_a_sync_that_is_missing(trainer, tmp_path, monkeypatch, missing):
    if missing == "folder":
        monkeypatch.setattr(files, "sync_folder", lambda folder: None)
    else:
        monkeypatch.setattr(
            RecordingDisk,
            "fsync",
            lambda self, descriptor: os.path.isfile(self.paths[descriptor]) or self.on("fsync", self.paths[descriptor]),
        )
    assert worst(trainer, tmp_path, monkeypatch)[0] > 0


def test_lines_for_which_there_is_no_room_are_written_later(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.take()
    full = False

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not full:
                return self.file.write(data)
            if len(data) > 5:  # some of it still fits
                return self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt2c.runs.folder.open", lambda *args, **how: Full(open(*args, **how)), raising=False)
    rows = dict(loss=1.5, lr=0.1, grad_norm=2.0)
    assert run.log(0, **rows)
    full = True
    assert not run.log(1, 3.0, **rows) and not run.log(2, **rows)
    assert len(read_metrics(tmp_path)) == 1
    full = False
    assert run.log(3, **rows)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert [line.split()[0] for line in (tmp_path / "main.log").read_text().splitlines()] == ["s:0", "s:1", "s:1", "s:2", "s:3"]


def train(folder, *words, limit=None):
    def lower_the_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = ["-e", "scratch", "--data", "x_train.bin", "-b", 1, "-t", 8, "-v", 0, "-s", 0]
    for name, value in SMALL.items():
        flags += ["--" + name, value]
    return subprocess.run(
        [sys.executable, "-m", "gpt2c.train", *map(str, [*flags, *words])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lower_the_limit if limit else None,
    )


def test_files_that_may_not_grow(trainer, tmp_path):
    """A checkpoint does not fit, a log does: training goes on without saving, and the last save is an error."""
    assert train(tmp_path, "-o", "out", "-x", 2).returncode == 0
    done = train(tmp_path, "-o", "out", "--resume", "-x", 6, "-n", 1, limit=8000)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("not saved: cannot write") == 3 and "step    6/6" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("gpt2c train: cannot write") and "File too large" in done.stderr
    assert [read(path).run.values["step"] for path in Run(tmp_path / "out").checkpoints()] == [2]
    assert len(read_metrics(tmp_path / "out")) == 6


def test_a_full_disk(trainer, tmp_path):
    """A file system with room for two checkpoints and a bit."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=108k", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        done = train(tmp_path, "-o", "small", "-x", 9, "-n", 1)
        assert done.returncode == 5 and "are needed" in done.stderr and "step    9/9" in done.stdout
        kept = [read(path).run.values["step"] for path in Run(small).checkpoints()]
        assert kept == list(range(1, len(kept) + 1)) and 1 <= len(kept) < 9
        done = train(tmp_path, "-o", "small", "-x", 9, "-n", 1, "--keep", 1, "--resume")
        assert done.returncode == 0 and [read(path).run.values["step"] for path in Run(small).checkpoints()] == [9]
    finally:
        subprocess.run(["umount", small], check=True)
