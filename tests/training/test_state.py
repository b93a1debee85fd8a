"""What a checkpoint says of a run is checked before a run goes on from it."""

import numpy as np
import pytest

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import InputError
from gpt2c.formats.weights import RunState
from gpt2c.models.files import load_run

DAMAGES = {
    "step": "5",
    "tokens": -1,
    "skipped_in_a_row": None,
    "sampling": 0,
    "validations": {"best": 1.0},
    "epoch": {"updates": 1, "loss": "x", "grad_norm": 0.0},
    "windows": [1],
    "dropout": [1337, 1.5],
    "loader": [],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_account_of_a_run_that_lies_is_an_error_of_the_file(name, tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 97, 1000))
    model = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)
    trainer = gpt2c.Trainer(model, gpt2c.DataLoader(tmp_path / "x_train.bin", 2, 16), None, gpt2c.TrainConfig(max_steps=3))
    list(trainer)
    trainer.save(tmp_path / "run.safetensors")
    _, run = load_run(tmp_path / "run.safetensors")
    trainer.restore(run)
    for damaged in (run.values | {name: DAMAGES[name]}, {key: value for key, value in run.values.items() if key != name}):
        with pytest.raises(InputError, match="run state in the checkpoint is damaged"):
            trainer.restore(RunState(damaged, run.arrays))
    with pytest.raises(InputError, match="run state in the checkpoint is damaged"):
        trainer.restore(RunState(run.values, {key: array for key, array in run.arrays.items() if key != "window.loss"}))
