"""Text as its ids arrive one at a time: byte-exact, for tokenizers in the manner of well-known models."""

import pytest
from folders_tokenizers import SPECIALS, folder

from gpt2c.tokenizers import huggingface

TEXTS = ("é日🙂 naïve", "👩‍👩‍👧🙂🙂", " a  b\n\n c", "x\u0301ß\x00\x7f", "中文字符", "", "12345 It's")


@pytest.fixture(params=SPECIALS, scope="module")
def tokenizer(request):
    return huggingface.read(folder(request.param), 1000)[0]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text_and_no_piece_has_half_a_character(tokenizer, text):
    text = tokenizer.decode(tokenizer.encode(text))  # in the normal form that the vocabulary has
    stream, ids = tokenizer.stream(), tokenizer.encode(text)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) == text and stream.flush() == "" and "\ufffd" not in "".join(pieces)
    assert tokenizer.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_text_that_ends_in_the_middle_of_a_character(tokenizer, text):
    """Each beginning of the ids gives the beginning of the bytes, and a character that is not whole one U+FFFD at the end."""
    ids, whole = tokenizer.encode(text), 0
    text = tokenizer.decode(ids)
    for count in range(1, len(ids)):
        begun = tokenizer.decode_bytes(ids[:count])
        assert text.encode().startswith(begun)
        stream = tokenizer.stream()
        pieces = "".join(map(stream.push, ids[:count]))
        assert text.startswith(pieces) and len(pieces.encode()) <= len(begun)
        assert stream.flush() == ("\ufffd" if pieces.encode() != begun else "")
        whole += pieces.encode() == begun
    assert whole < len(ids) - 1 or len(ids) < 4  # the vocabularies have bytes of these characters as tokens


def test_the_text_goes_on_from_a_prompt(tokenizer):
    more = tokenizer.encode("It's the capital 🙂")
    prompt = more[: max(1, len(more) - 5)]
    stream = tokenizer.stream(prompt)
    pieces = "".join(map(stream.push, more[len(prompt) :]))
    assert tokenizer.decode(prompt) + pieces == tokenizer.decode(more) == "It's the capital 🙂"


def test_bytes_that_are_no_text_become_one_sign_each_time(tokenizer):
    """Whatever a model writes: what follows is read again."""
    ids = [id for id in range(tokenizer.vocab_size) if tokenizer.tokens[id] in (b"\xf0", b"\x9f")] + tokenizer.encode("ab")[-2:]
    stream = tokenizer.stream([ids[-1]])
    text = "".join(map(stream.push, ids)) + stream.flush()
    assert text.endswith("b") and 1 <= text.count("\ufffd") <= 2
