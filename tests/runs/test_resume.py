"""What a checkpoint says to a run of another number of ranks."""

import numpy as np
import pytest
from mpi import Imagined

import gpt2c
from gpt2c.data import write_shard
from gpt2c.data.lanes import Lanes
from gpt2c.errors import UsageError
from gpt2c.formats.native import read
from gpt2c.runs.resume import recorded_flags
from gpt2c.training.config import TrainConfig
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
