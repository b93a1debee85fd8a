"""What a checkpoint says of a run is checked before a run goes on from it."""

import numpy as np
import pytest

import gpt2c
from gpt2c.data import write_shard
from gpt2c.data.lanes import Lanes
from gpt2c.data.windows import RandomWindows
from gpt2c.errors import InputError
from gpt2c.formats.weights import RunState
from gpt2c.models.files import load_run

HUGE, NAN = 10**400, float("nan")
VALIDATIONS = dict(best=2.5, best_step=1, since_best=0, waited=0, falls=0)
EPOCH = dict(updates=1, loss=2.5, grad_norm=0.5)
NO_COUNTS = [-1, HUGE, 1.5, NAN, "5", None, True, [], {}]
DAMAGES = {
    "step": NO_COUNTS,
    "tokens": NO_COUNTS,
    "skipped_in_a_row": NO_COUNTS,
    "sampling": [0, 2**64, *NO_COUNTS],
    "validations": [
        {"best": 1.0},
        [],
        *(VALIDATIONS | {"best": best} for best in ("1.5", HUGE, True, [])),
        *(VALIDATIONS | {"best_step": step} for step in (-1, HUGE, 1.5, "1")),
        *(VALIDATIONS | {name: count} for name in ("since_best", "waited", "falls") for count in NO_COUNTS),
    ],
    "epoch": [
        *(EPOCH | {"updates": count} for count in NO_COUNTS),
        *(EPOCH | {name: sum} for name in ("loss", "grad_norm") for sum in ("x", None, HUGE, -HUGE, [], True)),
    ],
    "windows": [[1], 5, *([1, count] for count in NO_COUNTS)],
    "dropout": [[1], *([count, 1] for count in NO_COUNTS), *([1337, count] for count in NO_COUNTS)],
    "loader": [[], 5, None, "x", {"batch": "1"}, {"batch": True}, {"batch": -1}, {"batch": HUGE}, {"batch": 2**64}, {"rng": 5}],
    "config": [[], 5, None, "adamw"],
}
NO_WINDOWS = [np.zeros(5), np.zeros((2, 64)), np.zeros(128, np.int32), np.full(128, NAN), np.full(128, np.inf)]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """With each kind of loader a Trainer after three updates, and its RunState."""
    folder = tmp_path_factory.mktemp("runs")
    data, made, runs = folder / "x_train.bin", {}, {}
    write_shard(data, np.random.default_rng(0).integers(0, 97, 1000))
    for name, loader in ("shuffled", gpt2c.DataLoader(data, 2, 8, shuffle=True)), ("random", RandomWindows(data, 2, 8)):
        model = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)
        made[name] = gpt2c.Trainer(model, loader, None, gpt2c.TrainConfig(max_steps=9))
    model = gpt2c.create("mingru", dim=8, depth=1, vocab_size=97)
    config = gpt2c.TrainConfig(max_steps=9, backprop_chunks=2)
    made["lanes"] = gpt2c.Trainer(model, Lanes(data, 2, 8, 10), None, config)
    for name, trainer in made.items():
        for _ in range(3):
            next(iter(trainer))
        trainer.save(folder / "run.safetensors")
        runs[name] = trainer, load_run(folder / "run.safetensors")[1]
    return runs


def refused(trainer, values, arrays):
    with pytest.raises(
        InputError, match="^the (run state in the checkpoint|saved data position|saved random state) is damaged.*$"
    ):
        trainer.restore(RunState(values, arrays))


@pytest.mark.parametrize("kind", ["shuffled", "random", "lanes"])
@pytest.mark.parametrize("name", DAMAGES)
def test_an_account_of_a_run_that_lies_is_an_error_of_the_file(name, kind, trainers):
    trainer, run = trainers[kind]
    trainer.restore(run)
    for damage in DAMAGES[name]:
        if name == "loader" and isinstance(damage, dict):
            if not damage.keys() & trainer.loader.state().keys():
                continue
            arrays = {key: array for key, array in run.arrays.items() if key.removeprefix("loader.") not in damage}
            refused(trainer, run.values | {name: run.values[name] | damage}, arrays)
        else:
            refused(trainer, run.values | {name: damage}, run.arrays)
    refused(trainer, {key: value for key, value in run.values.items() if key != name}, run.arrays)


def test_arrays_of_a_run_that_lie_are_an_error_of_the_file(trainers):
    for trainer, run in trainers.values():
        for name in "window.loss", "window.norm":
            refused(trainer, run.values, {key: array for key, array in run.arrays.items() if key != name})
            for array in NO_WINDOWS:
                refused(trainer, run.values, run.arrays | {name: array})
        for name in (name for name in run.arrays if name.startswith(("loader.", "carried.state."))):
            for array in np.zeros(0, np.float32), np.array(3.0):
                refused(trainer, run.values, run.arrays | {name: array})


def test_what_skipped_updates_leave_behind_is_no_lie(trainers):
    """The mean loss of an epoch is not a number where an update was skipped for that; nor need a validation's be."""
    trainer, run = trainers["shuffled"]
    odd = {"epoch": EPOCH | {"loss": NAN, "grad_norm": float("inf")}, "validations": VALIDATIONS | {"best": float("inf")}}
    trainer.restore(RunState(run.values | odd, run.arrays))
    assert trainer.epoch.updates == 1 and trainer.validations.best_step == 1 and next(iter(trainer)).loss > 0
