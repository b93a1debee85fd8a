"""llama.cpp on the files that gpt2c writes: the same losses, greedy tokens and ids, where GPT2C_JUDGE names a Python with
xllamacpp. They are compared with those of gpt2c's model of the same file, in float32."""

import functools
import random

import numpy as np
import pytest
from judge import asked
from real_models import golden
from texts import random_text, stories_tokenizer

import gpt2c
from gpt2c import formats
from gpt2c.data import read_shard
from gpt2c.errors import TokenizationError
from gpt2c.formats import blocks
from gpt2c.models import files
from gpt2c.tokenizers.tokenizer import Tokenizer

TOKENS = 2000
EVERY = 5  # tokens: of SmolLM2, which takes some 50 ms to tell one, all are read, and of these the losses are compared
ARCHITECTURES = {"gpt2": {}, "llama": {}, "qwen2": {"qkv_bias": True, "tied": False}, "qwen3": {"qk_norm": True, "head_dim": 32}}


@functools.cache
def stories():
    stories = read_shard("data/stories_val.bin").tokens[:20_000].tolist()
    return stories_tokenizer().decode(stories).replace("<|endoftext|>", "\n")


@functools.cache
def trained(architecture):
    """A tiny model that has learned letters and short words, so that it has clear predictions."""
    sizes = dict(vocab_size=257, max_seq_len=TOKENS + 48, num_layers=2, num_heads=4, channels=64)
    if architecture != "gpt2":
        sizes |= dict(hidden=128, num_kv_heads=2)
    model = gpt2c.create(architecture.replace("qwen2", "llama").replace("qwen3", "llama"), **sizes, **ARCHITECTURES[architecture])
    model.tokenizer = Tokenizer.make("byte", specials=("<|endoftext|>",))
    ids = np.array(model.tokenizer.encode(stories()[8000:]))
    rng = np.random.default_rng(0)
    for step in range(1, 301):
        at = rng.integers(0, ids.size - 129, (8, 1)) + np.arange(129)
        model.loss_and_grad(ids[at[:, :-1]], ids[at[:, 1:]])
        model.update(lr=3e-3 * (1 - step / 301), t=step)
    return model


def losses(model, ids):
    """The loss of each token but the first."""
    model.forward(np.array([ids[:-1]]))
    logits = model.logits[0, :, : model.config.vocab_size].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def most_likely(model, ids, count):
    for _ in range(count):
        model.forward(np.array([ids]))
        ids = [*ids, int(model.logits[0, -1, : model.known_ids].argmax())]
    return ids[-count:]


@pytest.mark.parametrize("dtype", blocks.WRITTEN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_finds_the_loss_of_every_type(architecture, dtype, tmp_path):
    """It rounds activations to 8 bits where weights are blocks of integers."""
    trained(architecture).save(tmp_path / "x.gguf", dtype=dtype)
    model = gpt2c.load(tmp_path / "x.gguf")
    ids = model.tokenizer.encode(stories())[: TOKENS + 1]
    mine, goes_on = losses(model, ids), [ids[:40], 20]
    found = asked("llama_cpp", path=str(tmp_path / "x.gguf"), losses=[ids, mine.tolist(), 1], goes_on=goes_on)
    assert np.mean(found["losses"]) == pytest.approx(mine.mean(), rel=0.005 if dtype in ("f32", "f16", "bf16") else 0.03)
    if dtype == "f32":
        assert found["goes_on"] == most_likely(model, *goes_on)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
def test_it_finds_the_loss_of_smollm2(dtype, smollm2, tmp_path):
    notes = formats.write(tmp_path / "x.gguf", files.read(smollm2).alone(), dtype=dtype)
    model, ids = gpt2c.load(tmp_path / "x.gguf"), golden("smollm2")["ids"]
    mine, goes_on = losses(model, ids), [ids[:40], 20]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    wanted = dict(losses=[ids, mine.tolist(), EVERY], goes_on=goes_on, messages=messages)
    found = asked("llama_cpp", path=str(tmp_path / "x.gguf"), **wanted)
    assert np.mean(found["losses"]) == pytest.approx(mine[EVERY - 1 :: EVERY].mean(), rel=0.03 if dtype == "q8_0" else 0.005)
    assert found["chat"] == model.tokenizer.chat(messages) and not any("tokenizer" in note for note in notes)
    if dtype == "f32":
        assert found["goes_on"] == most_likely(model, *goes_on)


def varied(count):
    """Texts of many kinds: hard ones, prose and pieces of it, numbers, code, several alphabets."""
    rng, prose = random.Random(0), stories() + golden("smollm2")["text"]
    source = open(__file__, encoding="utf-8").read()
    texts = [case["text"] for case in golden("hard_texts")["cases"]]
    alphabets = (
        "abc XYZ'",
        "0123456789.,- ",
        " \n\t\r",
        "éßñçüà ",
        "αβγδ ж щ ы",
        "中文日本語 かな",
        "🙂👍🏽 ❤️",
        "<|im_end|>",
        "!?()[]{}#*_=+",
    )
    while len(texts) < count:
        at, size = rng.randrange(len(prose) - 400), rng.randrange(1, 400)
        texts.append(prose[at : at + size])
        at = rng.randrange(len(source) - 400)
        texts.append(source[at : at + size])
        texts.append(random_text(rng.randrange(1, 80), rng.random(), rng.choice(alphabets)))
        texts.append("".join(random_text(rng.randrange(1, 9), rng.random(), alphabet) for alphabet in alphabets))
    return texts[:count]


def test_its_tokenizer_gives_the_same_ids(smollm2):
    """SmolLM2's vocabulary lacks some bytes, which llama.cpp leaves out and gpt2c refuses."""
    tokenizer, texts = files.read(smollm2).weights.tokenizer, varied(500)
    mine = []
    for text in texts:
        try:
            mine.append(tokenizer.encode(text))
        except TokenizationError as error:
            assert "is not in the vocabulary" in str(error)
            mine.append(None)
    theirs = asked("llama_cpp", path=str(smollm2), texts=texts)["ids"]
    assert [(text, ids, found) for text, ids, found in zip(texts, mine, theirs) if ids not in (None, found)] == []
    assert mine.count(None) < 50
