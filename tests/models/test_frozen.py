"""Models whose weights are frozen and stored as files have them."""

import copy

import numpy as np
import pytest
from decoding import decoded

import gpt2c
from gpt2c import _core, settings
from gpt2c.engine.base import Base
from gpt2c.errors import UsageError
from gpt2c.formats import blocks
from gpt2c.formats.parts import converted, of_array, unread
from gpt2c.formats.weights import Weights
from gpt2c.generation.slots import Slots
from gpt2c.models.files import Content
from gpt2c.models.registry import family_named

KINDS = [kind for kind in blocks.WRITTEN if kind in _core.STORED]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    """Small, with rows of 32 numbers and a vocabulary that is no multiple of 16."""
    fields = dict(vocab_size=71, num_layers=2, channels=64, num_heads=4, max_seq_len=48)
    more = dict(hidden=96, num_kv_heads=2, tied=False) if request.param == "llama" else {}
    return gpt2c.create(request.param, seed=3, **fields, **more)


def tokens(model, T=40):
    return np.random.default_rng(5).integers(model.config.vocab_size, size=(2, T), dtype=np.int32)


def same(a, b):
    """The same numbers; of zeros, blocks of integers do not keep the sign."""
    return np.array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_model_is_the_file_s_numbers_and_computes_as_with_them(model, kind, tmp_path, threads):
    path = tmp_path / "model.gguf"
    model.save(path, dtype=kind)
    trained, frozen = gpt2c.load(path), gpt2c.load(path, weights="stored")
    assert frozen.params.size == 0 and frozen.num_parameters == trained.num_parameters
    for name in trained.params:
        assert same(frozen.base[name].numbers(), trained.params[name]), name
    matrix = frozen.base["qkvw"]
    assert matrix.types == (kind,) and matrix.shape == trained.params["qkvw"].shape
    x = tokens(model)
    assert trained.forward(x, x) == frozen.forward(x, x)
    assert same(trained.logits, frozen.logits)  # the same product: only where its operand comes from differs
    assert frozen.evaluate(x, x) == trained.evaluate(x, x)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_step_by_step_is_reading(model, kind, tmp_path, isa):
    path = tmp_path / "model.gguf"
    model.save(path, dtype=kind)
    frozen, x = gpt2c.load(path, weights="stored"), tokens(model)[0]
    frozen.forward(x[None])
    full = frozen.logits[0, :, : model.config.vocab_size].copy()
    # 16 bits of x in each of 15 products
    np.testing.assert_allclose(decoded(frozen, x, 20), full[19:], atol=2e-4 * abs(full).max())


def test_weights_are_converted_as_they_are_asked_for(model, tmp_path):
    path = tmp_path / "model.gguf"
    model.save(path)
    for kind in KINDS:
        frozen = gpt2c.load(path, weights=kind)
        assert frozen.base["qkvw"].types == (kind,)
        assert frozen.base["wte"].types == ("q8_0" if kind.startswith("q4") else kind,)
        assert frozen.base["ln1w"].types == ("f32",)
        limit = {"f32": 0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01}.get(kind, 0.2)
        far = abs(frozen.base["qkvw"].numbers() - model.params["qkvw"]).max()
        assert far <= limit * abs(model.params["qkvw"]).max()
    with pytest.raises(UsageError, match="weights are to be 'q9_0', expected one of stored, f32"):
        gpt2c.load(path, weights="q9_0")


def test_nothing_of_it_is_trained(model, tmp_path):
    model.save(tmp_path / "model.gguf")
    frozen, x = gpt2c.load(tmp_path / "model.gguf", weights="stored"), tokens(model)
    frozen.forward(x, x)
    for attempt in (frozen.backward, frozen.update, lambda: frozen.loss_and_grad(x, x)):
        with pytest.raises(UsageError, match="all weights of this model are frozen"):
            attempt()
    with pytest.raises(ValueError, match="read-only"):
        frozen.base["wte"].numbers()[0] = 0


def test_copies_and_saved_files_have_the_same_numbers(model, tmp_path):
    model.save(tmp_path / "model.gguf", dtype="q8_0")
    frozen = gpt2c.load(tmp_path / "model.gguf", weights="stored")
    again = copy.deepcopy(frozen)
    frozen.save(tmp_path / "again.safetensors")
    saved = gpt2c.load(tmp_path / "again.safetensors")
    for name in frozen.base:
        assert same(again.base[name].numbers(), frozen.base[name].numbers())
        assert same(saved.params[name], frozen.base[name].numbers())


def test_the_parts_of_a_matrix_may_be_stored_differently(threads):
    """As in files of llama.cpp's mixtures, where values have more bits than queries and keys."""
    model = gpt2c.create(
        "llama", vocab_size=50, num_layers=2, channels=64, num_heads=2, num_kv_heads=1, hidden=64, max_seq_len=32
    )
    tensors = dict(model.params)
    kinds = [["q4_0", "q8_0", "f32"], ["q4_1", "q4_1", "bf16"]]
    parts = []
    for layer, of_layer in zip(model.params["qkvw"], kinds):
        for rows, kind in zip(np.split(layer, [64, 96]), of_layer):
            parts.append(converted("qkvw", of_array(np.ascontiguousarray(rows)), kind))
    tensors["qkvw"] = unread(model.params["qkvw"].shape, parts)
    fields = {name: getattr(model.config, name) for name in model.config.__dataclass_fields__}

    def built(**how):
        return Content("", model.config, Weights("llama", fields, dict(tensors))).build(**how)[0]

    frozen, trained = built(weights="stored"), built()
    assert set(frozen.base["qkvw"].types) == {"q4_0", "q8_0", "f32", "q4_1", "bf16"}
    x = np.arange(30, dtype=np.int32)[None]
    frozen.forward(x)
    trained.forward(x)
    assert same(frozen.logits, trained.logits)
    np.testing.assert_allclose(decoded(frozen, x[0], 10), trained.logits[0, 9:], atol=1e-4)


def test_a_sequence_gets_the_same_logits_in_any_company(model, tmp_path):
    model.save(tmp_path / "model.gguf", dtype="q4_0")
    frozen = gpt2c.load(tmp_path / "model.gguf", weights="stored")
    texts = [np.random.default_rng(n).integers(0, 30, 20 + n).tolist() for n in range(11)]
    alone = [decoded(frozen, text, 5 + n) for n, text in enumerate(texts)]  # 16 logits each
    settings.set_num_threads(1)
    slots = Slots(frozen, 11)
    rows = slots.read({n: text[: 5 + n] for n, text in enumerate(texts)})
    for step in range(16):
        assert all((rows[n] == alone[n][step]).all() for n in range(11))
        if step < 15:
            rows = {n: row[0] for n, row in slots.step({n: [text[5 + n + step]] for n, text in enumerate(texts)}).items()}


def test_memory_is_that_of_the_stored_types():
    specs = family_named("llama").params(gpt2c.create("llama", channels=64, num_heads=2, hidden=64).config)
    types = {"qkvw": [[(192, "q4_0")]] * 4}
    base = Base(specs, types)
    assert base["qkvw"].nbytes == 4 * 192 * 36  # two blocks of 18 bytes a row
    assert base.nbytes < 4 * base.size
