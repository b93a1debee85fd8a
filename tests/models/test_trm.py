"""The Tiny Recursive Model as a whole: against PyTorch's numbers, and against itself run in every other way."""

import goldens
import numpy as np
import pytest
from decoding import WAYS, decoded
from test_model import assert_slope_is_the_oracle_s, batch, gradients

import gpt2c
from gpt2c import reference as ref
from gpt2c.data import write_shard
from gpt2c.errors import UsageError
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config
from gpt2c.runs.folder import Run
from gpt2c.runs.logs import read_metrics

SMALL = dict(vocab_size=61, channels=24, hidden=40, num_heads=3, max_seq_len=40, cope_max_pos=7)
KINDS = {"plain": {}, "adaptive": dict(adaptive=True, max_depth=5), "without positions": dict(pos_emb="none", depth=1)}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def lively(family_config, seed=3, **switches):
    """A model whose every parameter matters; with adaptive depth, tokens halt at different steps."""
    m = Model("trm", family_config, **switches)
    fields = {name: getattr(family_config, name) for name in family_config.__dataclass_fields__}
    for name, values in ref.trm_random_params(fields, seed).items():
        m.params[name][...] = values
    return m


def golden_model(golden, **switches):
    m = Model("trm", make_config("trm", golden["cfg"]), **switches)
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


@pytest.mark.parametrize("name", goldens.names("trm_"))
def test_loss_logits_and_gradients_are_pytorch_s(name, isa):
    golden = goldens.golden(name)
    m = golden_model(golden)
    assert list(m.params) == list(ref.trm_shapes(golden["cfg"]))
    assert m.forward(golden["tokens"], golden["targets"]) == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert m.metrics == pytest.approx(golden["metrics"], rel=1e-5)
    np.testing.assert_allclose(m.logits, golden["logits"], rtol=1e-4, atol=1e-5)
    m.zero_grad()
    m.backward()
    for tensor, expected in golden["grads"].items():
        distance = np.linalg.norm(m.grads[tensor] - expected)
        assert distance <= 1e-4 * np.linalg.norm(expected), tensor


@pytest.mark.parametrize("name", ["trm_curve", "trm_adaptive"])
def test_ten_updates_follow_pytorch_s_adamw(name, isa):
    golden = goldens.golden(name)
    goldens.assert_curve(golden_model(golden), golden)


def test_every_way_to_run_gives_the_same_bits(kind):
    ways = [
        {},
        {"record": False},
        {"reuse": False},
        {"record": False, "poison": True},
        {"recompute": 1},
        {"recompute": 2},
        {"record": False, "poison": True, "recompute": 1},
        {"record": False, "poison": True, "recompute": 2},
    ]
    config, results = make_config("trm", SMALL | kind), []
    for way in ways:
        m = lively(config, **way)
        x, y = batch(m, 3, 37)
        y[:, :5] = -1
        loss, grads = gradients(m, x, y)
        assert np.isfinite(grads).all() and m.loss_and_grad(x, y) == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(m.grads.flat, grads, rtol=1e-5, atol=1e-7)
        results.append((loss, grads.tobytes(), m.grads.flat.tobytes()))
    assert all(result == results[0] for result in results)


def test_any_number_of_threads_gives_the_same_bits(isa, kind):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = gpt2c.create("trm", **SMALL | kind | dict(channels=96, hidden=192))
        loss = m.loss_and_grad(*batch(m, 9, 40))
        results.append((loss, m.metrics, m.grads.flat.tobytes()))
    assert results[0] == results[1] == results[2]


def test_what_training_computes_is_what_evaluation_computes(kind):
    m = lively(make_config("trm", SMALL | kind))
    x, y = batch(m, 2, 30)
    loss = m.forward(x, y)
    metrics, logits = m.metrics, m.logits.copy()
    assert m.forward(x, y, train=True) == loss and m.metrics == metrics
    m.forward(x)
    assert (m.logits == logits).all()
    assert m.evaluate(x, y) == pytest.approx(metrics["cross_entropy"], rel=1e-6)
    assert m.forward(x, y, keep=True) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(m.acts["0.att"].sum(-1), 1, rtol=1e-5)
    loss = metrics["cross_entropy"] + m.config.ponder_weight * metrics.get("ponder", 0)
    assert m.forward(x, y) == loss


def test_decoding_with_a_cache_is_the_full_forward(kind):
    m = lively(make_config("trm", SMALL | kind))
    x, _ = batch(m, 1, 40)
    m.forward(x)
    full = m.logits[0].copy()
    for prompt, piece in WAYS:
        np.testing.assert_allclose(decoded(m, x[0], prompt, piece), full[prompt - 1 :], rtol=1e-4, atol=2e-5)


def test_directional_derivative(kind):
    assert_slope_is_the_oracle_s(lively(make_config("trm", SMALL | kind)), ref.trm_forward, h=1e-6, tolerance=1e-3)


def test_depth_one_is_one_plain_block():
    """Written out with what GPT-2's oracle has; without a table of positions its attention is CoPE's."""
    m = lively(make_config("trm", SMALL | dict(depth=1)))
    m.params["cope"][...] = 0
    x, y = batch(m, 2, 11)
    p = {name: m.params[name].astype(float) for name in m.params}

    def dyt(h, which):
        return np.tanh(p[f"{which}_a"] * h) * p[f"{which}_g"] + p[f"{which}_b"]

    h = p["emb"][x] + p["pos"][:11]
    h = h + p["alpha"] * (ref.attention_forward(dyt(h, "dyt1") @ p["qkvw"].T, 3)[0] @ p["attprojw"].T)
    n = dyt(h, "dyt2")
    h = h + p["beta"] * ((ref.swiglu_forward(n @ p["ffw1"].T, n @ p["ffw2"].T)) @ p["ffw3"].T)
    m.forward(x, y)
    np.testing.assert_allclose(m.logits, dyt(h, "dytf") @ p["head"].T, rtol=1e-4, atol=1e-5)


def test_halting_surely_at_the_first_step_is_depth_one():
    plain = lively(make_config("trm", SMALL | dict(depth=1)))
    adaptive = lively(make_config("trm", SMALL | dict(adaptive=True, max_depth=4, ponder_weight=0.0)))
    for name in plain.params:
        adaptive.params[name].flat[: plain.params[name].size] = plain.params[name].ravel()
    adaptive.params["halt_b"][...] = 100  # p = 1
    x, y = batch(plain, 2, 20)
    loss, grads = gradients(plain, x, y)
    assert gradients(adaptive, x, y)[0] == loss
    assert adaptive.metrics["mean_depth"] == 1 and adaptive.metrics["ponder"] == 2
    for name in plain.params:
        found = adaptive.grads[name].ravel()
        np.testing.assert_array_equal(found[: plain.grads[name].size], plain.grads[name].ravel())
        assert not found[plain.grads[name].size :].any()  # steps that nobody takes
    assert not adaptive.grads["halt_w"].any() and not adaptive.grads["halt_b"].any()


def test_adaptive_depth_looks_back_only():
    m = lively(make_config("trm", SMALL | KINDS["adaptive"]))
    x, _ = batch(m, 1, 30)
    m.forward(x)
    before = m.logits.copy()
    x[0, 13] = (x[0, 13] + 1) % 61
    m.forward(x)
    assert (m.logits[0, :13] == before[0, :13]).all() and (m.logits[0, 13:] != before[0, 13:]).any(axis=-1).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_adaptive_depth_starts_at_depth(depth):
    m = gpt2c.create("trm", **SMALL, adaptive=True, depth=depth)
    m.forward(*batch(m, 2, 20))
    assert m.metrics["mean_depth"] == depth


def test_a_run_tells_the_parts_of_the_loss(tmp_path):
    """Means over the batches of an update; the depth that was taken is among them."""
    write_shard(tmp_path / "x.bin", np.random.default_rng(0).integers(0, 61, 400))
    m, alone = (lively(make_config("trm", SMALL | KINDS["adaptive"])) for _ in range(2))
    loader, same = (gpt2c.DataLoader(str(tmp_path / "x.bin"), B=2, T=16) for _ in range(2))
    step = next(iter(gpt2c.Trainer(m, loader, None, gpt2c.TrainConfig(total_batch_size=64))))
    every = [alone.loss_and_grad(*same.next_batch()) and alone.metrics for _ in range(2)]
    assert step.parts == pytest.approx({name: (every[0][name] + every[1][name]) / 2 for name in every[0]})
    assert step.parts.keys() == {"cross_entropy", "ponder", "mean_depth"} and 1 < step.parts["mean_depth"] < 5
    assert step.loss == pytest.approx(step.parts["cross_entropy"] + m.config.ponder_weight * step.parts["ponder"])
    run = Run(tmp_path / "run")
    run.take()
    run.log(0, loss=step.loss, lr=1.0, grad_norm=1.0, **step.parts)
    assert read_metrics(tmp_path / "run")[0]["mean_depth"] == step.parts["mean_depth"]


def test_initial_weights_are_those_of_its_document():
    m = gpt2c.create("trm", vocab_size=500)
    assert m.params["emb"].std() == pytest.approx(128**-0.5, rel=0.02)
    assert m.params["qkvw"].std() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert m.params["ffw3"].std() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert m.params["cope"].std() == pytest.approx(0.02, rel=0.02)
    assert (m.params["alpha"] == np.float32(0.01)).all() and (m.params["dyt1_a"] == 1).all() and m.params["beta"].shape == (3,)


def test_no_counted_target_is_loss_zero_without_gradients(kind):
    m = lively(make_config("trm", SMALL | kind))
    x, y = batch(m, 2, 8)
    loss, grads = gradients(m, x, np.full_like(y, -1))
    assert loss == 0.0 and not grads.any() and not any(m.metrics.values())


def test_overfits_one_batch(kind):
    m = gpt2c.create("trm", **SMALL | kind | dict(ponder_weight=1e-4))
    x, y = batch(m, 2, 16)
    for t in range(1, 301):
        m.loss_and_grad(x, y)
        m.update(lr=3e-3, t=t)
    assert m.metrics["cross_entropy"] < 0.01


def test_a_checkpoint_holds_it(tmp_path, kind):
    m = lively(make_config("trm", SMALL | kind))
    m.save(tmp_path / "m.safetensors")
    again = gpt2c.load(tmp_path / "m.safetensors")
    assert again.family == "trm" and again.config == m.config and (again.params.flat == m.params.flat).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(channels=50, num_heads=3), r"channels \(50\) must be a multiple of num_heads \(3\)"),
        (dict(depth=0), "depth is 0, expected at least 1"),
        (dict(pos_emb="rotary"), "pos_emb is 'rotary', expected learned or none"),
        (dict(halt_threshold=1.0), "halt_threshold is 1.0, expected a number between 0 and 1"),
        (dict(ponder_weight=float("nan")), "ponder_weight is nan, expected at least 0"),
        (dict(adaptive=True, depth=11), r"depth \(11\) is above max_depth \(10\)"),
    ],
)
def test_impossible_configurations_are_explained(fields, message):
    with pytest.raises(UsageError, match=message):
        gpt2c.create("trm", vocab_size=11, **fields)


def test_its_program_reads_like_the_paper(golden_file):
    m = gpt2c.create("trm", channels=8, hidden=12, num_heads=2, vocab_size=11, max_seq_len=4, adaptive=True, depth=1, max_depth=2)
    golden_file("trm_program.txt", str(m.program(B=2, T=4)))
