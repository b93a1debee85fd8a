"""The kinds of tokenizers that are made from text: what they encode, that nothing is lost, and that the tokenizers library
gives the same from their tokenizer.json."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2c.errors import InputError, UsageError
from gpt2c.tokenizers.tokenizer import KINDS, Tokenizer

tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[2]
TEXTS = [
    case["text"] for case in json.loads((ROOT / "tests" / "golden" / "hard_texts.json").read_text(encoding="utf-8"))["cases"]
]
PROSE = "the cat sat on the mat; the cat's hat was on the cat. it's 3.14 o'clock, isn't it? " * 20
SPECIALS = ("<|bos|>", "<|eos|>")
MADE = {
    "char": Tokenizer.make("char", TEXTS, specials=SPECIALS),
    "char with unk": Tokenizer.make("char", "abc \n", unk=True),
    "byte": Tokenizer.make("byte", specials=("<|endoftext|>",)),
    "word": Tokenizer.make("word", [PROSE, *TEXTS]),
    "bpe": Tokenizer.make("bpe", [PROSE, *TEXTS], vocab_size=400, specials=SPECIALS),
}
LOSSLESS = ("char", "byte", "bpe")


@pytest.fixture(params=MADE)
def made(request):
    return MADE[request.param]


def library_of(tokenizer):
    """The tokenizers library's own object, from the text of the tokenizer.json alone."""
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True  # special tokens in text are text, as in gpt2c
    return library


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    pushed = [stream.push(i) for i in ids]
    return pushed, "".join([*pushed, stream.flush()])


@pytest.mark.parametrize(
    "specials, bos, eot",
    [
        (["<unk>"], None, None),
        (["<s>"], "<s>", None),
        (["<end>"], None, "<end>"),
        (["<unk>", "<s>", "<end>"], "<s>", "<end>"),
        (["<end>", "<pad>"], None, None),
        (["<end>", "<eos>"], None, "<eos>"),
    ],
)
def test_which_special_tokens_begin_and_end_texts(specials, bos, eot):
    """Those with a name for it; a single other one ends texts, unless it stands for what is unknown."""
    ids = {token: id for id, token in enumerate(["a", *specials])}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    library.add_special_tokens(specials)
    made = Tokenizer.from_json(library.to_str())
    assert (made.bos, made.eot) == (ids.get(bos), ids.get(eot))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_library_gives_the_same_ids_and_text(made, text):
    library, ids = library_of(made), made.encode(text)
    assert library.encode(text, add_special_tokens=False).ids == ids
    assert library.decode(ids, skip_special_tokens=False) == made.decode(ids)
    array = made.encode_array(text)
    assert array.dtype == np.int32 and array.tolist() == ids
    assert streamed(made, ids)[1] == made.decode(ids)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_hard_texts_come_back(kind, text):
    assert MADE[kind].decode(MADE[kind].encode(text)) == text


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back(text):
    for made in (MADE["byte"], MADE["bpe"], Tokenizer.make("char", text + "x")):
        ids = made.encode(text)
        assert made.decode(ids) == text
        assert library_of(made).encode(text, add_special_tokens=False).ids == ids
        pushed, whole = streamed(made, ids)
        assert whole == text
        assert text or not any(pushed)


@given(st.text(alphabet=sorted(set("".join(TEXTS)))))
@settings(deadline=None)
def test_text_of_the_alphabet_comes_back(text):
    made = MADE["char"]
    ids = made.encode(text)
    assert made.decode(ids) == text and len(ids) == len(text)


@given(st.text())
@settings(deadline=None)
def test_streams_never_show_half_a_character(text):
    """After each id: what has been pushed is the longest beginning of the text that the ids have in full."""
    for made in (MADE["byte"], MADE["bpe"]):
        stream, shown, raw = made.stream(), "", b""
        for id in made.encode(text):
            shown += stream.push(id)
            raw += made.tokens[id]
            assert shown == raw.decode("utf-8", "ignore")  # a beginning of UTF-8: only the end can be missing


def test_words_stream_as_they_decode():
    rng = random.Random(2)
    made = MADE["word"]
    for _ in range(300):
        ids = [rng.randrange(made.vocab_size) for _ in range(20)] + made.encode("don't (it) 3.14 'x' it's")
        assert streamed(made, ids)[1] == made.decode(ids)


def test_kinds_survive_their_json(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    for again in (Tokenizer.from_json(made.to_json()), Tokenizer.load(tmp_path / "tokenizer.json")):
        assert (again.kind, again.tokens, again.eot, again.bos) == (made.kind, made.tokens, made.eot, made.bos)
        assert again.to_json() == made.to_json()
        assert again.encode("a cab\n") == made.encode("a cab\n")
    assert made.kind in KINDS


def test_the_same_text_in_chunks_gives_the_same_characters():
    assert Tokenizer.make("char", iter(["ab", "c a"])).to_json() == Tokenizer.make("char", "abc a").to_json()


def test_char_ids_are_in_order_of_code_point():
    made = Tokenizer.make("char", "ba😀\né", specials=SPECIALS)
    assert made.tokens == [b"\n", b"a", b"b", "é".encode(), "😀".encode(), b"<|bos|>", b"<|eos|>"]
    assert (made.encode("a😀"), made.bos, made.eot) == ([1, 4], 5, 6)


def test_an_unknown_character_is_named():
    with pytest.raises(InputError, match=r"'é' at offset 3"):
        Tokenizer.make("char", "abc").encode("abcé")
    made = MADE["char with unk"]
    assert made.encode("aéb") == [made.tokens.index(b"a"), made.tokens.index(b"<unk>"), made.tokens.index(b"b")]


def test_special_tokens_never_come_from_text():
    text = "<|bos|><|eos|> <|eos|></s> <unk><|endoftext|>"
    for name in ("char", "byte", "word", "bpe"):
        made, ids = MADE[name], MADE[name].encode(text)
        assert made.eot is not None and made.eot not in ids
        assert made.bos is None or made.bos not in ids
    made = MADE["char"]
    assert made.encode("a<|eos|>", allow_special=True) == [*made.encode("a"), made.eot]
    assert made.decode(made.encode("a<|eos|>")) == "a<|eos|>"
    assert MADE["byte"].encode("a<|endoftext|>", allow_special=True) == [97, 256]
    assert MADE["word"].encode("cat</s>", allow_special=True)[-1] == MADE["word"].eot


@pytest.mark.parametrize(
    "kind, special, found",
    [
        ("char", "<", "could be taken for text"),
        ("bpe", "ü!", "ASCII"),
        ("word", "cat", "already has"),
        ("char", "<unk>", "already has"),
        ("bpe", "he", "already has"),
    ],
)
def test_special_tokens_that_collide_are_refused(kind, special, found):
    options = {"unk": True} if kind == "char" else {}
    with pytest.raises(UsageError, match=found):
        Tokenizer.make(kind, "the cat, the he cat", specials=(special,), **options)


def test_a_foreign_special_character_is_not_text():
    """With "<" added as a special token, text that has it is unknown, in the library as in the table."""
    library = library_of(MADE["char with unk"])
    library.add_special_tokens(["<"])
    made = Tokenizer.from_json(library.to_str())
    assert made.kind == "char" and made.decode([made.eot]) == "<"
    assert made.encode("a<") == library.encode("a<").ids == MADE["char with unk"].encode("a?")


def test_bytes_are_their_ids():
    made = Tokenizer.make("byte")
    assert (made.kind, made.vocab_size, made.eot) == ("byte", 256, None)
    assert made.encode("Aé\0") == [65, 0xC3, 0xA9, 0]
    assert made.decode_bytes(range(256)) == bytes(range(256))


def test_words_are_split_at_space_and_punctuation():
    made = Tokenizer.make("word", "b b b a a c, d; d d")
    assert made.tokens == [b"<unk>", b"b", b"d", b"a", b",", b";", b"c", b"</s>"]  # by frequency, then code point
    assert made.encode(" a,zebra\nd;") == [3, 4, 0, 2, 5]
    assert made.eot == 7
    assert Tokenizer.make("word", "b b b a a c", vocab_size=4).tokens == [b"<unk>", b"b", b"a", b"</s>"]
    assert Tokenizer.make("word", "b b b a a c", min_frequency=3).tokens == [b"<unk>", b"b", b"</s>"]


@pytest.mark.parametrize(
    "text",
    [
        "How do mountains form?",
        "don't, can't, it's, we'll: they'd know",
        "He said (well, sort of) that it cost $3.14.",
        "a well-known thing; 10:30 is 50% of it!",
        "it doesn’t “matter”",
        "'quoted words",
        "x/y and snake_case",
        "the boys' house",
        "wait…",
    ],
)
def test_words_are_joined_as_they_were(text):
    made = Tokenizer.make("word", text)
    assert made.decode(made.encode(text)) == text
    assert made.decode(made.encode(" \n " + text.replace(" ", "\n\t "))) == text


def test_bpe_learns_the_most_frequent_pairs_first():
    made = Tokenizer.make("bpe", "ab ab ab abc abc bc bc", vocab_size=260)
    assert made.tokens[256:] == [b"ab", b" ab", b"bc", b"<|endoftext|>"]  # 5 times, 4 times, then one of three with 2
    assert (made.kind, made.vocab_size, made.eot, made.bos) == ("bpe", 260, 259, None)
    rare = Tokenizer.make("bpe", "ab ab ab abc abc bc bc", vocab_size=300, min_frequency=5)
    assert rare.tokens[256:] == [b"ab", b"<|endoftext|>"]


def test_bpe_ids_are_ranks_so_that_llmcs_file_holds_it(tmp_path):
    made = Tokenizer.make("bpe", PROSE, vocab_size=300)
    made.save_bin(tmp_path / "tokenizer.bin")
    again = Tokenizer.load(tmp_path / "tokenizer.bin")
    assert again.encode(PROSE) == made.encode(PROSE) and again.eot == made.eot


def test_bpe_is_the_same_for_any_number_of_threads(tmp_path):
    code = (
        "import sys, random; from gpt2c.tokenizers.tokenizer import Tokenizer; rng = random.Random(1)\n"
        "text = ''.join(rng.choice('abcd ') for _ in range(20000))\n"
        "sys.stdout.write(Tokenizer.make('bpe', text, vocab_size=600).to_json())"
    )
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env=os.environ | {"RAYON_NUM_THREADS": n, "PYTHONHASHSEED": n},
        ).stdout
        for n in "123"
    }
    assert len(outs) == 1 and b'"merges"' in outs.pop()


def test_a_vocabulary_without_room_for_merges_warns():
    with pytest.warns(UserWarning, match="no room for a merge"):
        made = Tokenizer.make("bpe", "some text", vocab_size=256)
    assert made.vocab_size == 257 and made.decode(made.encode("some text")) == "some text"


@pytest.mark.parametrize(
    "kind, text, error, found",
    [
        ("char", "", InputError, "empty"),
        ("bpe", [], InputError, "empty"),
        ("word", " \n", InputError, "no word"),
        ("char", ["ok", "a\ud800"], InputError, "character 1"),
        ("bpe", ["a\ud800"], InputError, "character 1"),
        ("char", None, UsageError, "made from a text"),
        ("syllable", "x", UsageError, "'syllable'.*char, byte"),
    ],
)
def test_what_cannot_be_made(kind, text, error, found):
    with pytest.raises(error, match=found):
        Tokenizer.make(kind, text)


def test_half_a_utf16_pair_is_refused_by_all(made):
    with pytest.raises(InputError, match="character 1"):
        made.encode("a\udc80")


def test_a_changed_json_does_not_take_the_shortcuts():
    """With a normalizer the library's ids are not the table's."""
    for made, upper in ((MADE["byte"], "A"), (MADE["char with unk"], "A")):
        document = json.loads(made.to_json()) | {"normalizer": {"type": "Lowercase"}}
        again = Tokenizer.from_json(json.dumps(document))
        assert again.encode(upper) == made.encode("a") != made.encode(upper)


def test_large_texts_are_cut_where_nothing_changes(monkeypatch):
    for name in ("bpe", "word"):
        text = " ".join(TEXTS) + "\n".join(TEXTS) + PROSE
        whole = library_of(MADE[name]).encode(text, add_special_tokens=False).ids
        for size in (1, 10, 1000):
            monkeypatch.setattr("gpt2c.tokenizers.tokenizer.PIECE_CHARACTERS", size)
            assert MADE[name].encode(text) == whole
