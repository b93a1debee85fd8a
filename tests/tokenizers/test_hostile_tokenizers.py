"""Files with which the tokenizers library panics, which no `except Exception` catches, or takes the process down."""

import json
import subprocess
import sys

import pytest

from gpt2c.errors import TokenizationError
from gpt2c.tokenizers.tokenizer import Tokenizer

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "##b": 2, "ab": 3}, "merges": []}


def document(model=(), **parts):
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": []} | empty | {"model": BPE | dict(model)} | parts)


def pattern(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def test_a_merge_without_the_subword_prefix_is_refused_before_the_library_reads_beyond_it():
    """In another process, which that may take down."""
    prefixes = ["##", "#", "é", "日", "b####", "########"]
    texts = [
        document({"continuing_subword_prefix": prefix, "merges": [merge]}) for prefix in prefixes for merge in (["a", "b"], "a b")
    ]
    twice = json.dumps({"continuing_subword_prefix": "####", "merges": [["a", "b"]]} | BPE)
    texts.append(document().replace('"model":', f'"model": {twice[:-1]}, "merges": [["a", "b"]]}}, "model":'))
    program = f"""
from gpt2c.tokenizers.tokenizer import Tokenizer
for text in {texts!r}:
    try:
        print(Tokenizer.from_json(text))
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    why = "its merges join 'b', which does not begin with the prefix {!r} of subwords"
    said = f"the tokenizers library refuses this tokenizer.json: {why}"
    expected = [said.format(prefix) for prefix in prefixes for _ in range(2)]
    assert done.stdout.splitlines() == [*expected, "<gpt2c.Tokenizer bpe: 4 tokens>"] and not done.stderr


def test_a_subword_prefix_is_read_as_the_library_reads_it():
    made = Tokenizer.from_json(document({"continuing_subword_prefix": "##", "merges": [["a", "##b"]]}))
    assert made.encode("ab") == [3]
    assert Tokenizer.from_json(document({"continuing_subword_prefix": "", "merges": [["a", "b"]]})).encode("ab") == [3]


@pytest.mark.parametrize("merges", [[["a"]], [3], ["a"], [["a", 3]], 3, None, [[]], {"a": "b"}, ["a b c"], [["zz", "##zz"]]])
def test_merges_of_another_form_are_the_library_s_to_refuse(merges):
    with pytest.raises(TokenizationError, match="refuses this tokenizer.json") as caught:
        Tokenizer.from_json(document({"continuing_subword_prefix": "##", "merges": merges}))
    assert "\n" not in str(caught.value)


def test_a_panic_while_a_file_is_read_is_a_refusal():
    with pytest.raises(TokenizationError, match="refuses this tokenizer.json: Precompiled"):
        Tokenizer.from_json(document(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}))


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": pattern("(a|aa)+$")},  # tries ten million ways to match
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAAAAAA"}},
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_a_panic_while_a_text_is_encoded_is_a_refusal(parts, special):
    made = Tokenizer.from_json(document(**parts))
    with pytest.raises(TokenizationError, match="the text cannot be encoded: .*"):
        made.encode("a" * 50 + "b", special)


def test_a_panic_while_ids_are_decoded_is_a_refusal():
    made = Tokenizer.from_json(document(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 9}))
    with pytest.raises(TokenizationError, match="the ids cannot be decoded"):
        made.decode([0])
    with pytest.raises(TokenizationError, match="the ids cannot be decoded"):
        made.stream().push(0)


def test_pieces_that_are_bytes_in_a_vocabulary_of_characters():
    steps = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    lines = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False}
    model = {"vocab": {"a": 0, "<0xFF>": 1}}
    made = Tokenizer.from_json(document(model, pre_tokenizer=lines, decoder={"type": "Sequence", "decoders": steps}))
    assert made.tokens == [b"a", b"\xff"] and made.encode("a") == [0] and made.decode([1, 0]) == "\ufffda"


def test_a_refusal_is_one_sentence():
    with pytest.raises(TokenizationError) as caught:
        Tokenizer.from_json(document(decoder={"type": "two\nlines \x1b[2J"}))
    assert "\n" not in str(caught.value)


def test_an_interrupt_is_none():
    with pytest.raises(KeyboardInterrupt):
        from gpt2c.tokenizers.refusals import refusals

        with refusals("no"):
            raise KeyboardInterrupt
