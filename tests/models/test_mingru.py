"""The minimal GRU against PyTorch, and what every recurrent family promises: state, windows, generation without end."""

from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c.data import Lanes, write_shard
from gpt2c.errors import UsageError
from gpt2c.generation.decoder import Decoder
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


@pytest.mark.parametrize("name", GOLDENS)
def test_chunks_windows_and_the_carried_state_are_pytorch_s(name, isa):
    golden = load(name)
    for window in range(1, len(golden["loss"]) + 1):
        m = golden_model(golden)
        for chunk, (x, y) in enumerate(zip(golden["tokens"], golden["targets"])):
            loss, _ = gradients(m, x, y, window=window)
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
        steps = [gradients(m, x, y, window=2) for x, y in chunks(*text(5, 96), 32)]
        results.append([(loss, grads.tobytes()) for loss, grads in steps])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("recompute", [0, 2])
def test_a_window_over_all_chunks_is_backpropagation_through_the_whole_text(recompute):
    """The mean of the chunks' losses is the loss of the whole, and so are their gradients."""
    x, y = text(2, 40)
    m = gpt2c.create("mingru", **SMALL)
    m.recompute = recompute
    whole, expected = gradients(m, x, y)
    h = m.state["h"].copy()
    m.reset_state()
    m.zero_grad()
    losses = []
    for part in chunks(x, y, 10):
        losses.append(m.forward(*part, window=4))
        m.backward()
    assert np.mean(losses) == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(m.state["h"], h, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(m.grads.flat / 4 - expected) <= 1e-5 * np.linalg.norm(expected)
    truncated = np.zeros_like(expected)
    m.reset_state()
    for part in chunks(x, y, 10):
        truncated += gradients(m, *part)[1] / 4
    assert np.linalg.norm(truncated - expected) > 1e-3 * np.linalg.norm(expected)  # which a window of 1 is not


def test_chunks_of_any_length_make_up_a_window():
    x, y = text(2, 30)
    y = y.copy()
    y[:, :20] = -1  # the loss is the last piece's alone
    m = gpt2c.create("mingru", **SMALL)
    expected = gradients(m, x, y)[1]
    m.reset_state()
    for first, last in ((0, 7), (7, 20), (20, 30)):
        grads = gradients(m, x[:, first:last], y[:, first:last], window=3)[1]
    assert np.linalg.norm(grads - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_lies_before_the_state_was_set_is_out_of_reach():
    parts = chunks(*text(2, 24), 12)
    m = gpt2c.create("mingru", **SMALL)
    gradients(m, *parts[0])
    carried = m.state["h"].copy()
    constant = gradients(m, *parts[1])[1]
    m.reset_state()
    m.forward(*parts[0], window=2)
    m.state = {"h": carried}
    assert (gradients(m, *parts[1], window=2)[1] == constant).all()
    m.reset_state()
    m.forward(parts[0][0])  # nor what was read without targets
    assert (gradients(m, *parts[1], window=2)[1] == constant).all()


def test_a_chunk_without_targets_ends_a_window():
    """Nothing flows back through it, so neither to the chunks before."""
    parts, results = list(chunks(*text(2, 30), 10)), []
    for window in 1, 3:
        m = gpt2c.create("mingru", **SMALL)
        m.forward(*parts[0], window=window)
        m.forward(parts[1][0], window=window)
        results.append(gradients(m, *parts[2], window=window)[1])
    np.testing.assert_array_equal(*results)


def test_an_update_inside_a_window_is_followed_by_the_new_parameters():
    """The older chunk keeps its activations; with unchanged parameters nothing would differ."""
    parts, results = chunks(*text(2, 24), 12), []
    for lr in (0.0, 1e-2):
        m = gpt2c.create("mingru", **SMALL)
        m.loss_and_grad(*parts[0], window=2)
        m.update(lr=lr)
        m.loss_and_grad(*parts[1], window=2)
        results.append(m.grads.flat.copy())
    m = gpt2c.create("mingru", **SMALL)
    m.forward(*parts[0], window=2)
    assert (gradients(m, *parts[1], window=2)[1] == results[0]).all()
    assert np.isfinite(results[1]).all() and (results[0] != results[1]).any()


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


def test_windows_are_refused_where_they_cannot_be():
    x, y = text(1, 4)
    with pytest.raises(UsageError, match="a window of 0 chunks"):
        gpt2c.create("mingru", **SMALL).forward(x, y, window=0)
    with pytest.raises(UsageError, match="records"):
        Model("mingru", make_config("mingru", SMALL), record=False).initialise(1).forward(x, y, window=2)


def test_memory_grows_with_the_window_and_not_with_the_context():
    m = gpt2c.create("mingru", **SMALL)
    planned = m.memory(2, 16, window=3)["activations"]
    for part in chunks(*text(2, 160), 16):
        m.loss_and_grad(*part, window=3, train=True)
    passes = [*m._runner._chain, *sum(m._runner._spare.values(), [])]
    assert len(passes) == 3 and sum(done.slab.nbytes for done in passes) == planned


def test_decoding_is_the_full_forward_and_leaves_the_state_alone():
    m = gpt2c.create("mingru", **SMALL)
    ids = text(1, 40)[0]
    m.forward(ids[:, :5], ids[:, :5])
    before = m.state["h"].copy()
    decoder = Decoder(m)
    got = np.array([decoder.feed(ids[0, :30]).copy()] + [decoder.feed([i]).copy() for i in ids[0, 30:]])
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
    np.testing.assert_allclose(Decoder(m, chunk=chunk).feed(ids), Decoder(m).feed(ids), rtol=1e-4, atol=1e-6)
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
    m.forward(x, y, window=2)
    carried = m.state["h"].copy()
    zero = m.evaluate(x[:2], y[:2])
    assert m.evaluate(x[:2], y[:2], continues=True) != zero and m.evaluate(x[:2], y[:2]) == zero
    assert (m.state["h"] == carried).all() and len(m._runner._chain) == 1
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
        second = lanes_trainer(tokens, seed=2)
        second.model = model
        second = Trainer(model, second.loader, second.val_loader, second.config)
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
