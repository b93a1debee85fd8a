"""Text that is encoded once: the cache."""

import os
from pathlib import Path

import pytest
from texts import ids

from gpt2c.data import text_dataset
from gpt2c.data.reading import Reading
from gpt2c.errors import InputError
from gpt2c.tokenizers.tokenizer import Tokenizer


def test_text_is_encoded_once(write, cache, monkeypatch):
    path = write("a.txt", "hello world, this is text\n" * 50)
    first = text_dataset([path], "char", Reading())
    before = os.stat(first.train).st_mtime_ns
    assert text_dataset([path], "char", Reading()) == first and os.stat(first.train).st_mtime_ns == before
    copy = write("elsewhere/b.txt", "hello world, this is text\n" * 50)
    assert text_dataset([copy], "char", Reading()).train == first.train  # by content, not by name
    changed = write("c.txt", "hello world, this is texT\n" * 50)
    others = [
        text_dataset([changed], "char", Reading()),
        text_dataset([path], "byte", Reading()),
        text_dataset([path], "char", Reading(), 0),
        text_dataset([path], "char", Reading(split_on="\n")),
    ]
    assert len({first.train, *(other.train for other in others)}) == 5
    table = write("d.csv", "text,b\none,two\nthree,four\nfive,six\n")
    readings = [Reading(), Reading(column="b"), Reading(csv_header=False), Reading(errors="replace")]
    assert len({text_dataset([table], "char", reading, 0).train for reading in readings}) == 4
    tokenizer = Tokenizer.load(first.tokenizer)
    assert tokenizer.decode(ids(first.train)) + tokenizer.decode(ids(first.val)) == "hello world, this is text\n" * 50
    assert len(ids(first.train)) == int(0.9 * 26 * 50)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "unsealed"])
def test_a_damaged_cache_is_made_again(write, cache, damage):
    path = write("a.txt", "hello world, this is text\n" * 50)
    dataset = text_dataset([path], "char", Reading())
    target = Path(dataset.train)
    good = target.read_bytes()
    if damage == "flip":
        target.write_bytes(good[:2000] + bytes([good[2000] ^ 1]) + good[2001:])
    elif damage == "cut":
        target.write_bytes(good[:-2])
    elif damage == "remove":
        target.unlink()
    else:
        (target.parent / "SHA256SUMS").unlink()
    assert text_dataset([path], "char", Reading()).train == dataset.train
    assert target.read_bytes() == good


def test_an_empty_text_is_an_error(write, cache):
    with pytest.raises(InputError, match="there is no text"):
        text_dataset([write("a.txt", "")], "char", Reading())
