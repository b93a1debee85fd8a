"""Models as a whole: against PyTorch's numbers, and against themselves run in every other way."""

import dataclasses
import os
import re
import weakref
from pathlib import Path

import goldens
import numpy as np
import pytest

import gpt2c
from gpt2c import reference as ref
from gpt2c.engine.arena import LARGE, aligned
from gpt2c.errors import UsageError
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config

GOLDENS = ["gpt2_curve", "gpt2_one_token", "gpt2_ignored"]
SMALL = dict(num_layers=2, channels=48, num_heads=3, vocab_size=97, max_seq_len=64)


def golden_model(golden, **switches):
    m = Model("gpt2", make_config("gpt2", golden["cfg"]), **switches)
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


def batch(m, B, T, seed=0):
    return np.random.default_rng(seed).integers(0, m.config.vocab_size, (2, B, T), dtype=np.int32)


def gradients(m, x, y, **forward):
    """(loss, all gradients) of one batch, from zero."""
    m.zero_grad()
    loss = m.forward(x, y, **forward)
    m.backward()
    return loss, m.grads.flat.copy()


@pytest.mark.parametrize("name", GOLDENS)
def test_loss_logits_and_gradients_are_pytorch_s(name, isa):
    golden = goldens.golden(name)
    m = golden_model(golden)
    loss = m.forward(golden["tokens"], golden["targets"])
    V = m.config.vocab_size
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    np.testing.assert_allclose(m.logits[..., :V], golden["logits"][..., :V], rtol=1e-4, atol=1e-5)
    m.zero_grad()
    m.backward()
    for tensor, expected in golden["grads"].items():
        distance = np.linalg.norm(m.grads[tensor] - expected)
        assert distance <= 1e-4 * np.linalg.norm(expected), tensor


def test_ten_updates_follow_pytorch_s_adamw(isa):
    golden = goldens.golden("gpt2_curve")
    m, losses = golden_model(golden), []
    for t in range(1, 11):
        losses.append(m.forward(golden["tokens"], golden["targets"]))
        m.zero_grad()
        m.backward()
        m.update(lr=1e-3, weight_decay=0.01, t=t)
    np.testing.assert_allclose(losses, golden["curve"], rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 64)])
def test_every_way_to_run_gives_the_same_bits(shape):
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
    results = []
    for way in ways:
        m = Model("gpt2", make_config("gpt2", SMALL), **way).initialise(3)
        loss, grads = gradients(m, *batch(m, *shape))
        assert np.isfinite(grads).all()
        results.append((loss, grads.tobytes()))
    assert all(result == results[0] for result in results)


def test_any_number_of_threads_gives_the_same_bits(isa):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = gpt2c.create("gpt2", **SMALL | dict(channels=192))
        loss, grads = gradients(m, *batch(m, 8, 64))
        m.update(lr=1e-3, t=1)
        results.append((loss, grads.tobytes(), m.params.flat.tobytes()))
    assert results[0] == results[1] == results[2]


def assert_slope_is_the_oracle_s(m, oracle, h, tolerance):
    """The gradient along a random direction is the slope of the float64 oracle's loss."""
    x, y = batch(m, 2, 9)
    gradients(m, x, y)
    cfg = dataclasses.asdict(m.config)
    params = {name: m.params[name].astype(np.float64) for name in m.params}
    rng = np.random.default_rng(5)
    direction = {name: rng.standard_normal(p.shape) for name, p in params.items()}
    along = sum((m.grads[name].astype(np.float64) * d).sum() for name, d in direction.items())
    up, down = (oracle({n: p + s * h * direction[n] for n, p in params.items()}, cfg, x, y)[0] for s in (1, -1))
    assert along == pytest.approx((up - down) / (2 * h), rel=tolerance)


def test_directional_derivative():
    assert_slope_is_the_oracle_s(gpt2c.create("gpt2", **SMALL), ref.gpt2_forward, h=1e-5, tolerance=1e-4)


def test_shapes_may_change_from_call_to_call():
    m = gpt2c.create("gpt2", **SMALL)
    small, large = batch(m, 1, 5), batch(m, 4, 64)
    first = gradients(m, *small)
    gradients(m, *large)
    again = gradients(m, *small)
    assert first[0] == again[0] and (first[1] == again[1]).all()


def test_llm_c_s_order_of_calls_and_dropped_forwards():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 8)
    loss, expected = gradients(m, x, y)
    m.forward(*batch(m, 2, 8, seed=1))  # dropped
    m.forward(x, y)
    m.zero_grad()  # llm.c zeroes between forward and backward
    m.backward()
    assert (m.grads.flat == expected).all()
    assert m.metrics["cross_entropy"] == loss


def test_loss_and_grad_replaces_or_adds():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 8)
    loss, expected = gradients(m, x, y)
    m.grads.flat[:] = np.nan  # what was there does not count
    assert m.loss_and_grad(x, y) == loss and (m.grads.flat == expected).all()
    m.loss_and_grad(x, y, add=True)
    np.testing.assert_allclose(m.grads.flat, 2 * expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("way", [{}, {"record": False, "poison": True}, {"recompute": 2}])
def test_a_classifier_in_pieces_gives_the_same(monkeypatch, way):
    config = make_config("gpt2", SMALL | dict(vocab_size=4000))
    m = Model("gpt2", config, **way).initialise(3)
    x, y = batch(m, 3, 40)
    y[0, :30] = y[2, 7] = -1
    loss, expected = gradients(m, x, y)
    whole = m.memory(3, 40)["activations"]
    monkeypatch.setattr("gpt2c.engine.ops.loss.LOGIT_ROWS", 50)  # 120 rows: two pieces and a rest
    m = Model("gpt2", config, **way).initialise(3)
    assert m.memory(3, 40)["activations"] < whole
    assert m.loss_and_grad(x, y) == m.evaluate(x, y) == loss
    np.testing.assert_allclose(m.grads.flat, expected, rtol=1e-5, atol=1e-7)
    for absent in (lambda: m.logits, m.backward):
        with pytest.raises(UsageError):
            absent()


def test_only_one_piece_of_logits_exists_at_a_time(monkeypatch):
    monkeypatch.setattr("gpt2c.engine.ops.loss.LOGIT_ROWS", 64)
    m = Model("gpt2", make_config("gpt2", SMALL | dict(vocab_size=50_000)))
    piece = 4 * 64 * m.config.padded_vocab_size
    assert piece < m.memory(4, 64)["activations"] < 1.5 * piece


def test_a_value_that_is_only_added_to_the_residual_stream_is_let_go():
    config = make_config("gpt2", SMALL | dict(num_layers=1))
    more = make_config("gpt2", SMALL | dict(num_layers=2))
    one, two = (Model("gpt2", c).memory(8, 64)["activations"] for c in (config, more))
    column = 4 * 8 * 64 * config.channels  # bytes of a value as wide as the stream
    assert 16 * column <= two - one < 17 * column  # ln1, 3 qkv, atty, sum, ln2, 4 fch, 4 gelu, sum; no attproj, no fcproj


def test_recomputing_saves_memory():
    big = make_config("gpt2", SMALL | dict(num_layers=8))
    sizes = [Model("gpt2", big, recompute=level).memory(8, 64)["activations"] for level in (0, 1, 2)]
    assert sizes[1] < 0.75 * sizes[0] and sizes[2] < 0.5 * sizes[1]


def test_bf16_products_are_close(isa):
    golden = goldens.golden("gpt2_curve")
    m = golden_model(golden)
    gpt2c.set_matmul_precision("bf16")
    loss, _ = gradients(m, golden["tokens"], golden["targets"])
    assert loss == pytest.approx(float(golden["loss"]), rel=2e-3) and loss != pytest.approx(float(golden["loss"]), rel=1e-6)
    for tensor, expected in golden["grads"].items():  # bf16 has 8 bits: roundings of 2^-9, a few layers deep
        assert np.linalg.norm(m.grads[tensor] - expected) <= 0.03 * np.linalg.norm(expected), tensor


def test_backward_adds():
    m = gpt2c.create("gpt2", **SMALL)
    one, two = batch(m, 2, 8), batch(m, 2, 8, seed=1)
    a, b = gradients(m, *one)[1], gradients(m, *two)[1]
    m.zero_grad()
    for x, y in (one, two):
        m.forward(x, y)
        m.backward()
    np.testing.assert_allclose(m.grads.flat, a + b, atol=1e-6 * np.abs(a + b).max())


def test_forward_touches_neither_gradients_nor_parameters():
    m = gpt2c.create("gpt2", **SMALL)
    m.grads.flat[:] = 7
    before = m.params.flat.copy()
    m.forward(*batch(m, 2, 8))
    assert (m.grads.flat == 7).all() and (m.params.flat == before).all()


def test_training_mode_and_state_mean_nothing_to_gpt2():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 8)
    loss = m.forward(x, y)
    m.reset_state()
    assert m.forward(x, y, train=True) == loss and m.state == {}


def test_no_counted_target_is_loss_zero_without_gradients():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 8)
    loss, grads = gradients(m, x, np.full_like(y, -1))
    assert loss == 0.0 and not grads.any()


def test_overfits_one_batch():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 16)
    for t in range(1, 201):
        loss, _ = gradients(m, x, y)
        m.update(lr=3e-3, t=t)
    assert loss < 0.01


def test_acts_hold_every_activation():
    m = gpt2c.create("gpt2", **SMALL)
    x, y = batch(m, 2, 8)
    plain = m.forward(x, y)
    assert m.forward(x, y, keep=True) == pytest.approx(plain, rel=1e-6)
    cfg = {
        name: getattr(m.config, name)
        for name in ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")
    }
    expected = ref.gpt2_forward({name: m.params[name] for name in m.params}, cfg, x, y)[2]
    for name in ("ln1", "qkv", "atty", "preatt", "att", "attproj", "residual2", "ln2", "fch", "fch_gelu", "fcproj", "residual3"):
        np.testing.assert_allclose(m.acts[f"1.{name}"], expected["layers"][1][name], atol=2e-6, err_msg=name)
    np.testing.assert_allclose(m.acts["0.att"].sum(-1), 1, rtol=1e-6)
    m.backward()
    np.testing.assert_allclose(m.acts["logits"][..., :97], expected["logits"][..., :97], atol=2e-6)


def test_parameters_are_one_writable_block_in_file_order():
    m = gpt2c.create("gpt2", **SMALL)
    assert m.num_parameters == m.params.flat.size == sum(m.params[name].size for name in m.params)
    assert np.concatenate([m.params[name].ravel() for name in m.params]).tobytes() == m.params.flat.tobytes()
    x, y = batch(m, 1, 4)
    before = m.forward(x, y)
    m.params["lnfb"][...] += 1
    assert m.forward(x, y) != before
    assert m.params.flat.ctypes.data % 64 == 0


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="the system has no huge pages")
def test_large_arrays_are_of_the_kind_that_systems_grant_huge_pages():
    array, mapping = aligned(LARGE), None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line):
            first, last = int(span[1], 16), int(span[2], 16)
            mapping = span[3] if first <= array.ctypes.data < last else None
        elif mapping and line.startswith("VmFlags:"):
            assert mapping.endswith("p") and "hg" in line.split()  # private, and advised so
            return
    pytest.fail("the array lies in no mapping")


def test_initial_weights_are_gpt2_s():
    m = gpt2c.create("gpt2", **SMALL | dict(channels=192))
    assert m.params["fcw"].std() == pytest.approx(0.02, rel=0.02)
    assert m.params["fcprojw"].std() == pytest.approx(0.02 / 4**0.5, rel=0.02)  # 2 layers: sqrt(2 L) = 2
    assert not m.params["wte"][97:].any() and m.params["wte"][:97].all()
    assert (m.params["ln1w"] == 1).all() and not m.params["qkvb"].any()
    same, other = gpt2c.create("gpt2", **SMALL), gpt2c.create("gpt2", **SMALL, seed=2)
    assert (same.params.flat == gpt2c.create("gpt2", **SMALL).params.flat).all()
    assert (same.params.flat != other.params.flat).any()


def test_memory_is_planned_exactly_and_without_allocating():
    m = Model("gpt2", make_config("gpt2", dict(num_layers=48, channels=1600, num_heads=25)))  # 1.6 billion parameters
    memory = m.memory(4, 1024)
    assert memory["Adam moments"] == 2 * memory["parameters"] == 8 * m.num_parameters
    assert not m.params.allocated
    m = gpt2c.create("gpt2", **SMALL)
    m.loss_and_grad(*batch(m, 2, 64))
    assert m._runner._slab.nbytes == m.memory(2, 64)["activations"]


def test_a_larger_batch_takes_the_place_of_a_smaller_one():
    m = gpt2c.create("gpt2", **SMALL)
    m.forward(*batch(m, 2, 16))
    slab = weakref.ref(m._runner._slab)
    m.forward(*batch(m, 2, 64))
    assert slab() is None  # all that was recorded for it is gone


def test_too_little_memory_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr("gpt2c.support.machine.available_memory", lambda: 10**6)
    with pytest.raises(gpt2c.ResourceError, match=r"needs 497.9 MB of memory and 1.0 MB are available"):
        gpt2c.create("gpt2")
    m = gpt2c.create("gpt2", **SMALL)
    with pytest.raises(gpt2c.ResourceError, match="a batch of 64 x 64 tokens needs"):
        m.forward(*batch(m, 64, 64))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.forward([[97]]), "inputs hold ids from 97 to 97, expected 0 to 96"),
        (lambda m: m.forward([[0]], [[-2]]), "targets hold ids from -2 to -2, expected -1 to 96"),
        (lambda m: m.forward([[0, 1]], [[0]]), r"targets have shape \(1, 1\), expected \(1, 2\)"),
        (lambda m: m.forward([0, 1]), r"inputs are int64 of shape \(2,\), expected whole numbers of shape \(B, T\)"),
        (lambda m: m.forward(np.zeros((1, 65), int)), "inputs have 65 positions, the model has max_seq_len = 64"),
        (lambda m: m.backward(), "backward needs a forward with targets"),
        (lambda m: m.update(t=0), "t is 0, the first update has t = 1"),
        (lambda m: m.acts, "keep=True"),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(UsageError, match=message):
        call(gpt2c.create("gpt2", **SMALL))


def test_backward_twice_is_refused():
    m = gpt2c.create("gpt2", **SMALL)
    gradients(m, *batch(m, 1, 4))
    with pytest.raises(UsageError, match="each forward is good for one"):
        m.backward()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(channels=50, num_heads=3), r"channels \(50\) must be a multiple of num_heads \(3\)"),
        (dict(num_layers=0), "num_layers is 0, expected at least 1"),
        (dict(vocab_size=97, padded_vocab_size=96), r"padded_vocab_size \(96\) is below vocab_size \(97\)"),
        (dict(num_layer=2), "no field 'num_layer'; did you mean num_layers"),
    ],
)
def test_impossible_configurations_are_explained(fields, message):
    with pytest.raises(UsageError, match=message):
        gpt2c.create("gpt2", **fields)


def test_the_program_reads_like_llm_c(golden_file):
    m = gpt2c.create("gpt2", num_layers=1, channels=8, num_heads=2, vocab_size=11, max_seq_len=4)
    golden_file("gpt2_program.txt", str(m.program(B=2, T=4)))
