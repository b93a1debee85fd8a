"""What a run that goes on takes from its checkpoint: on another number of ranks, and from a file from elsewhere."""

import dataclasses
import os

import numpy as np
import pytest
from families import model_of
from mpi import Imagined
from programs import call

import gpt2c
from gpt2c.commands import rlvr
from gpt2c.commands.rlvr import RlvrConfig
from gpt2c.data import write_shard
from gpt2c.data.lanes import Lanes
from gpt2c.data.reading import Reading
from gpt2c.data.sources import DataConfig
from gpt2c.data.tasks import TASKS
from gpt2c.errors import InputError, UsageError
from gpt2c.formats import native
from gpt2c.formats.weights import RunState
from gpt2c.models.files import read
from gpt2c.runs import resume
from gpt2c.runs.config import RunConfig
from gpt2c.runs.phases import PhasesConfig
from gpt2c.runs.resume import recorded_flags
from gpt2c.training.config import TrainConfig
from gpt2c.training.grpo import Grpo, GrpoConfig
from gpt2c.training.trainer import Trainer


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


@pytest.mark.parametrize("program", ["train", "rlvr"])
def test_a_run_that_was_signed_anew_with_nonsense_is_refused_in_a_sentence(program, tmp_path):
    model = model_of("chargpt")
    if program == "train":
        write_shard(tmp_path / "x_train.bin", np.arange(300) % model.config.vocab_size)
        trainer = Trainer(model, gpt2c.DataLoader(tmp_path / "x_train.bin", 2, 8), None, TrainConfig(max_steps=9))
    else:
        trainer = Grpo(model, TASKS["copy"], GrpoConfig(prompts=2))
    next(iter(trainer))
    trainer.save(tmp_path / "x.safetensors")
    whole = native.read(tmp_path / "x.safetensors")
    wrongs = [{"loader": 5}, {"config": 5}, {"config": None}, {"step": "1"}, {"step": 10**400}, {"step": -1}, {"step": None}]
    wrongs += [{"epoch": 5}, {"tokens": -1}] if program == "train" else [{"random": 5}, {"updates": -1}]
    for number, wrong in enumerate([*wrongs, None]):
        values = whole.run.values | wrong if wrong else {}
        native.write(tmp_path / "y.safetensors", dataclasses.replace(whole, run=RunState(values, whole.run.arrays)))
        words = ["--data", "x_train.bin", "-t", 8, "-b", 2] if program == "train" else ["x.safetensors", "--task", "copy"]
        done = call(tmp_path, program, *words, "--resume", "y.safetensors", "-o", f"out{number}", code=4)
        assert done.stderr.count("\n") == 1 and "use another" in done.stderr, (wrong, done.stderr)


# ---- a checkpoint from elsewhere

SMALL = "-e scratch --num-layers 1 --channels 8 --num-heads 1 --max-seq-len 8 --vocab-size 31 -b 1 -t 8 -v 0 -s 0".split()


@pytest.fixture
def folder(tmp_path, undrawn):
    write_shard(tmp_path / "x_train.bin", np.arange(300) % 31)
    call(tmp_path, "train", *SMALL, "--data", "x_train.bin", "--save-path", "x.bin", "-x", 2)
    return tmp_path


def forge(path, **flags):
    """Changes what a checkpoint records of its run's flags, with a right digest."""
    weights = native.read(path)
    weights.run.values["config"] |= flags
    native.write(path, weights)


def other_value(field):
    """A value of the field's kind that is not its default."""
    default = field.default
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, (int, float)) else "elsewhere"


@pytest.mark.parametrize("classes, names", [
    ([RunConfig, PhasesConfig, DataConfig, Reading, TrainConfig], resume.SHAPING),
    ([RlvrConfig, GrpoConfig], rlvr.SHAPING),
])  # fmt: skip
def test_a_checkpoint_says_what_shapes_a_run_and_nothing_else(folder, classes, names):
    fields = {field.name: field for cls in classes for field in dataclasses.fields(cls)}
    forge(folder / "x.bin", **{name: other_value(field) for name, field in fields.items()})
    taken = recorded_flags(read(folder / "x.bin"), *classes, names=names).keys() - {"model"}
    own = {field.name for field in dataclasses.fields(read(folder / "x.bin").config)}
    assert taken - own == set(names)
    attends = {"out_dir", "save_path", "keep", "keep_major", "save_every", "resume", "save_on_complete", "report_to", "threads"}
    assert not attends & taken and not {"list_datasets", "dry_run", "interactive", "allow_new_data"} & taken
    assert names and set(names) <= fields.keys()


@pytest.mark.parametrize("flags, message", [
    ({"learning_rate": 10**400}, "has learning_rate = 1000"),
    ({"batch_size": "many"}, "has batch_size = 'many'"),
])  # fmt: skip
def test_recorded_flags_that_cannot_be_are_refused(folder, flags, message):
    forge(folder / "x.bin", **flags)
    with pytest.raises(InputError, match=message):
        recorded_flags(read(folder / "x.bin"), TrainConfig)


def test_a_run_over_lanes_says_how_many(folder):
    weights = native.read(folder / "x.bin")
    weights.run.values["loader"]["chunks"] = 3
    del weights.run.values["config"]["batch_size"]
    native.write(folder / "x.bin", weights)
    with pytest.raises(InputError, match="does not say how many lanes"):
        recorded_flags(read(folder / "x.bin"), TrainConfig)


def test_no_file_is_written_or_deleted_because_a_checkpoint_says_so(folder):
    (folder / "precious.bin").write_bytes(b"precious")
    call(folder, "train", "-o", "mine", "--resume", "x.bin", "-x", 6, "-n", 2)
    forge(folder / "x.bin", save_path="precious.bin", out_dir="there", keep=1, save_every=1, keep_major=0, log_every=0)
    call(folder, "train", "-o", "mine", "--resume", "mine/ckpt_00000004.safetensors", "-x", 5)  # 6 is set aside
    (folder / "config.toml").write_text("keep = 1\nsave_every = 1\n")  # beside the checkpoint
    done = call(folder, "train", "-o", "mine", "--resume", "x.bin", "-x", 8)
    assert "resumed from x.bin at step 2" in done.stdout and "step    3/8" in done.stdout
    assert (folder / "precious.bin").read_bytes() == b"precious" and not (folder / "there").exists()
    assert len(list((folder / "mine").rglob("ckpt*"))) >= 3  # of which --keep 1 would leave one


def test_how_files_are_attended_to_comes_from_the_folder_that_is_named(folder):
    call(folder, "train", "-o", "mine", "--resume", "x.bin", "-x", 3, "-n", 1, "--keep", 2)
    call(folder, "train", "-o", "mine", "--resume", "x.bin", "-x", 8)
    assert sorted(os.listdir(folder / "mine"))[:2] == ["ckpt_00000007.safetensors", "ckpt_00000008.safetensors"]
    (folder / "mine/config.toml").write_text("keep = 'all'\n")
    done = call(folder, "train", "-o", "mine", "--resume", "x.bin", "-x", 9, code=4)
    assert "mine/config.toml has keep = 'all'" in done.stderr


@pytest.mark.parametrize("data", ["task:evil.py", "task:evil.py:30"])
def test_a_checkpoint_runs_no_code(folder, data):
    (folder / "evil.py").write_text("open('done', 'w')\n")
    forge(folder / "x.bin", data=data)
    done = call(folder, "train", "--resume", "x.bin", "-o", "mine", "-x", 3, code=2)
    assert f"--data {data}" in done.stderr and not (folder / "done").exists()
    call(folder, "train", "--resume", "x.bin", "-o", "mine", "-x", 3, "--data", data, code=4)
    assert (folder / "done").exists()  # named on this command line
