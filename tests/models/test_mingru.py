"""The minimal GRU against PyTorch, and what every recurrent family promises: state, windows, generation without end."""

from pathlib import Path

import numpy as np
import pytest
from decoding import decoded

import gpt2c
from gpt2c.data import Lanes, write_shard
from gpt2c.errors import UsageError
from gpt2c.models.files import load_run
from gpt2c.models.model import Model
from gpt2c.models.registry import make_config
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

GOLDENS = ["mingru_curve", "mingru_one_token", "mingru_ignored"]
SMALL = dict(vocab_size=61, dim=48, depth=2)


def load(name):
    """{cfg, params, grads1, ...: {name: array}, tokens, targets, loss, logits, h}"""
    golden = {}
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as file:
        for key in file.files:
            group, _, tensor = key.partition("/")
            if tensor:
                golden.setdefault(group, {})[tensor] = file[key]
            else:
                golden[key] = file[key]
    golden["cfg"] = {field: value.item() for field, value in golden["cfg"].items()}
    return golden


def golden_model(golden, **switches):
    m = Model("mingru", make_config("mingru", golden["cfg"]), **switches)
    assert set(m.params) == set(golden["params"])
    for name in m.params:
        m.params[name][...] = golden["params"][name]
    return m


def text(B, T, seed=0):
    """(inputs, targets) of a random text, a row a lane."""
    tokens = np.random.default_rng(seed).integers(SMALL["vocab_size"], size=(B, T + 1), dtype=np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def chunks(x, y, size):
    return [(x[:, i : i + size], y[:, i : i + size]) for i in range(0, x.shape[1], size)]


def gradients(m, x, y, **forward):
    m.zero_grad()
    loss = m.forward(x, y, **forward)
    m.backward()
    return loss, m.grads.flat.copy()


def pass_over(parts, old):
    """(inputs, targets) of one pass over these chunks, of which so many are old."""
    x, y = (np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1))
    y[:, : sum(part[0].shape[1] for part in parts[:old])] = -1
    return x, y


@pytest.mark.parametrize("name", GOLDENS)
def test_chunks_windows_and_the_carried_state_are_pytorch_s(name, isa):
    golden = load(name)
    parts = list(zip(golden["tokens"], golden["targets"]))
    states = [np.zeros_like(golden["h"][0]), *golden["h"]]
    for window in range(1, len(parts) + 1):
        m = golden_model(golden)
        for chunk in range(len(parts)):
            first = max(0, chunk + 1 - window)
            m.state = {"h": states[first]}
            loss, _ = gradients(m, *pass_over(parts[first : chunk + 1], chunk - first))
            assert loss == pytest.approx(golden["loss"][chunk], rel=1e-5)
            np.testing.assert_allclose(m.state["h"], golden["h"][chunk], rtol=1e-4, atol=1e-5)
            for tensor, expected in golden[f"grads{window}"].items():
                distance = np.linalg.norm(m.grads[tensor] - expected[chunk])
                assert distance <= 1e-4 * np.linalg.norm(expected[chunk]), (window, chunk, tensor)
        m.reset_state()
        m.forward(golden["tokens"][0], golden["targets"][0])
        np.testing.assert_allclose(m.logits, golden["logits"][0], rtol=1e-4, atol=1e-5)


def test_ten_updates_follow_pytorch_s_adamw(isa):
    golden = load("mingru_curve")
    m, losses = golden_model(golden), []
    for t in range(1, 11):
        m.reset_state()
        losses.append(m.loss_and_grad(golden["tokens"][0], golden["targets"][0]))
        m.update(lr=1e-3, weight_decay=0.01, t=t)
    np.testing.assert_allclose(losses, golden["curve"], rtol=1e-4)


def test_every_way_to_run_gives_the_same_bits():
    results = []
    for way in (
        {},
        {"record": False, "poison": True},
        {"reuse": False},
        {"recompute": 1},
        {"recompute": 2},
        {"record": False, "poison": True, "recompute": 2},
    ):
        m = Model("mingru", make_config("mingru", SMALL), **way).initialise(3)
        steps = [gradients(m, x, y) for x, y in chunks(*text(3, 36), 12)]
        results.append([(loss, grads.tobytes(), m.state["h"].tobytes()) for loss, grads in steps])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_any_number_of_threads_gives_the_same_bits(isa, recompute):
    results = []
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        m = gpt2c.create("mingru", **SMALL)
        m.recompute = recompute
        steps = [gradients(m, x, y) for x, y in chunks(*text(5, 96), 32)]
        results.append([(loss, grads.tobytes()) for loss, grads in steps])
    assert results[0] == results[1] == results[2]


def test_what_lies_before_the_state_was_set_is_out_of_reach():
    """A state is a constant: a pass depends on what is in it, and not on how it came about."""
    parts = chunks(*text(2, 24), 12)
    m = gpt2c.create("mingru", **SMALL)
    gradients(m, *parts[0])
    carried = m.state["h"].copy()
    constant = gradients(m, *parts[1])[1]
    m.state = {"h": carried}
    assert (gradients(m, *parts[1])[1] == constant).all()
    m.reset_state()
    m.forward(parts[0][0])  # nor what was read without targets
    assert (gradients(m, *parts[1])[1] == constant).all()


def test_the_state_is_an_array_that_can_be_read_and_set():
    x, y = text(3, 20)
    m = gpt2c.create("mingru", **SMALL)
    first = m.forward(x, y)
    assert m.state["h"].shape == (2, 3, 72)
    saved = {"h": m.state["h"].copy()}
    second = m.forward(x, y)
    assert second != first and m.evaluate(x, y) != second
    m.state = saved
    assert m.forward(x, y) == second
    m.reset_state()
    assert not m.state["h"].any() and m.forward(x, y) == first
    m.forward(x[:1], y[:1])  # another number of lanes starts from zero
    assert m.state["h"].shape == (2, 1, 72)
    with pytest.raises(UsageError, match=r"the state has h \(2, 3, 5\), expected h \(2, 3, 72\)"):
        m.state = {"h": np.zeros((2, 3, 5), np.float32)}


def test_old_positions_have_no_targets():
    x, y = text(1, 4)
    with pytest.raises(UsageError, match="targets before position 2, where the new ones begin, are not all -1"):
        gpt2c.create("mingru", **SMALL).forward(x, y, first=2)


def test_memory_grows_with_the_window_and_not_with_the_context():
    m = gpt2c.create("mingru", **SMALL)
    planned = m.memory(2, 16, chunks=3)["activations"]
    for part in chunks(*text(2, 480), 48):
        m.loss_and_grad(*part, train=True)
    assert m._runner._slab.nbytes == planned > 2 * m.memory(2, 16)["activations"]


def test_decoding_is_the_full_forward_and_leaves_the_state_alone():
    m = gpt2c.create("mingru", **SMALL)
    ids = text(1, 40)[0]
    m.forward(ids[:, :5], ids[:, :5])
    before = m.state["h"].copy()
    got = decoded(m, ids[0], 30)
    generated = list(gpt2c.generate(m, ids[0], 5, temperature=0))
    assert (m.state["h"] == before).all()
    m.reset_state()
    m.forward(ids)
    np.testing.assert_allclose(got, m.logits[0, 29:], rtol=1e-3, atol=1e-5)
    assert generated[0] == m.logits[0, -1].argmax()


@pytest.mark.parametrize("chunk", [1, 7, 99])
def test_a_long_prompt_is_read_in_pieces_with_the_same_result(chunk):
    m = gpt2c.create("mingru", **SMALL)
    ids = text(1, 100)[0][0]
    np.testing.assert_allclose(decoded(m, ids, 100, chunk), decoded(m, ids, 100), rtol=1e-4, atol=1e-6)
    texts = [list(gpt2c.generate(m, ids, 50, seed=3, chunk=size)) for size in (chunk, 512)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 9


@pytest.mark.parametrize(
    "fields, message",
    [(dict(dim=0), "dim is 0"), (dict(depth=0), "depth is 0"), (dict(dim=2, expansion=0.3), r"dim \* expansion is 0")],
)
def test_shapes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UsageError, match=f"{message}, expected at least 1"):
        gpt2c.create("mingru", **fields)


def test_evaluating_leaves_what_training_carries(tmp_path):
    x, y = text(3, 24)
    m = gpt2c.create("mingru", **SMALL)
    m.forward(x, y)
    carried = m.state["h"].copy()
    zero = m.evaluate(x[:2], y[:2])
    assert m.evaluate(x[:2], y[:2], continues=True) != zero and m.evaluate(x[:2], y[:2]) == zero
    assert (m.state["h"] == carried).all()
    m.backward()


def lanes_trainer(path, seed=1337, **config):
    m = gpt2c.create("mingru", seed=seed, **SMALL)
    loader = Lanes(path, 4, 8, chunks=7)
    settings = dict(update_chunks=2, backprop_chunks=3, max_steps=9, val_every=4, val_steps=2, learning_rate=1e-2)
    val_loader = gpt2c.DataLoader(path, B=2, T=16)
    return Trainer(m, loader, val_loader, TrainConfig(**settings | config))


@pytest.fixture
def tokens(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.random.default_rng(0).integers(0, 61, 2000))
    return str(tmp_path / "x_train.bin")


def test_a_run_over_lanes_resumes_with_the_same_bits(tokens, tmp_path):
    straight = lanes_trainer(tokens)
    steps = list(straight)
    for at in range(1, 9):
        first = lanes_trainer(tokens)
        for _ in zip(range(at), first):
            pass
        first.save(tmp_path / "part.safetensors")
        model, run = load_run(tmp_path / "part.safetensors")
        fresh = lanes_trainer(tokens, seed=2)
        second = Trainer(model, fresh.loader, fresh.val_loader, fresh.config)
        second.restore(run)
        assert [step.loss for step in second] == [step.loss for step in steps[at:]], at
        assert (second.model.params.flat == straight.model.params.flat).all(), at


def test_more_chunks_per_update_do_not_raise_the_rate(tokens):
    """The gradient of an update is the mean of its chunks', so its norm does not grow with their number."""
    norms = {k1: next(iter(lanes_trainer(tokens, update_chunks=k1, backprop_chunks=1))).grad_norm for k1 in (1, 6)}
    assert norms[6] < 1.2 * norms[1]


def test_tokens_stand_for_chunks(tokens):
    by_tokens = lanes_trainer(tokens, update_tokens=9, update_chunks=1, backprop_tokens=24, backprop_chunks=1)
    assert [step.loss for step in by_tokens] == [step.loss for step in lanes_trainer(tokens)]
