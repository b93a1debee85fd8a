"""The hybrid as a model: against PyTorch's numbers, against its oracle, and against itself run in every other way."""

import goldens
import numpy as np
import pytest
from decoding import WAYS, decoded

import gpt2c
from gpt2c import reference as ref
from gpt2c.errors import UsageError
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config

SMALL = dict(vocab_size=31, hidden=24, num_layers=2, embed=10, num_experts=4, top_k=2)
KINDS = {
    "layer": {},
    "cell": dict(carry="cell"),
    "no_rwkv": dict(use_rwkv=False),
    "fast": dict(fast_mode=True),
    "fast_cell": dict(fast_mode=True, carry="cell"),
    "one_expert": dict(num_experts=1),
    "one_layer": dict(num_layers=1, embed=24),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def model(fields, **switches):
    return Model("hybrid", make_config("hybrid", fields), **switches)


def random_model(kind, seed=3, **switches):
    """With parameters further from their start than initialise() leaves them; and the oracle's view of it."""
    m = model(SMALL | KINDS[kind], **switches)
    cfg = {name: getattr(m.config, name) for name in goldens.golden(goldens.names("hybrid_")[0])["cfg"]}
    params = ref.hybrid_random_params(cfg, seed)
    for name in m.params:
        m.params[name][...] = params[name]
    return m, cfg, params


def batch(B, T, seed=0):
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (2, B, T), dtype=np.int32)


def gradients(m, x, y, **forward):
    m.reset_state()
    m.zero_grad()
    loss = m.forward(x, y, **forward)
    m.backward()
    return loss, m.grads.flat.copy()


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def golden_model(golden):
    m = model(golden["cfg"])
    assert list(m.params) == list(golden["params"])
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


@pytest.mark.parametrize("name", goldens.names("hybrid_"))
def test_loss_logits_and_gradients_are_pytorch_s(name, isa):
    golden = goldens.golden(name)
    m = golden_model(golden)
    loss = m.forward(golden["tokens"], golden["targets"])
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    np.testing.assert_allclose(m.logits, golden["logits"], rtol=1e-4, atol=1e-5)
    m.zero_grad()
    m.backward()
    for tensor, expected in golden["grads"].items():
        assert distance(m.grads[tensor], expected) <= 1e-4, tensor


@pytest.mark.parametrize("name", goldens.names("hybrid_"))
def test_ten_updates_follow_pytorch_s_adamw(name):
    golden = goldens.golden(name)
    m, losses = golden_model(golden), []
    for t in range(1, 11):
        losses.append(gradients(m, golden["tokens"], golden["targets"])[0])
        m.update(lr=1e-3, weight_decay=0.01, t=t)
    np.testing.assert_allclose(losses, golden["curve"], rtol=1e-4)


@kinds
def test_every_way_to_run_gives_the_same_bits(kind):
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
        m, *_ = random_model(kind, balance_loss=0.1, **way)
        loss, grads = gradients(m, *batch(3, 9))
        assert np.isfinite(grads).all()
        results.append((loss, grads.tobytes(), m.metrics))
        m.grads.flat[:] = np.nan
        m.reset_state()
        assert m.loss_and_grad(*batch(3, 9)) == loss and m.grads.flat.tobytes() == grads.tobytes()
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_any_number_of_threads_gives_the_same_bits(isa, kind):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = model(SMALL | KINDS[kind] | dict(hidden=64)).initialise(1)
        loss, grads = gradients(m, *batch(7, 12))
        m.update(lr=1e-3, t=1)
        results.append((loss, grads.tobytes(), m.params.flat.tobytes()))
    assert results[0] == results[1] == results[2]


@kinds
def test_the_oracle_s_gradients_with_a_state_and_a_balance_loss(kind):
    m, cfg, params = random_model(kind, balance_loss=0.1)
    x, y = batch(3, 8)
    y[0, 3] = -1
    rng = np.random.default_rng(1)
    state = {name: abs(rng.standard_normal(s.shape)).astype(np.float32) for name, s in ref.zero_state(cfg, 3).items()}
    expected, _, cache = ref.hybrid_forward(params, cfg, x, y, {n: s.astype(float) for n, s in state.items()}, balance=0.1)
    grads, _ = ref.hybrid_backward(cache)
    m.state = state
    m.zero_grad()
    assert m.forward(x, y) == pytest.approx(expected, rel=1e-5)
    m.backward()
    for name, gradient in grads.items():
        assert distance(m.grads[name], gradient) <= 1e-4, name
    for name, s in cache["state"].items():
        np.testing.assert_allclose(m.state[name], s, rtol=1e-4, atol=1e-5)
    if "router" in params:
        assert m.metrics["balance"] == pytest.approx(sum(cache["balances"]), rel=1e-5)


@kinds
def test_the_balance_loss_is_over_the_new_positions(kind):
    m, cfg, params = random_model(kind, balance_loss=0.5)
    x, y = batch(2, 9)
    y[:, :4] = -1
    expected, _, cache = ref.hybrid_forward(params, cfg, x, y, balance=0.5, first_new=4)
    grads, _ = ref.hybrid_backward(cache)
    assert m.loss_and_grad(x, y, first=4, scale=3) == pytest.approx(expected, rel=1e-5)
    for name, gradient in grads.items():
        assert distance(m.grads[name], 3 * gradient) <= 1e-4, name


@kinds
def test_decoding_in_any_steps_is_the_full_forward(kind):
    m, *_ = random_model(kind)
    ids = batch(1, 40)[0]
    m.forward(ids)
    full = m.logits[0].copy()
    for prompt, piece in WAYS:
        np.testing.assert_allclose(decoded(m, ids[0], prompt, piece), full[prompt - 1 :], rtol=1e-4, atol=1e-4)


def test_acts_hold_the_cell_by_name():
    m, cfg, params = random_model("layer")
    x, y = batch(2, 5)
    m.forward(x, y, keep=True)
    steps = ref.hybrid_forward(params, cfg, x, y)[2]["layers"][1]["gru"]["steps"]
    for name in ("hn", "z", "r", "c", "blend", "shift_k", "q", "k", "v", "decay", "first", "gated", "c2", "n", "out"):
        np.testing.assert_allclose(
            m.acts[f"1.{name}"], np.stack([s[name] for s in steps], axis=1), rtol=1e-3, atol=1e-5, err_msg=name
        )


def test_usage_is_the_share_of_tokens_that_chose_an_expert():
    m, *_ = random_model("layer")
    m.forward(*batch(3, 9), keep=True)
    for l in range(2):
        chosen = m.acts[f"{l}.chosen"]
        assert (chosen[..., 0] == 0).all() and (chosen[..., 1] != chosen[..., 2]).all() and (chosen[..., 1:] > 0).all()
        for j in (1, 2, 3):
            assert m.metrics[f"usage_{l}_{j}"] == pytest.approx((chosen == j).sum() / 27)
    assert m.evaluate(*batch(3, 9)) == m.metrics["cross_entropy"]


def test_an_expert_that_nobody_chooses_gets_no_gradient():
    m, *_ = random_model("layer")
    m.params["router"][:, 1:] = 0
    m.params["router"][:, 0] = 0
    m.params["expert_g"][:, 3] = np.nan  # never computed: of equal probabilities the two lowest numbers are taken
    loss, _ = gradients(m, *batch(2, 6))
    assert np.isfinite(loss) and not m.grads["expert_g"][:, 3].any() and m.grads["expert_g"][:, 1:3].all(axis=(-2, -1)).all()


@pytest.mark.parametrize("name, value", [("time_first", 100.0), ("time_decay", 100.0), ("time_decay", -100.0), ("wk", 1e4)])
def test_extreme_weights_stay_finite(name, value):
    """exp(u + k) and exp(w) leave float32's range; their quotients and exp(-exp(w)) do not."""
    m, cfg, params = random_model("layer")
    x, y = batch(2, 40)
    m.params[name][...] = value if name != "wk" else value * m.params[name]
    loss, grads = gradients(m, x, y)
    params[name] = m.params[name].copy()
    assert loss == pytest.approx(ref.hybrid_forward(params, cfg, x, y)[0], rel=1e-3) and np.isfinite(grads).all()


def test_overfits_one_batch():
    m = gpt2c.create("hybrid", **SMALL)
    x, y = batch(2, 12)
    for t in range(1, 201):
        loss, _ = gradients(m, x, y)
        m.update(lr=5e-3, t=t)
    assert loss < 0.02


def test_parameters_start_as_documented():
    m = gpt2c.create("hybrid", vocab_size=300, hidden=128, num_layers=2, embed=64, num_heads=4)
    assert m.params["emb"].std() == pytest.approx(64**-0.5, rel=0.03)
    assert m.params["in0_z"].std() == pytest.approx((2 / 192) ** 0.5, rel=0.03)
    assert m.params["uz"].std() == pytest.approx((2 / 256) ** 0.5, rel=0.03)
    assert m.params["wdecay"].std() == pytest.approx(0.1 * (2 / 256) ** 0.5, rel=0.03)
    assert m.params["expert_d"].std() == pytest.approx((2 / 384) ** 0.5, rel=0.03)
    heads = m.params["time_decay"].reshape(2, 4, 32)
    for h in range(4):
        assert (heads[:, h] <= -0.3 - 0.1 * h).all() and (heads[:, h] >= -0.7 - 0.1 * h).all()
    assert (m.params["in0_norm"] == 1).all() and not m.params["bz"].any()
    assert abs(m.params["mu_k"] - 0.5).max() <= 0.05 and abs(m.params["time_first"] - 0.4).max() <= 0.1
    assert gpt2c.create("hybrid", vocab_size=300).num_parameters == sum(
        np.prod(s)
        for s in ref.hybrid_shapes(
            dict(vocab_size=300, hidden=32, num_layers=1, embed=16, num_experts=4, use_rwkv=True, fast_mode=False)
        ).values()
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(num_layers=0), "num_layers is 0, expected at least 1"),
        (dict(hidden=3, num_heads=4), r"num_heads \(4\) is above hidden \(3\)"),
        (dict(carry="all"), "carry is 'all', expected layer or cell"),
    ],
)
def test_impossible_configurations_are_explained(fields, message):
    with pytest.raises(UsageError, match=message):
        gpt2c.create("hybrid", **fields)
