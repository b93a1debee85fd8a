"""Llama and its relatives as a whole: against PyTorch's numbers, and against themselves run in every other way."""

import math

import goldens
import numpy as np
import pytest
from decoding import WAYS, decoded
from test_model import batch, gradients

import gpt2c
from gpt2c.errors import UsageError
from gpt2c.models import llama
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config

SMALL = dict(vocab_size=97, channels=48, hidden=64, num_layers=2, num_heads=6, num_kv_heads=2, max_seq_len=64)
KINDS = {
    "llama": {},
    "qwen2": dict(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6),
    "qwen3": dict(qk_norm=True, head_dim=12, tied=False),
    "no shared heads": dict(num_kv_heads=6, rope_scaling="llama3:8.0,1.0,4.0,16.0"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def lively(fields, seed=3, **switches):
    """A model whose every parameter matters."""
    m, rng = Model("llama", make_config("llama", SMALL | fields), **switches), np.random.default_rng(seed)
    for spec in m.params.specs:
        values = rng.standard_normal(spec.shape, np.float32)
        m.params[spec.name][...] = values / spec.shape[-1] ** 0.5 if spec.decay else 0.2 * values + (spec.name != "qkvb")
    return m


@pytest.mark.parametrize("name", goldens.names("llama"))
def test_loss_logits_and_gradients_are_pytorch_s(name, isa):
    golden = goldens.golden(name)
    m = golden_model(golden)
    assert m.forward(golden["tokens"], golden["targets"]) == pytest.approx(float(golden["loss"]), rel=2e-6)
    assert abs(m.logits - golden["logits"]).max() <= 1e-4
    m.zero_grad()
    m.backward()
    assert set(m.grads) == set(golden["grads"])
    for tensor, expected in golden["grads"].items():
        assert np.linalg.norm(m.grads[tensor] - expected) <= 1e-4 * np.linalg.norm(expected), tensor


def golden_model(golden):
    m = Model("llama", make_config("llama", golden["cfg"]))
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


def test_ten_updates_follow_pytorch_s_adamw(isa):
    golden = goldens.golden("llama_curve")
    goldens.assert_curve(golden_model(golden), golden)


def test_every_way_to_run_gives_the_same_bits(kind):
    ways = [
        {},
        {"record": False, "poison": True},
        {"reuse": False},
        {"recompute": 1},
        {"record": False, "poison": True, "recompute": 2},
    ]
    results = []
    for way in ways:
        m = lively(kind, **way)
        loss, grads = gradients(m, *batch(m, 2, 33))
        assert np.isfinite(grads).all()
        results.append((loss, grads.tobytes()))
    assert all(result == results[0] for result in results)


def test_any_number_of_threads_gives_the_same_bits(kind, isa):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = lively(kind)
        loss, grads = gradients(m, *batch(m, 8, 64))
        results.append((loss, grads.tobytes()))
    assert results[0] == results[1] == results[2]


def test_what_is_kept_to_look_at_changes_nothing_else(kind):
    m = lively(kind)
    x, y = batch(m, 2, 9)
    loss, grads = gradients(m, x, y)
    kept_loss, kept_grads = gradients(m, x, y, keep=True)
    assert kept_loss == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(kept_grads, grads, rtol=1e-3, atol=1e-5)
    assert m.acts["1.att"].shape == (2, 6, 9, 9)
    np.testing.assert_allclose(m.acts["1.att"].sum(-1), 1, rtol=1e-5)


def test_decoding_in_any_steps_is_the_full_forward(kind, isa):
    m = lively(kind)
    (ids,), _ = batch(m, 1, 40)
    m.forward(ids[None])
    full = m.logits[0].copy()
    for prompt, piece in WAYS:
        np.testing.assert_allclose(decoded(m, ids, prompt, piece), full[prompt - 1 :], rtol=1e-4, atol=2e-5)


def test_the_order_of_earlier_tokens_matters(kind):
    m = lively(kind)
    (ids,), _ = batch(m, 1, 20)
    m.forward(ids[None])
    first = m.logits[0, -1].copy()
    m.forward(ids[None, [*range(18, -1, -1), 19]])  # all but the last, reversed
    assert abs(first - m.logits[0, -1]).max() > 0.01


# The numbers of parameters that their authors give
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("size", llama.SIZES)
def test_sizes_have_as_many_parameters_as_the_models_of_these_names(size):
    cfg = make_config("llama", llama.size(size))
    assert sum(spec.size for spec in llama.params(cfg)) == PARAMETERS[size]
    assert len(llama.frequencies(cfg)) == cfg.head_dim // 2


def test_a_model_is_created_by_the_name_of_its_size():
    m = gpt2c.create("llama", size="smollm2-135m", num_layers=1, vocab_size=10, channels=36)
    assert (m.config.num_heads, m.config.num_kv_heads, m.config.head_dim) == (9, 3, 4)
    with pytest.raises(UsageError, match="llama has no size 'smollm3'"):
        gpt2c.create("llama", size="smollm3")


def test_scaled_frequencies_by_their_wavelengths():
    """Long waves are slowed down, short ones are not, those between partly."""
    original, factor, low, high = 8192, 32.0, 1.0, 4.0
    cfg = make_config("llama", llama.size("llama3.2-1b"))
    plain = [500000.0 ** (-2 * j / 64) for j in range(32)]
    for found, f in zip(llama.frequencies(cfg), plain, strict=True):
        wave = 2 * math.pi / f
        smooth = (original / wave - low) / (high - low)
        between = (1 - smooth) * f / factor + smooth * f
        expected = f if wave < original / high else f / factor if wave > original / low else between
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fields, message", [
    (dict(channels=30), r"channels \(30\) must be a multiple of num_heads \(4\)"),
    (dict(num_kv_heads=3), r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
    (dict(head_dim=3), "head_dim is 3, expected an even number"),
    (dict(rope_theta=0.0), "rope_theta is 0.0, expected a finite number above 0"),
    (dict(norm_eps=math.inf), "norm_eps is inf, expected a finite number above 0"),
    (dict(rope_scaling="yarn:4"), "rope_scaling is 'yarn:4', expected llama3:FACTOR,LOW,HIGH,ORIGINAL"),
    (dict(rope_scaling="llama3:8,4,4,16"), "LOW below HIGH"),
    (dict(rope_scaling="factors:1,2,three"), "factors: and 4 numbers"),
    (dict(rope_scaling="factors:1,2,0,4"), "all above 0"),
    (dict(rope_scaling="factors:1,2,4"), "factors: and 4 numbers"),
])  # fmt: skip
def test_configs_that_make_no_model(fields, message):
    with pytest.raises(UsageError, match=message):
        make_config("llama", dict(channels=32, num_heads=4) | fields)


def test_a_config_s_claims_take_no_memory():
    """Before any tensor is there."""
    make_config("llama", dict(head_dim=2**40, max_seq_len=2**60, vocab_size=2**40))
