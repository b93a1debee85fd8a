"""Numbers that go wrong: what is noticed, what it is called, what is done about it."""

import itertools
import json
import math

import numpy as np
import pytest
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import DivergedError
from gpt2c.formats.native import read
from gpt2c.models.model import Model
from gpt2c.training.anomalies import SKIPS_IN_A_ROW, WINDOW, Window, first_bad_tensor
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

SMALL = dict(num_layers=2, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 97, 3000))
    return str(tmp_path / "x_train.bin")


def trainer(tokens, **fields):
    return Trainer(gpt2c.create("gpt2", **SMALL), gpt2c.DataLoader(tokens, B=2, T=16), None, TrainConfig(**fields))


def spoil(trainer, at, change):
    """At these updates the loss and the gradients come out as `change(model, loss)` makes them."""
    honest = trainer.model.loss_and_grad

    def loss_and_grad(x, y, **how):
        loss = honest(x, y, **how)
        return change(trainer.model, loss) if trainer.step in at else loss

    trainer.model.loss_and_grad = loss_and_grad


def nan_gradient(model, loss):
    model.grads["fcw"][1, 3, 2] = np.nan
    return loss


def test_z_scores_are_llm_c_s(rng):
    """Of the value among the last 128, itself included, once there were 128 before it."""
    values, window = rng.standard_normal(400), Window()
    found = [window.push(x) for x in values]
    assert np.isnan(found[:WINDOW]).all()
    for i in range(WINDOW, 400):
        last = values[i - WINDOW + 1 : i + 1]
        assert found[i] == pytest.approx((values[i] - last.mean()) / last.std())
    assert math.isnan(window.push(math.inf)) and window.count == 400
    equal = Window()
    assert [equal.push(3.0) for _ in range(WINDOW + 2)][-2:] == [0, 0]


@pytest.mark.parametrize(
    "arena, name, index, value, expected",
    [
        ("grads", "fcw", (1, 3, 2), np.nan, "the gradient of fcw[1] holds NaN or infinity"),
        ("grads", "lnfb", (5,), -np.inf, "the gradient of lnfb holds NaN or infinity"),
        ("params", "wte", (96, 0), np.inf, "the parameter wte holds NaN or infinity"),
        ("grads", "qkvw", (0, 0, 0), -7.5, "the gradient of qkvw[0] holds 7.5"),
    ],
)
def test_the_first_bad_tensor_is_named(arena, name, index, value, expected):
    m = gpt2c.create("gpt2", **SMALL)
    m.zero_grad()
    assert first_bad_tensor(m) == "all parameters and gradients are finite"
    getattr(m, arena)[name][index] = value
    assert first_bad_tensor(m, 7.0) == expected


def test_a_bad_gradient_stops_training(tokens):
    t = trainer(tokens, max_steps=9)
    spoil(t, {3}, nan_gradient)
    before = None
    with pytest.raises(DivergedError, match=r"at step 3 .*the gradient of fcw\[1\] holds NaN"):
        for _ in t:
            before = t.model.params.flat.copy()
    assert t.step == 3 and (t.model.params.flat == before).all()


@pytest.mark.parametrize(
    "fields, change, reason",
    [
        (dict(), nan_gradient, "NaN"),
        (dict(), lambda m, loss: math.inf, "the loss is inf"),
        (dict(max_loss=1e6), lambda m, loss: 2e6, "the loss is 2e+06, more than 1e+06"),
        (dict(max_grad_value=1000.0), lambda m, loss: m.grads["wpe"].fill(1001) or loss, "the gradient of wpe holds 1001"),
    ],
)
def test_a_skipped_update_leaves_the_parameters(tokens, fields, change, reason):
    t = trainer(tokens, max_steps=4, on_anomaly="skip", **fields)
    spoil(t, {1, 2}, change)
    states = []
    for step in t:
        states.append((bool(step.skipped), t.model.params.flat.tobytes(), t.model.m.flat.tobytes()))
        assert reason in step.skipped or not step.skipped
    assert [s[0] for s in states] == [False, True, True, False]
    assert states[0][1:] == states[1][1:] == states[2][1:] != states[3][1:]


def test_skipping_does_not_go_on_for_ever(tokens):
    t = trainer(tokens, max_steps=100, on_anomaly="skip")
    spoil(t, range(5, 100), nan_gradient)
    with pytest.raises(DivergedError, match=f"and {SKIPS_IN_A_ROW} updates before it were skipped"):
        list(t)
    assert t.step == 5 + SKIPS_IN_A_ROW


def test_skipping_goes_on_in_a_resumed_run_as_in_one(tokens, tmp_path):
    first = trainer(tokens, max_steps=9, on_anomaly="skip")
    spoil(first, range(5, 9), nan_gradient)
    list(first)
    first.save(tmp_path / "x.safetensors")
    model, run = read(tmp_path / "x.safetensors").build()
    t = Trainer(model, gpt2c.DataLoader(tokens, B=2, T=16), None, TrainConfig(max_steps=100, on_anomaly="skip"))
    t.restore(run)
    spoil(t, range(9, 100), nan_gradient)
    with pytest.raises(DivergedError, match=f"and {SKIPS_IN_A_ROW} updates before it were skipped"):
        list(t)
    assert t.step == 5 + SKIPS_IN_A_ROW


@pytest.mark.parametrize("fields", [dict(skip_loss_z=6.0), dict(skip_grad_z=6.0)])
def test_an_unusual_update_is_skipped(tokens, fields):
    t = trainer(tokens, max_steps=WINDOW + 12, **fields)

    def jump(model, loss):
        model.grads.flat[...] *= 50
        return 50 * loss

    spoil(t, {20, WINDOW + 10}, jump)  # the first comes before the window is full
    assert [step.step for step in t if step.skipped] == [WINDOW + 10]


def test_what_diverged_is_not_saved(tokens, tmp_path):
    t = trainer(tokens, max_steps=3)
    next(iter(t))
    t.save(tmp_path / "good.safetensors")
    t.model.params["lnfw"][0] = np.nan
    for save in (t.save, t.save_weights):
        with pytest.raises(DivergedError, match="the parameter lnfw holds NaN"):
            save(tmp_path / "good.safetensors")
    assert np.isfinite(gpt2c.load(tmp_path / "good.safetensors").params.flat).all()


@pytest.fixture
def run(tokens, tmp_path, monkeypatch):
    """run(bad, *words, code=0): gpt2c train, where these updates give a gradient that is infinite."""
    honest = Model.loss_and_grad

    def run(bad, *words, code=0):
        updates = itertools.count(1)

        def loss_and_grad(self, x, y, **how):
            loss = honest(self, x, y, **how)
            if next(updates) in bad:
                self.grads["wte"][0, 0] = np.inf
            return loss

        monkeypatch.setattr(Model, "loss_and_grad", loss_and_grad)
        shape = [word for name, value in SMALL.items() for word in ("--" + name, value)]
        flags = "-e scratch --data x_train.bin -v 0 -s 0 -b 2 -t 16 -o out -x 8".split()
        return call(tmp_path, "train", *flags, *shape, *words, code=code)

    return run


def test_rolling_back_goes_on_with_other_data(run, tmp_path):
    done = run({6}, "--save-every", "2", "--on-anomaly", "rollback")
    assert "rolled back to out/ckpt_00000004.safetensors" in done.stderr and "wte holds NaN or infinity" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(8))
    assert (tmp_path / "out/ckpt_00000008.safetensors").exists()


def test_rolling_back_ends_where_it_does_not_help(run, tmp_path):
    done = run(set(range(6, 99)), "--save-every", "2", "--on-anomaly", "rollback", code=3)
    assert "3 times already" in done.stderr
    assert np.isfinite(gpt2c.load(tmp_path / "out/ckpt_00000004.safetensors").params.flat).all()
    done = run({1}, "--on-anomaly", "rollback", "-o", "other", code=3)
    assert "there is no checkpoint to roll back to" in done.stderr


def test_the_last_good_checkpoint_stays(run, tmp_path):
    done = run({6}, "--save-every", "2", code=3)
    assert done.stderr.count("\n") == 1
    assert "at step 5 the loss is" in done.stderr and "the gradient of wte holds NaN or infinity" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").glob("ckpt*")) == ["ckpt_00000002.safetensors", "ckpt_00000004.safetensors"]
