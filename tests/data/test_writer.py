"""The token files of a data set: their sizes, and what a failure leaves."""

import os
from pathlib import Path

import numpy as np
import pytest
from texts import ids, stories_tokenizer

from gpt2c.data import read_shard
from gpt2c.data.writer import dataset_writer
from gpt2c.errors import InputError, UsageError


def test_shards_are_split_and_older_files_go(tmp_path):
    stories = stories_tokenizer()

    def make(count, shard_tokens):
        with dataset_writer(tmp_path, "a", stories, shard_tokens) as writer:
            for part in ("train", "val"):
                for start in range(0, count, 30):
                    writer.write(part, np.arange(start, min(start + 30, count)))
        return sorted(p.name for p in tmp_path.iterdir())

    assert make(100, 40) == [
        "a_tokenizer.json",
        *(f"a_train_{n:06d}.bin" for n in (1, 2, 3)),
        *(f"a_val_{n:06d}.bin" for n in (1, 2, 3)),
    ]
    assert sum((ids(tmp_path / f"a_train_{n:06d}.bin") for n in (1, 2, 3)), []) == list(range(100))
    assert [len(ids(tmp_path / f"a_val_{n:06d}.bin")) for n in (1, 2, 3)] == [40, 40, 20]
    assert make(80, 40)[1:] == ["a_train_000001.bin", "a_train_000002.bin", "a_val_000001.bin", "a_val_000002.bin"]
    assert make(40, 40) == ["a_tokenizer.json", "a_train.bin", "a_val.bin"]


def test_large_vocabularies_take_32_bits(tmp_path):
    class Large:
        kind, vocab_size = "bpe", 65537

        def save(self, path):
            Path(path).write_text("{}")

    with dataset_writer(tmp_path, "a", Large()) as writer:
        writer.write("train", np.array([1, 65536]))
    assert read_shard(tmp_path / "a_train.bin").magic == 20240801 and ids(tmp_path / "a_train.bin") == [1, 65536]


def test_a_failure_leaves_what_was_there(tmp_path):
    stories = stories_tokenizer()
    with dataset_writer(tmp_path, "a", stories) as writer:
        writer.write("train", np.arange(10))
    dead = tmp_path / ".a.999999999.tmp"  # of a run that was killed
    dead.mkdir()
    with pytest.raises(KeyboardInterrupt):
        with dataset_writer(tmp_path, "a", stories) as writer:
            writer.write("train", np.arange(99))
            raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == ["a_tokenizer.json", "a_train.bin"]
    assert ids(tmp_path / "a_train.bin") == list(range(10))
    with pytest.raises(InputError, match="no text to train on"):
        with dataset_writer(tmp_path, "b", stories):
            pass
    with pytest.raises(UsageError, match="cannot be called 'x/y'"):
        with dataset_writer(tmp_path, "x/y", stories):
            pass
