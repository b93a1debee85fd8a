"""The chargpt family: against PyTorch's numbers, dropout against the oracle, and against itself run in other ways."""

import dataclasses

import goldens
import numpy as np
import pytest
from decoding import decoded

import gpt2c
from gpt2c import reference as ref
from gpt2c.errors import UsageError
from gpt2c.models import chargpt
from gpt2c.models.files import load_run
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config

SMALL = dict(num_layers=2, channels=48, num_heads=4, vocab_size=31, max_seq_len=32, dropout=0.25)


def golden_model(golden):
    m = Model("chargpt", make_config("chargpt", golden["cfg"]))
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


def batch(B, T, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (2, B, T), dtype=np.int32)


def model(seed=3, **switches):
    """With weights large enough that what is dropped shows in the loss."""
    m = Model("chargpt", make_config("chargpt", SMALL), **switches).initialise(seed)
    m.params.flat[...] *= 5
    return m


def gradients(m, x, y, **forward):
    m.zero_grad()
    loss = m.forward(x, y, **forward)
    m.backward()
    return loss, m.grads.flat.copy()


def test_the_oracle_is_pytorch_s():
    golden = goldens.golden("chargpt")
    loss, logits = ref.chargpt_forward(golden["params"], golden["cfg"] | {"dropout": 0}, golden["tokens"], golden["targets"])
    assert loss == pytest.approx(golden["loss"].item(), rel=1e-12)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-6, atol=1e-6)


def test_loss_logits_and_gradients_are_pytorch_s(isa):
    golden = goldens.golden("chargpt")
    m = golden_model(golden)
    loss, _ = gradients(m, golden["tokens"], golden["targets"])
    assert loss == pytest.approx(golden["loss"].item(), rel=1e-5)
    for tensor, expected in golden["grads"].items():
        assert np.linalg.norm(m.grads[tensor] - expected) <= 1e-4 * np.linalg.norm(expected), tensor
    m.forward(golden["tokens"])
    np.testing.assert_allclose(m.logits, golden["logits"], rtol=1e-4, atol=1e-4)


def test_ten_updates_follow_pytorch_s_adamw(isa):
    golden = goldens.golden("chargpt")
    m, losses = golden_model(golden), []
    for t in range(1, 11):
        losses.append(gradients(m, golden["tokens"], golden["targets"])[0])
        m.update(lr=1e-3, weight_decay=0.01, t=t)
    np.testing.assert_allclose(losses, golden["curve"], rtol=1e-4)


def test_dropout_acts_in_training_only_and_anew_each_time():
    m = model()
    x, y = batch(4, 16)
    plain = m.forward(x, y)
    trained = [m.forward(x, y, train=True) for _ in range(3)]
    assert len({plain, *trained}) == 4 and m.dropout_counter == 3
    assert m.forward(x, y) == plain and m.dropout_counter == 3
    m.dropout_counter = 0
    assert [m.forward(x, y, train=True) for _ in range(3)] == trained
    m.dropout_counter, m.seed = 0, m.seed + 1
    assert m.forward(x, y, train=True) not in trained


def test_without_dropout_training_is_evaluation():
    m = gpt2c.create("chargpt", **SMALL | dict(dropout=0))
    x, y = batch(2, 8)
    assert m.forward(x, y, train=True) == m.forward(x, y)


def test_masks_are_the_oracle_s():
    """What two sites of a layer drop, seen in the activations: each adds its part times 4/3 or nothing."""
    m = model()
    x, y = batch(4, 32)
    m.forward(x, y, train=True, keep=True)
    acts = m.acts
    sites = (0, "encoded", "0.attproj", "0.residual2"), (3, "1.residual2", "1.fcproj", "1.residual3")
    for stream, before, part, after in sites:
        mask = ref.dropout_mask(acts[part].size, m.seed, m.dropout_counter, stream, 0.25).reshape(acts[part].shape)
        assert 0.7 < mask.mean() < 0.8
        np.testing.assert_allclose(acts[after], acts[before] + mask * acts[part] / 0.75, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_directional_derivative(train):
    """The gradient along a random direction is the slope of the float64 oracle's loss, with the same masks."""
    m = model()
    x, y = batch(2, 9)
    loss, _ = gradients(m, x, y, train=train)
    cfg, noise = dataclasses.asdict(m.config), (m.seed, m.dropout_counter) if train else None
    params = {name: m.params[name].astype(np.float64) for name in m.params}
    assert loss == pytest.approx(ref.chargpt_forward(params, cfg, x, y, noise)[0], rel=1e-5)
    rng = np.random.default_rng(5)
    for name, tensor in params.items():
        gradient = m.grads[name].astype(np.float64)
        noise_direction = rng.standard_normal(tensor.shape)
        direction = gradient / np.linalg.norm(gradient) + noise_direction / np.linalg.norm(noise_direction)
        h = 1e-5
        up, down = (ref.chargpt_forward({**params, name: tensor + s * h * direction}, cfg, x, y, noise)[0] for s in (1, -1))
        assert (gradient * direction).sum() == pytest.approx((up - down) / (2 * h), rel=1e-4), name


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 32)])
def test_every_way_to_run_gives_the_same_bits(shape):
    ways = [
        {},
        {"record": False},
        {"reuse": False},
        {"record": False, "poison": True},
        {"recompute": 1},
        {"recompute": 2},
        {"record": False, "poison": True, "recompute": 2},
    ]
    results = []
    for way in ways:
        loss, grads = gradients(model(**way), *batch(*shape), train=True)
        assert np.isfinite(grads).all()
        results.append((loss, grads.tobytes()))
    assert all(result == results[0] for result in results)


def test_any_number_of_threads_gives_the_same_bits(isa):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = gpt2c.create("chargpt", **SMALL | dict(channels=192, max_seq_len=64))
        loss, grads = gradients(m, *batch(8, 64), train=True)
        m.update(lr=1e-3, t=1)
        results.append((loss, grads.tobytes(), m.params.flat.tobytes()))
    assert results[0] == results[1] == results[2]


def test_the_cache_gives_the_logits_of_the_full_forward():
    m = model()
    x, _ = batch(1, 20)
    m.forward(x)
    for piece in 1, 3, 512:
        np.testing.assert_allclose(decoded(m, x[0], 7, piece), m.logits[0, 6:], rtol=1e-4, atol=1e-5)
    assert len(list(gpt2c.generate(m, [1, 2], 40, temperature=0))) == 40  # beyond max_seq_len


class Loader:
    """The same batch for ever."""

    B, T, world, num_batches = 4, 16, 1, 1

    def next_batch(self):
        return batch(self.B, self.T)

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_a_resumed_run_drops_what_it_would_have_dropped(tmp_path):
    def trainer(m, seed=5):
        return gpt2c.Trainer(m, Loader(), None, gpt2c.TrainConfig(max_steps=10, learning_rate=1e-2, seed=seed))

    straight = trainer(model())
    losses = []
    for step in straight:
        losses.append(step.loss)
        if straight.step == 4:
            straight.save(tmp_path / "four.safetensors")
    m, run = load_run(tmp_path / "four.safetensors")
    resumed = trainer(m, seed=6)
    resumed.restore(run)
    assert [step.loss for step in resumed] == losses[4:]
    assert m.params.flat.tobytes() == straight.model.params.flat.tobytes()
    assert len({trainer(model(), seed).update().loss for seed in (5, 6)}) == 2


def test_overfits_one_batch():
    m = gpt2c.create("chargpt", **SMALL | dict(dropout=0))
    x, y = batch(2, 16)
    for t in range(1, 201):
        loss, _ = gradients(m, x, y)
        m.update(lr=3e-3, t=t)
    assert loss < 0.01


def test_sizes_are_those_of_the_document():
    m = gpt2c.create("chargpt", vocab_size=67)
    assert m.num_parameters == 1_204_992
    assert {name: m.params[name].shape for name in m.params} == {
        "wte": (67, 128),
        "wpe": (64, 128),
        "qkvw": (6, 384, 128),
        "attprojw": (6, 128, 128),
        "fcw": (6, 512, 128),
        "fcprojw": (6, 128, 512),
        "lm_head": (67, 128),
    }
    assert m.params["fcw"].std() == pytest.approx(0.02, rel=0.02) and m.params["wpe"].std() == pytest.approx(0.01, rel=0.05)
    assert m.params["fcprojw"].std() == pytest.approx(0.02 / 12**0.5, rel=0.02)
    millions = {
        name: Model("chargpt", make_config("chargpt", chargpt.size(name))).num_parameters / 1e6 for name in chargpt.PRESETS
    }
    assert millions == pytest.approx({"tiny": 0.11, "current": 1.2, "medium": 4.8, "large": 38}, rel=0.03)
    assert chargpt.size("d12") is None and chargpt.size("chargpt:tiny") == chargpt.size("tiny")


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(channels=50), r"channels \(50\) must be a multiple of num_heads \(8\)"),
        (dict(num_layers=0), "num_layers is 0, expected at least 1"),
        (dict(dropout=1.0), "dropout is 1.0, expected at least 0 and less than 1"),
        (dict(drop_out=0.1), "no field 'drop_out'; did you mean dropout"),
    ],
)
def test_impossible_configurations_are_explained(fields, message):
    with pytest.raises(UsageError, match=message):
        gpt2c.create("chargpt", **fields)
