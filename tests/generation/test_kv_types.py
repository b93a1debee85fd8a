"""KV caches in fewer bits: what a text says is nearly the same, and all that holds of slots holds with them."""

import numpy as np
import pytest
from families import FAMILIES, model_of

import gpt2c
from gpt2c._core import CACHED, row_bytes
from gpt2c.commands.eval import EvalConfig, measure
from gpt2c.data import write_shard
from gpt2c.engine.runner import Runner
from gpt2c.errors import ResourceError, UsageError
from gpt2c.generation.slots import Slots

WIDE = dict(channels=64, num_heads=2)  # heads of 32
kinds = pytest.mark.parametrize("kv", CACHED)
transformers = pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mingru", "hybrid")])


def lively(family):
    model = model_of(family, **WIDE)
    model.params.flat[...] *= 2
    return model


def text(count, seed=0):
    return np.random.default_rng(seed).integers(0, 27, count).tolist()


def logits(model, kv, ids, prompt, beside=(), piece=8):
    """After the prompt and each later token, with other texts beside it."""
    slots = Slots(model, 1 + len(beside), piece=piece, kv=kv)
    rows = [slots.read({0: ids[:prompt], **{n: other for n, other in enumerate(beside, 1)}})[0]]
    for id in ids[prompt:]:
        rows.append(slots.step({n: [id] for n in range(slots.count)})[0][0].copy())
    return np.array(rows)


@kinds
@transformers
def test_a_sequence_has_its_own_bits(family, kv):
    model, ids = lively(family), text(40)
    alone = logits(model, kv, ids, 20)
    gpt2c.set_num_threads(3)
    np.testing.assert_array_equal(logits(model, kv, ids, 20, [text(7, 1), text(19, 2), text(1, 3)]), alone)


@transformers
def test_what_is_said_is_nearly_the_same(family):
    """Off by little of what logits differ among each other, and by the less the finer the type: so each is really used."""
    model, ids = lively(family), text(40)
    exact = logits(model, "f32", ids, 20)
    off = [(logits(model, kv, ids, 20) - exact).std() / exact.std() for kv in ("f16", "bf16", "q8_0")]
    assert 0 < 2 * off[0] < off[1] < off[2] / 2 < 0.05


@kinds
@transformers
def test_generation_is_the_same_alone_in_a_batch_and_with_guesses(family, kv):
    model, prompts = lively(family), [[1, 2, 3, 1, 2, 3], [4, 5]]
    alone = [list(gpt2c.generate(model, prompt, 40, seed=seed, kv=kv)) for prompt, seed in zip(prompts, (5, 6))]
    assert gpt2c.generate_batch(model, prompts, 40, seeds=[5, 6], kv=kv) == alone
    assert list(gpt2c.generate(model, prompts[0], 40, seed=5, kv=kv, speculate=5)) == alone[0]


@kinds
def test_memory_is_planned_before_it_is_taken(kv, monkeypatch):
    model = model_of("llama", channels=128, num_heads=4, num_kv_heads=2)
    expected = 2 * 2 * 3 * 50 * 2 * row_bytes(kv, 32)  # keys and values, layers, slots, positions, heads
    runner = Runner(model, slots=3, context=50, kv=kv)
    assert runner.cache_bytes() == expected and not runner.caches
    slots = Slots(model, 3, 50, kv=kv)
    slots.read({1: text(9)})
    assert sum(cache.nbytes for cache in slots._runner.caches.values()) == expected
    monkeypatch.setattr("gpt2c.support.machine.available_memory", lambda: expected - 1)
    with pytest.raises(ResourceError, match="a KV cache of 3 x 50 tokens needs .* --kv"):
        Slots(model, 3, 50, kv=kv)


def test_the_cache_has_few_bits_where_the_weights_do(tmp_path):
    model = model_of("llama", channels=64, num_heads=2, num_kv_heads=2, hidden=64)
    for kind, kv in ("f32", "f32"), ("bf16", "f16"), ("q8_0", "f16"):
        model.save(tmp_path / f"{kind}.gguf", dtype=kind)
        frozen = gpt2c.load(tmp_path / f"{kind}.gguf", weights="stored")
        assert Slots(frozen).kv == kv and Slots(frozen, kv="q8_0").kv == "q8_0"
    assert Slots(model).kv == "f32"


def test_types_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="a KV cache in q8_0 needs heads of a multiple of 32 numbers, found 16"):
        Slots(model_of("gpt2"), kv="q8_0")
    with pytest.raises(UsageError, match="kv is 'q4_0', expected f32, bf16, f16, q8_0"):
        Slots(model_of("gpt2"), kv="q4_0")


@kinds
def test_the_loss_of_a_text_with_each_type(kv, tmp_path):
    model = lively("llama")
    write_shard(tmp_path / "a.bin", text(200))
    how = EvalConfig(batch_size=2, decode=True)
    losses = [float(measure(model, [tmp_path / "a.bin"], None, how, 50, kind).split()[1]) for kind in ("f32", kv)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
