"""What GGUF files say of how a model is used: where texts and turns end, the chat template, how tokens are chosen."""

import numpy as np
import pytest
from hand_gguf import bytes_of
from test_gguf_models import changed, model

import gpt2c
from gpt2c import formats
from gpt2c.errors import SerializationError, UsageError
from gpt2c.tokenizers.conventions import conventions
from gpt2c.tokenizers.tokenizer import Tokenizer

BOS, EOS, TURN, TEXT = 256, 257, 258, 259
PRE = "tokenizer.ggml.pre"
SPECIALS = ("<|bos|>", "<stop>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture
def path(tmp_path):
    """A file, and in it nothing of what gpt2c alone writes."""
    made = model(Tokenizer.make("byte", specials=SPECIALS))
    made.save(tmp_path / "x.gguf")
    bare(tmp_path / "x.gguf", {})
    return tmp_path / "x.gguf"


def bare(path, found):
    """The file with these values instead, [type, value] by key."""
    own = ("gpt2c.", "tokenizer.ggml.bos", "tokenizer.ggml.eo", "tokenizer.ggml.add", "tokenizer.chat", "general.sampling.")

    def change(pairs, _):
        for key in [key for key in pairs if key.startswith(own)]:
            del pairs[key]
        pairs.update(found)

    changed(path, change)


def ids(**found):
    return {f"tokenizer.ggml.{name}_token_id": [4, id] for name, id in found.items()}


@pytest.mark.parametrize("found, said", [
    ({}, {"bos": None, "eot": TEXT, "ends": [TURN, TEXT]}),
    (ids(eos=EOS), {"ends": [EOS, TURN, TEXT]}),
    (ids(bos=BOS, eos=TURN), {"bos": BOS, "eot": TEXT, "ends": [TURN, TEXT]}),
    (ids(eos=TEXT, eot=EOS, eom=TURN), {"ends": [TEXT, EOS, TURN]}),
    ({"tokenizer.ggml.eos_token_id": [5, EOS]}, {"ends": [EOS, TURN, TEXT]}),
    (ids(bos=BOS) | {"tokenizer.ggml.add_bos_token": [7, True]}, {"bos": BOS, "adds_bos": True}),
    (ids(bos=BOS) | {PRE: [8, "llama-bpe"]}, {"adds_bos": True}),
    ({PRE: [8, "llama-bpe"]}, {"adds_bos": False}),
    (ids(bos=BOS) | {PRE: [8, "llama-bpe"], "tokenizer.ggml.add_bos_token": [7, False]}, {"adds_bos": False}),
    ({"tokenizer.chat_template": [8, "{{ 'é' }}"]}, {"template": "{{ 'é' }}"}),
    (ids(eos=EOS) | {"gpt2c.text_end": [9, [5, []]]}, {"eot": None, "ends": [EOS]}),
    (ids(eos=EOS) | {"gpt2c.text_end": [9, [5, [7]]], "gpt2c.ends": [9, [5, [8, 9]]]}, {"eot": 7, "ends": [EOS, 8, 9]}),
])  # fmt: skip
def test_what_other_programs_write_is_understood(found, said, path):
    """llama.cpp ends an answer at the three ends that have a key, and at tokens that it knows by name."""
    bare(path, found)
    known = conventions(gpt2c.load(path).tokenizer)
    assert known | said == known


@pytest.mark.parametrize("found, said", [
    (ids(eos=260), r"its tokenizer.ggml.eos_token_id is '260', expected an id below its 260 tokens"),
    (ids(bos=2**32 - 1), r"its tokenizer.ggml.bos_token_id is '4294967295'"),
    ({"tokenizer.ggml.eot_token_id": [5, -1]}, r"its tokenizer.ggml.eot_token_id is '-1'"),
    ({"tokenizer.ggml.eom_token_id": [8, "a\n"]}, r"its tokenizer.ggml.eom_token_id is 'a\\n'"),
    ({"tokenizer.ggml.eos_token_id": [7, True]}, r"its tokenizer.ggml.eos_token_id is 'True'"),
    ({"tokenizer.ggml.eos_token_id": [6, 5.0]}, r"its tokenizer.ggml.eos_token_id is '5.0'"),
    ({"gpt2c.text_end": [9, [5, [260]]]}, r"its gpt2c.text_end is "),
    ({"gpt2c.text_end": [9, [8, ["a"]]]}, r"its gpt2c.text_end is "),
    ({"gpt2c.text_end": [9, [5, []]], "gpt2c.ends": [9, [9, [(5, [1])]]]}, r"its gpt2c.ends is "),
    ({"tokenizer.ggml.add_bos_token": [7, True]}, "asks for a token before texts, and no bos_token_id says which"),
    (ids(bos=1) | {"tokenizer.ggml.add_bos_token": [4, 1]}, "its add_bos_token is no truth value"),
    ({"tokenizer.chat_template": [4, 1]}, "its chat template no text"),
    ({"tokenizer.chat_template": [9, [8, ["a"]]]}, "its chat template no text"),
    ({"general.sampling.temp": [6, -1.0]}, "that tokens are chosen by general.sampling.temp '-1.0', which cannot be"),
    ({"general.sampling.temp": [6, float("nan")]}, "general.sampling.temp 'nan'"),
    ({"general.sampling.top_p": [6, 1.5]}, "general.sampling.top_p '1.5'"),
    ({"general.sampling.top_k": [5, -1]}, "general.sampling.top_k '-1'"),
    ({"general.sampling.top_k": [9, [5, [1]]]}, r"general.sampling.top_k '\[1\]'"),
    ({"general.sampling.min_p": [8, "a\x1b[2J"]}, r"general.sampling.min_p 'a\\x1b"),
    ({"general.name": [9, [8, []]]}, "its general.name is "),
    ({"gpt2c.turns": [8, "3"]}, "its gpt2c.turns is '3'"),
])  # fmt: skip
def test_what_is_wrong_is_said(found, said, path):
    bare(path, found)
    with pytest.raises(SerializationError, match=said) as error:
        formats.read(path)
    assert str(error.value).isprintable()


def test_a_template_that_is_too_long_is_refused_where_it_is_needed(path):
    bare(path, {"tokenizer.chat_template": [8, " " * 50_001]})
    made = gpt2c.load(path)
    assert made.tokenizer.encode("a") == [97]
    with pytest.raises(gpt2c.errors.TokenizationError, match="the chat template has 50,001 characters"):
        made.tokenizer.chat([{"role": "user", "content": "a"}])


def test_the_keys_are_those_of_llama_cpp(tmp_path):
    made = model(Tokenizer.make("byte", specials=SPECIALS))
    made.sampling = {"temperature": 0.6, "top_k": 20.0, "top_p": 1e-50, "min_p": 0, "repetition_penalty": 1}
    tokenizer = made.tokenizer
    tokenizer.bos, tokenizer.adds_bos, tokenizer.ends, tokenizer.chat_template = BOS, True, [TURN, EOS, TEXT, 7], "{{ 1 }}"
    made.save(tmp_path / "x.gguf")
    _, said = bytes_of((tmp_path / "x.gguf").read_bytes())
    expected = {
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": TURN,
        "tokenizer.ggml.eot_token_id": EOS,
        "tokenizer.ggml.eom_token_id": TEXT,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ 1 }}",
        "gpt2c.ends": [5, [7]],
        "gpt2c.text_end": [5, [TEXT]],
        "general.sampling.temp": np.float32(0.6),
        "general.sampling.top_k": 20,
        "general.sampling.top_p": np.float32(1e-6),
        "general.sampling.min_p": 0.0,
        "general.sampling.penalty_repeat": 1.0,
    }
    assert {key: said[key] for key in expected} == expected


@pytest.mark.parametrize("sampling", [{"temperature": 1e39}, {"top_k": 2**32}])
def test_numbers_that_do_not_fit_are_said(sampling, tmp_path):
    made = model()
    made.sampling = sampling
    with pytest.raises(UsageError, match="general.sampling.* is .*, more than a GGUF file holds there"):
        made.save(tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())
