"""Generating text: the cache against the full forward, the choice of tokens, the program."""

import os
import re
import subprocess

import numpy as np
import pytest
from decoding import decoded
from programs import call, command

import gpt2c
from gpt2c.__main__ import VERBS
from gpt2c.errors import UsageError
from gpt2c.generation.decoder import choose
from gpt2c.generation.slots import Slots
from gpt2c.support.rng import Xorshift
from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

SMALL = dict(num_layers=2, channels=48, num_heads=3, vocab_size=257, max_seq_len=32)


@pytest.fixture
def model():
    m = gpt2c.create("gpt2", **SMALL)
    m.params.flat[:] *= 10  # far from uniform
    return m


def full_logits(m, ids):
    m.forward([ids])
    return m.logits[0, -1, : m.config.vocab_size].copy()


@pytest.mark.parametrize("prompt, piece", [(20, 512), (1, 512), (20, 1), (9, 7)])
def test_cached_logits_are_those_of_the_full_forward(model, isa, prompt, piece):
    ids = np.random.default_rng(0).integers(0, 257, 20)
    for end, logits in enumerate(decoded(model, ids, prompt, piece), prompt):
        expected = full_logits(model, ids[:end])
        np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_a_full_context_goes_on_from_its_later_half(model):
    ids = list(range(32))
    slots = Slots(model)
    slots.read({0: ids})
    expected = full_logits(model, [*ids, 99][-16:])
    np.testing.assert_allclose(slots.step({0: [99]})[0][0], expected, atol=2e-5 * np.abs(expected).max())
    assert slots.length(0) == 16
    assert len(list(gpt2c.generate(model, [1], 100))) == 100


def test_greedy_takes_the_likeliest_and_the_lowest_id_on_ties(model):
    assert choose(np.array([1, 3, 3, 2], np.float32), Xorshift(1), temperature=0) == 1
    ids = [5]
    for new in gpt2c.generate(model, [5], 10, temperature=0):
        assert new == int(full_logits(model, ids).argmax())
        ids.append(new)


def llm_c_draw(logits, state):
    """llm.c's softmax, xorshift* and multinomial, written out one operation at a time."""
    p = [np.exp(np.float32(x - max(logits))) for x in logits]
    total = np.float32(0)
    for x in p:
        total += x
    state ^= state >> 12
    state ^= state << 25 & 2**64 - 1
    state ^= state >> 27
    coin, cdf = ((state * 0x2545F4914F6CDD1D >> 32 & 0xFFFFFFFF) >> 8) / 2**24, np.float32(0)
    for i, x in enumerate(p):
        cdf += x / total
        if coin < cdf:
            return i, state
    return len(p) - 1, state


def test_plain_sampling_is_llm_c_s():
    rng, state = Xorshift(1337), 1337
    logits = np.random.default_rng(2).standard_normal(500).astype(np.float32) * 3
    for _ in range(200):
        expected, state = llm_c_draw(logits, state)
        assert choose(logits, rng) == expected


def test_top_k_and_top_p_choose_among_the_likeliest():
    logits = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1], np.float32))

    def seen(**how):
        return {choose(logits, Xorshift(seed), **how) for seed in range(1, 300)}

    assert seen() == {0, 1, 2, 3, 4}
    assert seen(top_k=2) == {1, 2}
    assert seen(top_p=0.6) == {1, 2}
    assert seen(top_p=1e-9) == {1}
    assert seen(top_k=3, top_p=0.9) == {1, 2, 3}
    frequencies = np.bincount([choose(logits, Xorshift(7 * seed + 1), top_k=2) for seed in range(3000)], minlength=5)
    assert frequencies[1] / 3000 == pytest.approx(4 / 7, abs=0.03)


def test_low_temperature_sharpens(model):
    logits = np.array([0, 1], np.float32)
    share = np.mean([choose(logits, Xorshift(11 * s + 5), temperature=0.5) for s in range(3000)])
    assert share == pytest.approx(1 / (1 + np.exp(-2)), abs=0.03)


def test_the_seed_decides(model):
    def text(seed):
        return list(gpt2c.generate(model, [1, 2], 20, seed=seed))

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    "prompt, how, message",
    [
        ([], {}, "the prompt is empty"),
        ([257], {}, "ids from 257 to 257, expected 0 to 256"),
        ([1], dict(temperature=-1), "temperature is -1"),
        ([1], dict(top_p=0), "top_p is 0"),
        ([1], dict(seed=0), "seed is 0, expected a whole number from 1"),
    ],
)
def test_misuse_is_explained(model, prompt, how, message):
    with pytest.raises(UsageError, match=message):
        list(gpt2c.generate(model, prompt, 3, **how))


def test_generating_leaves_the_model_as_it_was(model):
    x = np.arange(8).reshape(1, 8)
    model.zero_grad()
    model.forward(x, x)
    list(gpt2c.generate(model, [1], 5))
    model.backward()  # of the forward before
    expected = model.grads.flat.copy()
    model.zero_grad()
    model.forward(x, x)
    model.backward()
    assert (model.grads.flat == expected).all()


def test_the_program_prints_the_text_alone(model, tmp_path):
    model.tokenizer = Tokenizer([*GPT2_BYTES, b"<|endoftext|>"], 256)
    path = tmp_path / "m.safetensors"
    model.save(path)
    done = call(".", "generate", path, "--prompt", "Once", "--max-new-tokens", 12, "--ignore-eot", "--temperature", 0)
    ids = list(gpt2c.generate(model, model.tokenizer.encode("Once"), 12, temperature=0))
    assert done.stderr == "" and done.stdout == "Once" + model.tokenizer.decode(ids) + "\n"


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["generate"], 2, "name a checkpoint"),
        (["generate", "missing.bin"], 4, "cannot read missing.bin"),
        (["generate", "missing.bin", "--top-p", "0"], 2, "--top-p is 0.0, expected more than 0 and at most 1"),
        (["generate", "missing.bin", "-n", "-3"], 2, "-n is -3, expected at least 0"),
        (["generate", "missing.bin", "--beams", "-1"], 2, "beams is -1, expected at least 0"),
        (["chat", "missing.bin", "-n", "0"], 2, "-n is 0, expected at least 1"),
        (["bench", "--seconds", "-1"], 2, "seconds is -1.0, expected at least 0"),
        (["generate", "x", "--temprature", "1"], 2, "unknown flag --temprature; did you mean --temperature?"),
        (["generat"], 2, "there is no verb 'generat'; did you mean generate"),
    ],
)
def test_program_errors_are_one_line(words, code, message):
    done = call(".", *words, code=code)
    assert message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize("words", [[], ["--version"], ["info"], ["train", "--help"], ["bench", "--help"]])
def test_nobody_need_read_all_that_is_printed(words):
    """As with | head: the reader has gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command(*words), stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_words_what_to_begin_with_and_the_verbs_are_listed():
    done = call(".")
    assert "\n  gpt2c train  " in done.stdout and "docs/" in done.stdout
    assert re.findall(r"^  ([a-z-]+) ", done.stdout.partition("usage:")[2], re.MULTILINE) == list(VERBS)
