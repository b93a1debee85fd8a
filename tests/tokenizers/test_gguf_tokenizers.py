"""Tokenizers in GGUF's metadata: how each splits text, and that it comes back."""

import json

import numpy as np
import pytest

from gpt2c.tokenizers import gguf
from gpt2c.tokenizers.byte_level import visible
from gpt2c.tokenizers.tokenizer import BYTES, Tokenizer

TEXT = "It's  I'LL é日 12345 =1;\n\n  (ab)\t \r\n a"
PIECES = {  # what each split makes of the text, by the rules in words: llama.cpp's pre-tokenizers
    "gpt-2": ["It", "'s", " ", " I", "'", "LL", " é日", " 12345", " =", "1", ";", "\n\n ", " (", "ab", ")", "\t \r\n", " a"],
    "smollm": ["It", "'s", " ", " I", "'", "LL", " é日", " ", *"12345", " =", "1", ";", "\n\n ", " (", "ab", ")", "\t \r\n",
               " a"],
    "qwen2": ["It", "'s", " ", " I", "'LL", " é日", " ", *"12345", " =", "1", ";\n\n", " ", " (", "ab", ")", "\t \r\n", " a"],
    "llama-bpe": ["It", "'s", " ", " I", "'LL", " é日", " ", "123", "45", " =", "1", ";\n\n", " ", " (", "ab", ")", "\t \r\n",
                  " a"],
}  # fmt: skip


def metadata(split, tokens=(), merges=()):
    tokens = [visible(b) for b in BYTES] + list(tokens) + ["<|end|>", "<x>"]
    kinds = np.array([1] * (len(tokens) - 2) + [3, 4], np.int32)
    said = {"model": "gpt2", "pre": split, "tokens": tokens, "token_type": kinds, "merges": list(merges)}
    return {gguf.KEY + key: value for key, value in said.items()}


@pytest.mark.parametrize("split", gguf.SPLITS)
def test_text_is_split_as_the_name_says(split):
    pieces = gguf.SPLITS[split].pre_tokenize_str(TEXT)
    assert [TEXT[begin:end] for _, (begin, end) in pieces] == PIECES[split]


@pytest.mark.parametrize("split", gguf.SPLITS)
def test_a_tokenizer_comes_back(split):
    said = metadata(split, ["12", "ab", "abc"], ["1 2", "a b"])
    tokenizer, why = gguf.read(said, len(said[gguf.KEY + "tokens"]))
    again, none = gguf.metadata(tokenizer, tokenizer.vocab_size)
    assert not why and not none
    for key, value in said.items():
        np.testing.assert_array_equal(again[key], value)
    ids = tokenizer.encode("12abc<|end|> abc<x>")
    assert (256 in ids) == (split in ("gpt-2", "llama-bpe"))  # digits together
    assert (258 in ids) == (split == "llama-bpe")  # a whole piece that no merge gives
    assert ids[-1] == 260 and 259 not in ids and tokenizer.decode(ids) == "12abc<|end|> abc<x>"
    assert 259 in tokenizer.encode("<|end|>", allow_special=True)


@pytest.mark.parametrize("change, known", [
    (lambda d: d.update(normalizer={"type": "NFC"}), True),
    (lambda d: d.update(normalizer={"type": "Lowercase"}), False),
    (lambda d: d["model"].update(ignore_merges=True), False),
    (lambda d: d["model"].update(byte_fallback=True), False),
    (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), False),
    (lambda d: d["pre_tokenizer"].update(trim_offsets=False), True),
    (lambda d: d.update(pre_tokenizer=None), False),
])  # fmt: skip
def test_only_what_gguf_has_a_name_for_is_written(change, known):
    document = json.loads(Tokenizer.make("byte").to_json())
    change(document)
    said, why = gguf.metadata(Tokenizer.from_document(document), 256)
    assert (said[gguf.KEY + "model"] == "gpt2") == known == (not why)
