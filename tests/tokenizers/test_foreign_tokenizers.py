"""The tokenizer files of rnn-rust and randyGPT: the ids are those that their own way of encoding gives."""

import json

import pytest

from gpt2c.errors import InputError
from gpt2c.tokenizers.tokenizer import Tokenizer

RNN_SPECIALS = {"<PAD>": 0, "<UNK>": 1, "<BOS>": 2, "<EOS>": 3}
RNN_PAIRS = [("t", "h"), ("th", "e"), ("e", " "), ("the", " "), ("\xc3", "\xa9"), ("l", "l"), ("\xf0", "\x9f")]
RANDY_PAIRS = [("t", "h"), ("th", "e"), (" ", "the"), ("é", "e"), ("l", "l")]
TEXT = "the then, he tells the tale\nthe end. aaa lll llll "


def rnn_rust():
    texts = [*RNN_SPECIALS, *map(chr, range(256)), *(a + b for a, b in RNN_PAIRS)]
    id_of = {text: i for i, text in enumerate(texts)}
    vocab = [[i, text] for i, text in enumerate(texts)]
    return {
        "version": "1.0",
        "type": "BPE",
        "timestamp": "2025-01-01T00:00:00.000Z",
        "targetVocabSize": 512,
        "vocabSize": len(texts),
        "mergeCount": len(RNN_PAIRS),
        "specialTokens": RNN_SPECIALS,
        "merges": [[id_of[a], id_of[b]] for a, b in RNN_PAIRS],
        "vocab": vocab[::-1],
    }  # in no order, as there


def randygpt():
    characters = sorted(set(TEXT) | set("é日"))
    return {"vocab": ["<|bos|>", "<|eos|>", *characters, *(a + b for a, b in RANDY_PAIRS)], "merges": RANDY_PAIRS}


def replay(pieces, pairs):
    """Each merge in order, over the whole text from left to right."""
    for a, b in pairs:
        done = []
        for piece in pieces:
            if done and done[-1] == a and piece == b:
                done[-1] = a + b + "\0"  # marked: what was just merged does not merge again in this pass
            else:
                done.append(piece)
        pieces = [piece.rstrip("\0") if piece != "\0" else piece for piece in done]
    return pieces


@pytest.fixture
def load(tmp_path):
    def load(document):
        path = tmp_path / "any name"
        path.write_text(json.dumps(document), encoding="utf-8")
        return Tokenizer.load(path)

    return load


@pytest.mark.parametrize("text", [TEXT, "日本 😀", "<PAD> <EOS>", ""])
def test_rnn_rust_ids(load, text):
    made = load(rnn_rust())
    id_of = {string: i for i, string in rnn_rust()["vocab"]}
    pieces = replay(list(text.encode().decode("latin-1")), RNN_PAIRS)
    assert made.encode(text) == [id_of[piece] for piece in pieces]
    assert made.decode(made.encode(text)) == text
    assert (made.kind, made.vocab_size, made.bos, made.eot) == ("bpe", 267, 2, 3)


def test_rnn_rust_reads_every_text_as_utf8(load):
    made = load(rnn_rust())
    assert made.encode("é") == [260 + RNN_PAIRS.index(("\xc3", "\xa9"))]
    assert made.decode(made.encode("naïve é ÿ")) == "naïve é ÿ"


@pytest.mark.parametrize("text", [TEXT, "ée é\n\nthe", "", "\nthe\n"])
def test_randygpt_ids(load, text):
    made = load(randygpt())
    id_of = {string: i for i, string in enumerate(randygpt()["vocab"])}
    wanted = []
    for n, line in enumerate(text.split("\n")):
        wanted += [id_of["\n"]] * (n > 0) + [id_of[piece] for piece in replay(list(line), RANDY_PAIRS)]
    assert made.encode(text) == wanted
    assert made.decode(wanted) == text
    assert (made.kind, made.bos, made.eot) == ("bpe", 0, 1)


def test_randygpt_names_a_character_it_lacks(load):
    with pytest.raises(InputError, match="'Z' at offset 4"):
        load(randygpt()).encode("the Z")


@pytest.mark.parametrize("document", [rnn_rust(), randygpt()], ids=["rnn-rust", "randyGPT"])
def test_they_survive_as_tokenizer_json(load, document):
    made = load(document)
    again = Tokenizer.from_json(made.to_json())
    assert again.encode(TEXT) == made.encode(TEXT) and again.tokens == made.tokens
    assert (again.kind, again.bos, again.eot) == (made.kind, made.bos, made.eot)
    stream = again.stream()
    assert "".join(map(stream.push, again.encode("the 日"))) == "the 日"


def broken(document, **changes):
    return document() | changes


@pytest.mark.parametrize(
    "document",
    [
        broken(rnn_rust, merges=[[4, 99999]]),
        broken(rnn_rust, merges=[[4]]),
        broken(rnn_rust, vocab=[[0, "a"], [2, "b"]]),
        broken(rnn_rust, vocab=[[0, "日"]]),
        broken(rnn_rust, vocab=[["a"]]),
        broken(rnn_rust, specialTokens=3),
        broken(rnn_rust, specialTokens=None),
        broken(randygpt, vocab=["a", "a"]),
        broken(randygpt, vocab=["a", 3]),
        broken(randygpt, merges=[["a", "zz"]]),
        broken(randygpt, merges=[["a"]]),
        broken(randygpt, merges=None),
        broken(rnn_rust, merges=[[4, 5]]),
        {"vocab": []},
        [],
        {},
    ],
)
def test_broken_files_are_refused(load, document):
    with pytest.raises(InputError):
        load(document)
