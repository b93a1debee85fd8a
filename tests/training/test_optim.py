"""Optimizers and schedules: PyTorch's numbers, and formulas written out."""

import math

import numpy as np
import pytest

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import UsageError
from gpt2c.models import trm
from gpt2c.models.files import load_run
from gpt2c.training.config import TrainConfig
from gpt2c.training.optimizers import Optimizer, tensor_bounds, tensor_rates
from gpt2c.training.schedules import learning_rate, rate_of_epoch
from gpt2c.training.trainer import Trainer
from gpt2c.training.validation import Validations

SMALL = dict(num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 97, 3000))
    return str(tmp_path / "x_train.bin")


def trainer(tokens, val=True, **fields):
    loader, val_loader = (gpt2c.DataLoader(tokens, B=2, T=16) for _ in range(2))
    return Trainer(gpt2c.create("gpt2", **SMALL), loader, val_loader if val else None, TrainConfig(**fields))


# torch.optim in float64 on p = (1, -2, 0.5) with the gradients (0.3, -0.1, 0.7) * (t + 1) * (1, -1, 1)^t, t = 0, 1, 2
TORCH = [
    ("sgd", dict(momentum=0.9, dampening=0.3), [0.75282432125, -1.931341255, -0.03343751312499998]),
    ("sgd", dict(momentum=0.9, nesterov=True), [0.525954398375, -1.8831658704999998, -0.5329597819374999]),
    ("sgd", dict(), [0.8056741249999999, -1.9501495, 0.07393568750000004]),
    ("adam", dict(beta1=0.9, beta2=0.99), [0.7063376279067662, -1.8104908852318196, 0.20761410785336087]),
    ("adamw", dict(beta1=0.9, beta2=0.99), [0.6946134274608776, -1.8732895151712656, 0.20207598608138505]),
]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("name, fields, expected", TORCH)
def test_three_updates_are_pytorch_s(name, fields, expected, scale):
    m = gpt2c.create("gpt2", **SMALL)
    optimizer = Optimizer(m, name, weight_decay=0.05, decay_all=True, **fields)
    first = m.params["lnfb"][:3]
    first[...] = 1.0, -2.0, 0.5
    for t in range(3):
        m.zero_grad()
        m.grads["lnfb"][:3] = np.array([0.3, -0.1, 0.7]) * (t + 1) * np.array([1, -1, 1]) ** t / scale
        optimizer.update(0.1, t + 1, scale)
    np.testing.assert_allclose(first, expected, rtol=3e-6)


class Recorded:
    """A Trainer of a trm on tokens, with what each update had of some tensors' gradients."""

    def __init__(self, tokens, **fields):
        m = gpt2c.create("trm", vocab_size=97, channels=16, hidden=16, num_heads=2, max_seq_len=16, depth=4)
        self.trainer = Trainer(
            m,
            gpt2c.DataLoader(tokens, B=2, T=16),
            None,
            TrainConfig(learning_rate=0.02, lr_schedule="cosine", final_lr_frac=0.1, grad_clip=1.0, **fields),
        )
        self.grads, honest = [], m.loss_and_grad

        def loss_and_grad(x, y, **how):
            loss = honest(x, y, **how)
            self.grads.append(m.grads["alpha"].astype(np.float64))
            return loss

        m.loss_and_grad = loss_and_grad


OWN = dict(optimizer="adam", tensor_rates="alpha=1e-3, dyt2_b=0", tensor_bounds="alpha = 0.0085:0.0125,cope=-0.03:inf")


def test_a_tensor_s_own_rate_and_bounds_are_adam_written_out(tokens):
    run = Recorded(tokens, max_steps=12, **OWN)
    m, p, mean, square, touched = run.trainer.model, np.array([0.009, 0.01, 0.012, 0.02]), 0.0, 0.0, set()
    m.params["alpha"][...] = p
    for t, step in enumerate(run.trainer, 1):
        g = run.grads[-1] * min(1.0, 1.0 / step.grad_norm)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        p = p - 1e-3 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        touched |= {bound for bound, beyond in ((0.0085, p < 0.0085), (0.0125, p > 0.0125)) if beyond.any()}
        p = np.clip(p, 0.0085, 0.0125)
        np.testing.assert_allclose(m.params["alpha"], p, rtol=1e-5)
        assert m.params["cope"].min() == np.float32(-0.03) and m.params["cope"].max() > 0.03
        assert not m.params["dyt2_b"].any() and m.params["dyt1_b"].any() and m.params["beta"].min() < 0.005
    assert touched == {0.0085, 0.0125}


def test_own_rates_and_bounds_go_on_with_the_same_bits(tokens, tmp_path):
    straight, first, second = (Recorded(tokens, max_steps=8, **OWN).trainer for _ in range(3))
    list(straight)
    next(step for step in first if step.step == 4)
    first.save(tmp_path / "c.safetensors")
    model, run = load_run(tmp_path / "c.safetensors")
    second.model.params.flat[...], second.model.m.flat[...], second.model.v.flat[...] = (
        arena.flat for arena in (model.params, model.m, model.v)
    )
    second.restore(run)
    list(second)
    assert second.step == 8 and (second.model.params.flat == straight.model.params.flat).all()


def test_its_document_s_rate_and_bounds_are_what_a_trm_trains_with():
    assert tensor_rates(trm.TRAINING["tensor_rates"]) == dict(alpha=1e-4, beta=1e-4)
    assert tensor_bounds(trm.TRAINING["tensor_bounds"]) == dict(alpha=(0.01, 0.5), beta=(0.01, 0.5))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(tensor_rates="aplha=1e-4"), "no tensor 'aplha'; did you mean alpha"),
        (dict(tensor_rates="alpha"), "found 'alpha'"),
        (dict(tensor_rates="alpha=-1"), "with a rate from 0"),
        (dict(tensor_rates="alpha=nan"), "NAME=RATE"),
        (dict(tensor_bounds="alpha=0.5:0.1"), "NAME=LOW:HIGH"),
        (dict(tensor_bounds="alpha=0.5"), "found 'alpha=0.5'"),
    ],
)
def test_rates_and_bounds_that_cannot_be(tokens, fields, message):
    with pytest.raises(UsageError, match=message):
        Recorded(tokens, **fields)


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_decay_is_for_matrices_or_for_all(name, decay_all):
    m = gpt2c.create("gpt2", **SMALL)
    m.params.flat[...] = 1
    m.zero_grad()
    Optimizer(m, name, weight_decay=0.5, decay_all=decay_all).update(0.1, 1)
    shrunk = {spec.name: bool((m.params[spec.name] < 1).all()) for spec in m.params.specs}
    assert shrunk == {spec.name: decay_all or spec.decay for spec in m.params.specs}
    assert len(set(shrunk.values())) == 2 - decay_all


def test_elements_are_clamped_before_the_norm_is_clipped(tokens):
    """With sgd and a rate of 1 the parameters move by the clipped gradient itself, of all micro-steps together."""
    exact = trainer(tokens, optimizer="sgd", learning_rate=1.0, max_steps=1, total_batch_size=64)
    before = exact.model.params.flat.copy()
    next(iter(exact))
    gradient = before - exact.model.params.flat
    limit, norm = 0.3 * abs(gradient).max(), np.sqrt((gradient**2).sum())
    clamped = np.clip(gradient, -limit, limit)
    small = 0.5 * np.sqrt((clamped.astype(np.float64) ** 2).sum())
    for fields, expected in (
        (dict(clip_value=limit), clamped),
        (dict(grad_clip=norm / 2), gradient / 2),
        (dict(clip_value=limit, grad_clip=small), clamped / 2),
        (dict(grad_clip=2 * norm), gradient),
    ):
        t = trainer(tokens, optimizer="sgd", learning_rate=1.0, max_steps=1, total_batch_size=64, **fields)
        step = next(iter(t))
        np.testing.assert_allclose(before - t.model.params.flat, expected, atol=2e-6 * abs(gradient).max() + 2e-7)
        assert step.grad_norm == pytest.approx(norm, rel=1e-4)  # as it was before clipping


@pytest.mark.parametrize(
    "fields",
    [
        dict(nesterov=True),
        dict(nesterov=True, momentum=0.9, dampening=0.1),
        dict(momentum=-1),
        dict(clip_value=math.nan),
        dict(warmup_steps=3, warmup_epochs=1),
    ],
)
def test_settings_that_make_no_sense(fields):
    with pytest.raises(UsageError):
        TrainConfig(**fields)


def rates(schedule, steps, total, **more):
    return [learning_rate(step, total, 2.0, schedule, **more) for step in range(steps)]


def test_falling_schedules_are_their_formulas():
    W, N, low, high = 4, 30, 0.2, 2.0
    rise = [high * (s + 1) / W for s in range(W)]
    rest = np.arange(W, N)
    part = (rest - W) / (N - W)
    shapes = {
        "constant": np.full(N - W, high),
        "plateau": np.full(N - W, high),
        "linear": high - (high - low) * part,
        "cosine": low + 0.5 * (1 + np.cos(np.pi * part)) * (high - low),
        "wsd": np.where(rest < 24, high, low + (1 - np.sqrt(np.maximum(0, rest - 24) / 6)) * (high - low)),
    }
    for schedule, expected in shapes.items():
        np.testing.assert_allclose(rates(schedule, N, N, warmup=W, final_frac=0.1), [*rise, *expected], err_msg=schedule)


def test_a_fall_begins_where_a_long_rise_ends():
    """wsd, with a rise that takes more than four fifths of the updates: at its top first, then half of the root."""
    rise = [2.0 * (step + 1) / 18 for step in range(18)]
    np.testing.assert_allclose(rates("wsd", 20, 20, warmup=18, final_frac=0.1), [*rise, 2.0, 0.2 + 1.8 * (1 - 0.5**0.5)])


def test_randygpt_s_schedule_is_its_formula():
    """From a tenth of the rate in 100 iterations, then constant, then a cosine over the last fifth."""
    base, low, N = 3e-5, 3e-6, 1003
    for it in range(N):
        if it < 100:
            expected = base * (0.1 + 0.9 * it / 100)
        elif it < 4 * N // 5:
            expected = base
        else:
            expected = low + 0.5 * (1 + math.cos(math.pi * (it - 0.8 * N) / (0.2 * N))) * (base - low)
        assert learning_rate(it, N, base, "randygpt", 100, 0.1) == pytest.approx(expected, rel=1e-12)


def test_rates_of_whole_epochs_are_their_formulas():
    E, w, lr, low = 10, 3, 2.0, 0.2
    for e in range(1, E + 1):
        p = (e - w) / (E - w)
        expected = {"cosine": low + 0.5 * (1 + math.cos(math.pi * p)) * (lr - low), "linear": lr - (lr - low) * p, "constant": lr}
        for schedule, value in expected.items():
            assert rate_of_epoch(e, E, lr, schedule, w, 0.1) == pytest.approx(lr * e / w if e <= w else value)
    assert [rate_of_epoch(e, E, lr, "randygpt", w, 0.1) for e in range(1, w + 2)] == pytest.approx([0.2, 0.8, 1.4, 2.0])


def test_epochs_end_at_the_nearest_update(tokens):
    """93 batches are an epoch, and two an update: half an update counts as one."""
    t = trainer(tokens, val=False, epochs=3, total_batch_size=64)
    assert t.total_steps == 140 and [step.step + 1 for step in t if step.epoch] == [47, 93, 140]


@pytest.mark.parametrize("unit, expected", [("epoch", [1.0, 2.0, 2.0, 1.1]), ("epoch-end", [1.0, 2.0, 1.1, 0.2])])
def test_the_rate_changes_with_epochs(tokens, unit, expected):
    t = trainer(
        tokens,
        val=False,
        epochs=4,
        lr_unit=unit,
        warmup_epochs=2,
        lr_schedule="linear",
        learning_rate=2.0,
        final_lr_frac=0.1,
        total_batch_size=320,
    )
    per_epoch = 93 / 10  # batches of 2 x 16 in 3000 tokens, ten to an update
    found, ends = [], []
    while t.step < t.total_steps:
        found.append(t.learning_rate())
        t.step += 1
        if t.epochs_done > len(ends):
            ends.append(t.step)
    assert ends == [round(e * per_epoch) for e in (1, 2, 3, 4)]
    expected = [rate for rate, first, last in zip(expected, [0, *ends], ends) for _ in range(first, last)]
    np.testing.assert_allclose(found, expected)


def test_a_plateau_lowers_the_rate_and_patience_ends_the_run():
    config = TrainConfig(lr_schedule="plateau", plateau_patience=2, plateau_falls=2)
    seen, v = [], Validations()
    for step, loss in enumerate([5, 4, 4, 4, 3, 3, 3, 3, 3, 3, 2]):
        better = v.note(step, loss, config)
        seen.append((better, v.falls, v.since_best))
    assert [s[1] for s in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [s[0] for s in seen] == [True, True, False, False, True] + 5 * [False] + [True]
    assert (v.best, v.best_step, seen[-2][2]) == (2, 10, 5)


def test_a_loss_that_is_no_number_is_no_best():
    config, v = TrainConfig(), Validations()
    assert [v.note(step, loss, config) for step, loss in enumerate([np.nan, 3.0, np.nan, 2.0])] == [False, True, False, True]


def test_the_trainer_uses_the_lowered_rate(tokens):
    t = trainer(tokens, lr_schedule="plateau", plateau_patience=1, val_every=1, val_steps=1, learning_rate=0.0, max_steps=6)
    t.config.learning_rate = 1e-30  # so small that no validation is better than the first
    np.testing.assert_allclose([s.lr for s in t], [1e-30, 5e-31, 2.5e-31, 1.25e-31, 1.25e-31, 1.25e-31])


def test_accumulation_is_the_large_batch_to_the_last_digits(tokens):
    """To 1e-6: the gradients of one update, each against its own norm."""
    grads = []
    for B in (8, 2):
        m = gpt2c.create("gpt2", **SMALL)
        config = TrainConfig(max_steps=1, total_batch_size=128, learning_rate=0.0)
        t = Trainer(m, gpt2c.DataLoader(tokens, B=B, T=16), None, config)
        (step,) = t
        grads.append((step.loss, {name: m.grads[name] / t.micro_steps for name in m.grads}))
    (one, large), (other, small) = grads
    assert other == pytest.approx(one, rel=1e-6)
    for name in large:
        assert np.linalg.norm(small[name] - large[name]) <= 1e-6 * np.linalg.norm(large[name]) + 1e-12, name


def test_targets_end_a_run_where_they_are_reached(tokens):
    t = trainer(tokens, val_every=2, val_steps=1, target_val_loss=100.0, max_steps=9)
    assert list(t) == [] and t.step == 0 and "reached the target" in t.stopped  # the weights that reached it stay
    t = trainer(tokens, val=False, target_train_loss=100.0, max_steps=9)
    assert len(list(t)) == 1 and "training loss" in t.stopped
