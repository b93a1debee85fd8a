"""A run that goes on does so with the data it had; other data are named, and taken only where the user says so."""

import json
import os
import random

import numpy as np
import pytest
from families import CHARACTERS, model_of
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import UsageError
from gpt2c.formats import native
from gpt2c.models.files import read

GPT2 = "--model gpt2 -e scratch --num-layers 1 --channels 8 --num-heads 1 --max-seq-len 8 -b 2 -t 8".split()
MINGRU = "--model mingru --dim 8 --depth 1 -b 2 -t 8 --update-chunks 1 --backprop-chunks 4".split()
QUIET = ["-v", "0", "-s", "0"]
ALLOWED = "; go on with the same data, or take these by --allow-new-data"


def text(seed):
    return "".join(random.Random(seed).choice("abcdef ") for _ in range(400)) + "abcdef "


def items(seed):
    words = random.Random(seed).choices("abcdef", k=30)
    return "".join(json.dumps({"prompt": word, "completion": word[::-1]}) + "\n" for word in [*words, *"abcdef"])


def resumed(folder, *words, code=0, steps=4):
    return call(folder, "train", "-o", "out", "--resume", "-x", steps, *words, code=code)


ORDERS = pytest.mark.parametrize("order, model, name, make", [
    ("shuffled", GPT2, "t.txt", text), ("random", GPT2, "t.txt", text), ("lanes", MINGRU, "t.txt", text),
    ("items", GPT2, "t.jsonl", items),
])  # fmt: skip


@pytest.fixture(autouse=True)
def quick(cache, undrawn):
    """A cache of encoded text of its own, and no pictures."""


@ORDERS
def test_a_changed_text_of_the_same_size_is_named_and_refused(tmp_path, order, model, name, make):
    (tmp_path / name).write_text(make(1))
    call(tmp_path, "train", *model, *QUIET, "--data", name, "--order", order, "-o", "out", "-x", 2)
    (tmp_path / name).write_text(make(2))
    done = resumed(tmp_path, code=2)
    assert done.stderr == f"gpt2c train: the training data are not those of before: {name} has other tokens{ALLOWED}\n"
    done = resumed(tmp_path, "--allow-new-data")
    assert done.stderr.count(f"the training data are not those of before: {name} has other tokens; going on ") == 1
    assert "allow_new_data = false" in (tmp_path / "out/config.toml").read_text()
    assert "resumed from" in resumed(tmp_path, steps=6).stdout  # the new data are now its own
    (tmp_path / name).write_text(make(1))
    resumed(tmp_path, code=2, steps=7)


@ORDERS
def test_the_same_data_stay_the_same(tmp_path, order, model, name, make):
    """Whatever happened to the file; then the flag changes nothing."""
    (tmp_path / name).write_text(make(1))
    call(tmp_path, "train", *model, *QUIET, "--data", name, "--order", order, "-o", "out", "-x", 4, "-n", 2)
    before = (tmp_path / "out/ckpt_00000004.safetensors").read_bytes()
    (tmp_path / name).rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / name)
    os.utime(tmp_path / name, (1, 1))
    for allowed in [], ["--allow-new-data"]:
        (tmp_path / "out/ckpt_00000004.safetensors").unlink()
        assert resumed(tmp_path, *allowed).stderr == ""
        assert (tmp_path / "out/ckpt_00000004.safetensors").read_bytes() == before


@pytest.mark.parametrize("order, model", [("shuffled", GPT2), ("lanes", MINGRU)])
def test_more_data_begin_at_their_beginning(tmp_path, order, model):
    ids = np.random.default_rng(0).integers(0, 17, 500)
    write_shard(tmp_path / "x_train.bin", ids)
    call(tmp_path, "train", *model, *QUIET, "--vocab-size", 17, "--data", "x_train.bin", "--order", order, "-o", "out", "-x", 3)
    write_shard(tmp_path / "x_train.bin", [*ids, *ids])
    changed = "the training data are not those of before: x_train.bin has 1,000 tokens, had 500"
    assert resumed(tmp_path, code=2).stderr == f"gpt2c train: {changed}{ALLOWED}\n"
    done = resumed(tmp_path, "--allow-new-data")
    assert done.stderr == f"{changed}; going on with these from their beginning, as --allow-new-data says\n"
    loader = read(tmp_path / "out/ckpt_00000004.safetensors").run.values["loader"]
    assert loader["num_tokens"] == 1000 and loader.get("sample", loader.get("batch")) == 1


def test_other_data_of_the_same_size_go_on_at_the_same_place(tmp_path):
    ids = np.random.default_rng(0).integers(0, 17, 500)
    write_shard(tmp_path / "x_train.bin", ids)
    call(tmp_path, "train", *GPT2, *QUIET, "--vocab-size", 17, "--data", "x_train.bin", "-o", "out", "-x", 3)
    write_shard(tmp_path / "x_train.bin", ids[::-1])
    done = resumed(tmp_path, "--allow-new-data")
    assert done.stderr.endswith("x_train.bin has other tokens; going on with these, as --allow-new-data says\n")
    assert read(tmp_path / "out/ckpt_00000004.safetensors").run.values["loader"]["sample"] == 4


def test_the_shard_that_changed_is_named(tmp_path):
    for number in range(1, 4):
        write_shard(tmp_path / f"x_train_{number:06d}.bin", np.full(50, number))
    flags = ["--vocab-size", 17, "--data", "x_train_*.bin", "-o", "out"]
    call(tmp_path, "train", *GPT2, *QUIET, *flags, "-x", 2)
    write_shard(tmp_path / "x_train_000002.bin", np.full(50, 7))
    assert "before: x_train_000002.bin has other tokens;" in resumed(tmp_path, code=2).stderr
    (tmp_path / "x_train_000003.bin").unlink()
    assert "the training data are not those of before: they are 2 files, and were 3;" in resumed(tmp_path, code=2).stderr
    resumed(tmp_path, "--allow-new-data")


@pytest.mark.parametrize("beside", [True, False])
def test_validation_data_are_known_too(tmp_path, beside):
    """A file of their own, or the end of the training data."""
    ids = np.random.default_rng(0).integers(0, 17, 500)
    write_shard(tmp_path / "x_train.bin", ids)
    if beside:
        write_shard(tmp_path / "x_val.bin", ids)
    flags = ["--vocab-size", 17, "--data", "x_train.bin", "-v", 2, "-m", 2, "-s", 0]
    call(tmp_path, "train", *GPT2, *flags, "-o", "out", "-x", 2)
    name = "x_val.bin" if beside else "x_train.bin"
    write_shard(tmp_path / name, [*ids[:-1], (ids[-1] + 1) % 17])
    assert f"the validation data are not those of before: {name} has other tokens" in resumed(tmp_path, code=2).stderr
    done = resumed(tmp_path, "--allow-new-data")
    assert "going on with these, as" in done.stderr
    assert resumed(tmp_path, "-v", 0, steps=5).stderr == ""  # there is nothing to compare


def test_a_checkpoint_without_an_identity_goes_on(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.arange(500) % 17)
    call(tmp_path, "train", *GPT2, *QUIET, "--vocab-size", 17, "--data", "x_train.bin", "-o", "out", "-x", 2)
    path = tmp_path / "out/ckpt_00000002.safetensors"
    weights = native.read(path)
    del weights.run.values["data"]
    native.write(path, weights)
    write_shard(tmp_path / "x_train.bin", np.arange(500)[::-1] % 17)
    assert resumed(tmp_path).stderr == ""


def test_in_python_too(tmp_path):
    write_shard(tmp_path / "x_train.bin", np.arange(100) % 17)
    model = gpt2c.create("gpt2", num_layers=1, channels=8, num_heads=1, vocab_size=17, max_seq_len=8)

    def trainer():
        return gpt2c.Trainer(model, gpt2c.DataLoader(tmp_path / "x_train.bin", 1, 8), None, gpt2c.TrainConfig(max_steps=2))

    first = trainer()
    list(first)
    first.save(tmp_path / "x.safetensors")
    run = read(tmp_path / "x.safetensors").run
    trainer().restore(run)
    write_shard(tmp_path / "x_train.bin", np.arange(100)[::-1] % 17)
    with pytest.raises(UsageError, match="the training data are not those of before: x_train.bin has other tokens"):
        trainer().restore(run)
    trainer().restore(run, data_position=False)


TASK = """
from gpt2c import Task, by_position

def ask(rng):
    return f"{rng.integers(5)}+1=", "%s"

task = Task(ask, by_position, answers="0123456789")
"""


def test_a_task_that_asks_other_questions_is_refused(tmp_path):
    model_of("chargpt", CHARACTERS).save(tmp_path / "start.safetensors")
    (tmp_path / "mine.py").write_text(TASK % 1)
    words = "--prompts 2 --max-new-tokens 4 --eval-prompts 0 -o out --task mine.py".split()
    call(tmp_path, "rlvr", "start.safetensors", *words, "--steps", 1)
    call(tmp_path, "rlvr", *words, "--resume", "--steps", 2)
    (tmp_path / "mine.py").write_text(TASK % 2)
    done = call(tmp_path, "rlvr", *words, "--resume", "--steps", 3, code=2)
    assert "the task mine.py has other prompts or answers than before" in done.stderr and "--allow-new-data" in done.stderr
    call(tmp_path, "rlvr", *words, "--resume", "--steps", 3, "--allow-new-data")
    call(tmp_path, "rlvr", *words, "--resume", "--steps", 4)
