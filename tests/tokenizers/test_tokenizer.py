"""The tokenizer: llm.c's file and tokenizer.json, encoding, decoding, streaming, and damaged files."""

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2c.errors import InputError, UsageError
from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

EOT = b"<|endoftext|>"
MERGED = [b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor", b"\xf0\x9f", b"\xf0\x9f\x98", b"d'"]
TOKENS = [*GPT2_BYTES, *MERGED, EOT]
ID = {token: id for id, token in enumerate(TOKENS)}


def file_bytes(tokens, version=2, n=None, eot=None, magic=20240328):
    n = len(tokens) if n is None else n
    eot = len(tokens) - 1 if eot is None else eot
    header = struct.pack("<4I", magic, version, n, eot)
    return header.ljust(1024, b"\0") + b"".join(bytes([len(t)]) + t for t in tokens)


@pytest.fixture
def load(tmp_path):
    """Loads a tokenizer from the bytes of its file."""

    def load(content):
        path = tmp_path / "file"
        path.write_bytes(content)
        return Tokenizer.load(path)

    return load


@pytest.fixture
def small(load):
    return load(file_bytes(TOKENS))


def test_import_leaves_the_library_alone():
    code = "import sys, gpt2c.tokenizers.tokenizer; sys.exit('tokenizers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_encode_applies_merges_by_rank(small):
    assert small.vocab_size == 256 + len(MERGED) + 1
    assert small.eot == small.vocab_size - 1
    assert small.encode("hello world") == [ID[b"hello"], ID[b" wor"], ID[b"l"], ID[b"d"]]
    assert small.encode("hellhe") == [ID[b"hell"], ID[b"he"]]
    assert small.encode("") == []


def test_encode_never_merges_across_words(small):
    assert small.encode("d's") == [ID[b"d"], ID[b"'"], ID[b"s"]]  # though there is a token "d'"
    assert small.encode("h e") == [ID[b"h"], ID[b" "], ID[b"e"]]


def test_special_text_is_plain_unless_allowed(small):
    plain = small.encode("or<|endoftext|>")
    assert small.eot not in plain and small.decode(plain) == "or<|endoftext|>"
    assert small.encode("or<|endoftext|>", allow_special=True) == [ID[b"or"], small.eot]
    assert small.encode("or<|endoftext|>") == plain  # the choice is not remembered


def test_round_trip_of_random_text_and_bytes(small):
    rng = random.Random(7)
    alphabet = [*"hello wor\n\t '", "é", "ß", "中", "😀", "\u00a0", "\x00", "\u2028"]
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        assert small.decode(small.encode(text)) == text
        data = rng.randbytes(rng.randrange(40))
        assert small.decode_bytes([ID[bytes([b])] for b in data]) == data


def test_decode_replaces_what_is_not_utf8(small):
    assert small.decode([ID[b"\xff"], ID[b"h"]]) == "\ufffdh"


def test_ids_out_of_range_are_refused(small):
    for id in (-1, small.vocab_size):
        with pytest.raises(UsageError, match=str(id)):
            small.decode([id])


def test_half_a_utf16_pair_is_refused(small):
    with pytest.raises(InputError, match="character 2"):
        small.encode("he\udc80")


def test_byte_tokenizer_without_end_of_text():
    tokenizer = Tokenizer([bytes([b]) for b in range(256)])
    assert tokenizer.encode("A é") == [65, 32, 0xC3, 0xA9]
    assert tokenizer.eot is None
    assert Tokenizer.from_json(tokenizer.to_json()).eot is None
    with pytest.raises(UsageError, match="end-of-text"):
        tokenizer.save_bin("unused")


def test_json_round_trip_through_the_library(small):
    tokenizers = pytest.importorskip("tokenizers")
    text = "hello world 😀 it's\n <|endoftext|>"
    library = tokenizers.Tokenizer.from_str(small.to_json())
    library.encode_special_tokens = True
    assert library.encode(text).ids == small.encode(text)
    again = Tokenizer.from_json(small.to_json())
    assert (again.tokens, again.eot) == (small.tokens, small.eot)
    assert again.encode(text) == small.encode(text)
    assert again.to_json() == small.to_json()


def test_load_knows_json_by_its_content(small, load):
    again = load(b"\n " + small.to_json().encode())
    assert again.encode("hello") == [ID[b"hello"]]


def test_save_bin_writes_version_2(small, tmp_path):
    path = tmp_path / "out.bin"
    Tokenizer.from_json(small.to_json()).save_bin(path)
    assert path.read_bytes() == file_bytes(TOKENS)
    assert {p.name for p in tmp_path.iterdir()} == {"out.bin", "file"}  # nothing temporary stays
    with pytest.raises(UsageError, match="256 bytes"):
        Tokenizer([b"x" * 256], eot=0).save_bin(path)
    assert path.read_bytes() == file_bytes(TOKENS)


@pytest.mark.parametrize(
    "tokens, found",
    [
        ([*(t for t in GPT2_BYTES if t != b"q"), EOT], "b'q'"),
        ([*GPT2_BYTES, b"abc", EOT], "b'abc'"),
        ([*GPT2_BYTES, b"abc", b"ab", EOT], "b'abc'"),
        ([*GPT2_BYTES, b"ab", b"ab", EOT], "same bytes"),
        ([b"cat", b"dog", b"\xff", b"cat"], "single byte"),
    ],
)
def test_what_cannot_encode_still_decodes(load, tokens, found):
    tokenizer = load(file_bytes(tokens))
    for t in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        assert t.decode_bytes(range(len(tokens))) == b"".join(tokens)
        assert (t.vocab_size, t.eot) == (len(tokens), len(tokens) - 1)
        with pytest.raises(InputError, match=found):
            t.encode("abc")


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "begins with"),
        (b"text", "74 65 78 74"),
        (file_bytes(TOKENS, magic=20240520), "magic"),
        (file_bytes(TOKENS, version=3), "version 3"),
        (file_bytes(TOKENS, version=1), "50257"),
        (file_bytes(TOKENS, eot=len(TOKENS)), "end-of-text"),
        (file_bytes([b"ab", b""], eot=0), "0 bytes for token 1"),
        (file_bytes([], eot=0), "end-of-text"),
        (file_bytes(TOKENS, n=len(TOKENS) - 1, eot=5), "goes on"),
        (file_bytes(TOKENS, n=2**32 - 1), "4294967295 tokens"),
        (b'{"version": "1.0"', "not a JSON file"),
        (b'{"version": "1.0"}', "refuses"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}', "no id 0"),
        (b"{\xff}", "UTF-8"),
    ],
)
def test_wrong_files_are_refused(load, content, found):
    with pytest.raises(InputError, match=found):
        load(content)


def test_every_truncation_is_refused(load):
    whole = file_bytes([b"a", b"bcd", EOT])
    assert load(whole).tokens == [b"a", b"bcd", EOT]
    for size in range(len(whole)):
        with pytest.raises(InputError):
            load(whole[:size])


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")


def test_version_1_is_gpt2s_size(load):
    tokens = [b"%d" % i for i in range(50256)] + [EOT]
    tokenizer = load(file_bytes(tokens, version=1, eot=0))
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)


def test_stream_holds_back_unfinished_characters(small):
    ids = small.encode("h😀é")
    assert [small.tokens[i] for i in ids[1:3]] == [b"\xf0\x9f\x98", b"\x80"]
    stream = small.stream()
    assert [stream.push(i) for i in ids] == ["h", "", "😀", "", "é"]
    assert stream.flush() == ""


def test_stream_flush_shows_what_is_missing(small):
    stream = small.stream()
    assert stream.push(ID[b"\xf0\x9f\x98"]) == ""
    assert stream.push(ID[b"he"]) == "\ufffdhe"
    assert stream.push(ID[b"\xf0"]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(ID[b"he"]) == "he"


def test_stream_of_random_bytes_is_decode(small):
    rng = random.Random(3)
    for _ in range(100):
        ids = [rng.randrange(small.vocab_size) for _ in range(30)]
        stream = small.stream()
        assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == small.decode(ids)


@pytest.fixture
def words():
    """A tokenizer.json that is not byte-level: whole words, decoded with spaces between them."""
    tk = pytest.importorskip("tokenizers")
    library = tk.Tokenizer(tk.models.WordLevel({"the": 0, "cat": 1, "sat": 2, "</s>": 3}))
    library.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["</s>"])
    return Tokenizer.from_json(library.to_str())


def test_word_vocabulary(words):
    assert (words.vocab_size, words.eot) == (4, 3)
    ids = words.encode("the cat sat")
    assert ids == [0, 1, 2] and words.decode(ids) == "the cat sat"
    stream = words.stream()
    assert [stream.push(i) for i in ids] == ["the", " cat", " sat"]
    assert Tokenizer.from_json(words.to_json()).encode("sat") == [2]
    with pytest.raises(InputError, match="'dog' is not in the vocabulary"):
        words.encode("the dog")
    with pytest.raises(UsageError, match="byte-level"):
        words.save_bin("unused")


@pytest.mark.parametrize(
    "made, shown",
    [
        (Tokenizer.make("char", "hello"), "<gpt2c.Tokenizer char: 4 tokens>"),
        (Tokenizer.make("byte", specials=("<|bos|>", "</s>")), "<gpt2c.Tokenizer byte: 258 tokens, begin 256, end 257>"),
        (Tokenizer([b"a", b"b"], eot=1), "<gpt2c.Tokenizer bpe: 2 tokens, end 1>"),
    ],
)
def test_a_notebook_shows_what_a_tokenizer_is(made, shown):
    assert repr(made) == shown
