"""What a checkpoint says to a run of another number of ranks."""

import dataclasses

import numpy as np
import pytest
from families import model_of
from mpi import Imagined
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.data.lanes import Lanes
from gpt2c.data.tasks import TASKS
from gpt2c.errors import UsageError
from gpt2c.formats import native
from gpt2c.formats.weights import RunState
from gpt2c.models.files import read
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
