"""Truncated backpropagation through time: against PyTorch, across borders, and through checkpoints."""

from itertools import product

import goldens
import numpy as np
import pytest

import gpt2c
from gpt2c.data import Lanes, write_shard
from gpt2c.errors import InputError
from gpt2c.formats import native
from gpt2c.models.files import load_run, read
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

WINDOWS = list(product((1, 2, 4), (1, 2, 4, 8)))  # (k1, k2)
SMALL = dict(mingru=dict(vocab_size=61, dim=20, depth=2), hybrid=dict(vocab_size=61, hidden=12, embed=8, num_layers=2))


class Chunks:
    """A loader of one epoch: lanes that are given as (chunks, B, T)."""

    world = 1

    def __init__(self, tokens, targets):
        self.tokens, self.targets, self.at = tokens, targets, 0
        self.num_batches, self.B, self.T = tokens.shape

    @property
    def continues(self):
        return self.at > 0

    def next_batch(self):
        self.at += 1
        return self.tokens[self.at - 1], self.targets[self.at - 1]

    def state(self):
        return {"at": self.at}


def golden_gradients(family, golden, k1, k2, recompute):
    """(the gradients of the last update, the losses) of the run that golden/windows.py does."""
    model = Model(family, make_config(family, golden["cfg"]), recompute=recompute)
    for name in model.params:
        model.params[name][...] = golden["params"][name]
    loader = Chunks(golden["tokens"], golden["targets"])
    config = TrainConfig(
        optimizer="sgd", learning_rate=0.1, update_chunks=k1, backprop_chunks=k2, max_steps=loader.num_batches // k1
    )
    losses = [step.loss for step in Trainer(model, loader, None, config)]
    return model.grads, losses


@pytest.mark.parametrize("k1, k2", WINDOWS)
@pytest.mark.parametrize("name", goldens.names("windows_"))
def test_gradients_are_pytorch_s_and_the_same_bits_however_much_is_recomputed(name, k1, k2):
    golden = goldens.golden(name)
    family = name.split("_")[1]
    results = []
    for recompute in (0, 1, 2):
        grads, losses = golden_gradients(family, golden, k1, k2, recompute)
        results.append((grads.flat.tobytes(), losses))
        for tensor, expected in golden[f"grads{k1}_{k2}"].items():
            distance = np.linalg.norm(grads[tensor] / k1 - expected)
            assert distance <= 1e-4 * np.linalg.norm(expected), tensor
        np.testing.assert_allclose(losses, golden[f"losses{k1}_{k2}"], rtol=1e-5)
    assert results[0] == results[1] == results[2]


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 61, 2000))
    return str(tmp_path / "x_train.bin")


def trainer_of(model, path, chunks=7, **config):
    settings = dict(update_chunks=2, backprop_chunks=6, max_steps=12, learning_rate=1e-2)
    return Trainer(model, Lanes(path, 3, 5, chunks=chunks), None, TrainConfig(**settings | config))


def copied(state):
    return {name: array.copy() for name, array in state.items()}


def same(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("k1, k2", [(1, 4), (2, 6), (3, 2), (4, 8), (3, 7), (5, 5)])
def test_no_pass_crosses_the_border_of_an_epoch_and_every_target_counts_once(tokens, family, k1, k2, monkeypatch):
    model, passes = gpt2c.create(family, **SMALL[family]), []
    inner = model.loss_and_grad

    def loss_and_grad(x, y, *args, first, scale, **how):
        began = copied(model.state)
        loss = inner(x, y, *args, first=first, scale=scale, **how)
        passes.append((began, copied(model.state), x.shape[1] // 5, first // 5, scale, (y >= 0).sum(), loss))
        return loss

    monkeypatch.setattr(model, "loss_and_grad", loss_and_grad)
    trainer = trainer_of(model, tokens, update_chunks=k1, backprop_chunks=k2)
    at, ends = 0, {}  # of the chunks of an epoch; the states that passes left, by where they ended
    for step in trainer:
        mean = 0.0
        for began, left, chunks, old, scale, counted, loss in passes:
            new = chunks - old
            assert chunks <= trainer.window.reach and scale == new and counted == 3 * 5 * new
            if at == 0:
                ends = {0: began}
                assert old == 0 and not any(array.any() for array in began.values())
            else:
                assert same(began, ends[at - old])
            at, mean = at + new, mean + scale * loss / k1
            assert at <= 7
            ends[at] = left
            at %= 7
        assert step.loss == pytest.approx(mean, rel=1e-6)
        passes.clear()


def test_more_chunks_than_an_update_s_are_a_multiple_of_them_and_this_is_said(tokens):
    model = gpt2c.create("mingru", **SMALL["mingru"])
    assert trainer_of(model, tokens, update_chunks=3, backprop_chunks=7).warnings == [
        "the gradient goes back through 9 chunks, 7 rounded up to a multiple of 3 per update"
    ]
    for k1, k2, reach in ((3, 6, 6), (3, 2, 2), (3, 3, 3), (1, 5, 5)):
        trainer = trainer_of(model, tokens, update_chunks=k1, backprop_chunks=k2)
        assert trainer.window.reach == reach and not trainer.warnings


# ---- through checkpoints


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("k1, k2", [(1, 4), (2, 6), (4, 8), (3, 2), (3, 7)])
def test_a_run_goes_on_with_the_same_bits_from_anywhere_in_a_window(tokens, family, k1, k2, tmp_path):
    windows = dict(update_chunks=k1, backprop_chunks=k2, max_steps=9)
    straight = trainer_of(gpt2c.create(family, **SMALL[family]), tokens, **windows)
    for step in straight:
        straight.save(tmp_path / f"{step.step}.safetensors")
    for step in (0, 1, 2, 4, 6):
        model, run = load_run(tmp_path / f"{step}.safetensors")
        second = trainer_of(model, tokens, **windows)
        second.restore(run)
        list(second)
        assert second.model.params.flat.tobytes() == straight.model.params.flat.tobytes(), step
        assert same(second.model.state, straight.model.state)


def test_a_checkpoint_holds_states_and_nothing_of_the_engine(tokens, tmp_path):
    trainer = trainer_of(gpt2c.create("mingru", **SMALL["mingru"]), tokens, update_chunks=1, backprop_chunks=4, max_steps=6)
    list(trainer)
    trainer.save(tmp_path / "x.safetensors")
    arrays, state = load_run(tmp_path / "x.safetensors")[1].arrays, trainer.model.state["h"]
    carried = {name: array for name, array in arrays.items() if name.startswith("carried.")}
    assert sorted(carried) == ["carried.before.0.h", "carried.before.1.h", "carried.before.2.h", "carried.state.h"]
    assert sum(array.nbytes for array in carried.values()) == 4 * state.nbytes
    size = (tmp_path / "x.safetensors").stat().st_size
    assert size <= 3 * trainer.model.params.nbytes + 4 * state.nbytes + 16384


@pytest.fixture
def halfway(tokens, tmp_path):
    """(a Trainer amid a window, its checkpoint)"""
    trainer = trainer_of(gpt2c.create("mingru", **SMALL["mingru"]), tokens)
    for _ in zip(range(2), trainer):
        pass
    trainer.save(tmp_path / "x.safetensors")
    return trainer, tmp_path / "x.safetensors"


def test_with_other_data_the_window_begins_anew_at_the_carried_state(halfway):
    trainer, path = halfway
    carried = copied(trainer.model.state)
    next(iter(trainer))
    trainer.restore(load_run(path)[1], data_position=False)
    assert not trainer.window.past and same(trainer.model.state, carried)


def test_a_checkpoint_of_the_old_windows_goes_on_from_its_state(halfway, tokens, tmp_path):
    """Format 1 held the engine's memory of each chunk in the window."""
    trainer, path = halfway
    weights = read(path).weights
    del weights.run.values["chunks"]
    arrays = weights.run.arrays
    for name in [name for name in arrays if name.startswith("carried.before.")]:
        del arrays[name]
    for part in "tokens", "targets", "noise", "memory", "program":
        arrays[f"carried.chain.0.{part}"] = np.zeros((3, 5), np.int32)
    native.write(tmp_path / "old.safetensors", weights)
    model, run = load_run(tmp_path / "old.safetensors")
    resumed = trainer_of(model, tokens, max_steps=4)
    resumed.restore(run)
    assert not resumed.window.past and same(resumed.model.state, trainer.model.state)
    (note,) = resumed.warnings
    assert "of an older gpt2c" in note and "the window begins anew" in note
    assert len(list(resumed)) == 2


@pytest.mark.parametrize("chunks", [[2, 2, 2], [0], [-1], [1.5], "1"])
def test_a_window_that_cannot_be_is_refused(halfway, tokens, chunks):
    model, run = load_run(halfway[1])
    assert run.values["chunks"] == [2, 2]
    run.values["chunks"] = chunks
    with pytest.raises(InputError, match="damaged"):
        trainer_of(model, tokens).restore(run)


@pytest.mark.parametrize("name", ["carried.state.h", "carried.before.0.h"])
def test_states_of_another_shape_are_refused(halfway, tokens, name):
    model, run = load_run(halfway[1])
    run.arrays[name] = run.arrays[name][..., 1:]
    with pytest.raises(InputError, match="damaged"):
        trainer_of(model, tokens).restore(run)
