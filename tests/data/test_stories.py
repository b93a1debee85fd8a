"""The stories that come with gpt2c: the files are what the program writes, and the text is sound English."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
FILES = ["stories_tokenizer.bin", "stories_train.bin", "stories_val.bin"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(DATA / "stories_tokenizer.bin")


def read_shard(name):
    """The ids of a shard, read without gpt2c so that its header is checked as well."""
    content = (DATA / name).read_bytes()
    header = np.frombuffer(content, "<i4", 256)
    assert header[:2].tolist() == [20240520, 1] and not header[3:].any()
    ids = np.frombuffer(content, "<u2", offset=1024)
    assert len(ids) == header[2]
    return ids


@pytest.fixture(scope="module")
def stories(tokenizer):
    """{"train": [text, ...], "val": [text, ...]}."""

    def split(ids):
        starts = np.flatnonzero(ids == tokenizer.eot)
        return [tokenizer.decode(part[1:]) for part in np.split(ids, starts)[1:]]

    return {part: split(read_shard(f"stories_{part}.bin")) for part in ("train", "val")}


@pytest.fixture(scope="module")
def text(stories):
    return "\n".join(stories["train"] + stories["val"])


def test_the_program_writes_these_files(tmp_path):
    pytest.importorskip("tokenizers")
    program = [sys.executable, DATA / "make_stories.py", "--out", tmp_path]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_files_are_small():
    assert sum((DATA / name).stat().st_size for name in FILES) < 2_000_000


def test_tokenizer_begins_with_bytes_and_ends_with_end_of_text(tokenizer):
    assert tokenizer.vocab_size == 4096
    assert tokenizer.tokens[:256] == GPT2_BYTES
    assert tokenizer.eot == 4095 and tokenizer.tokens[4095] == b"<|endoftext|>"


@pytest.mark.parametrize("part", ["train", "val"])
def test_shards_hold_ids_and_begin_with_end_of_text(tokenizer, stories, part):
    ids = read_shard(f"stories_{part}.bin")
    assert ids.max() < tokenizer.vocab_size
    assert ids[0] == tokenizer.eot
    assert ids.tolist() == [id for story in stories[part] for id in (tokenizer.eot, *tokenizer.encode(story))]


def test_validation_is_three_percent_and_new(stories):
    train, val = stories["train"], stories["val"]
    assert 0.02 < len(val) / len(train) < 0.04
    assert len({*train, *val}) == len(train) + len(val)


def test_text_is_large_and_varied(stories, text):
    assert len(text) > 2_000_000
    assert len(set(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))) >= 3000
    assert all(60 <= len(story.split()) <= 200 for part in stories.values() for story in part)


@pytest.mark.parametrize(
    "name, fault",
    [
        ("a before a vowel", r"\b[Aa] (?!uni|use|one)([aeiou]|honest|hour)\w*"),
        ("an before a consonant", r"\b[Aa]n (?!hour|honest)[^aeiouAEIOU]\w*"),
        ("a word twice", r"\b(?!had\b)(\w+) \1\b"),
        ("spaces", r"  | \n|\n |\n\n| [,.!?]"),
        ("what belongs to the grammar", r"[][{}|@_]"),
        ("a sentence without a capital", r"(?:^|[.!?] |\.\" )\"?[a-z]\w*"),
        (
            "a sentence without a capital behind speech",
            r"[!?]\" (?!(?:asked|called|cried|exclaimed|shouted|said|answered|replied|he|she|they|was)\b)[a-z]\w*",
        ),
        ("a paragraph without an end", r"[^.!?\"]$"),
        ("speech without an end", r"[^,.!?]\"(?= |$)"),
    ],
)
def test_grammar(text, name, fault):
    found = [match[0] for match in re.finditer(fault, text, re.MULTILINE)]
    assert not found, f"{name}: {found[:5]}"


def test_quotes_are_balanced(text):
    assert all(paragraph.count('"') % 2 == 0 for paragraph in text.split("\n"))
