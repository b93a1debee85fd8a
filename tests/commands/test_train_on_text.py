"""Training straight from text: in every order, on answers alone, with every family."""

import json

import pytest
from programs import call
from texts import STORIES

from gpt2c.formats.native import load

SMALL = ["-e", "scratch", "--num-layers", 1, "--channels", 16, "--num-heads", 1, "--log-every", 1, "-s", 0]


def train(folder, *words, code=0):
    return call(folder, "train", *SMALL, *words, code=code)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def test_training_straight_from_text(write, tmp_path, cache):
    write("a.txt", "the cat sat on the mat. " * 200)
    done = train(tmp_path, "--data", "a.txt", "--tokenizer", "char", "-x", 4, "-t", 32, "-o", "one", "-v", 2, "-m", 2)
    assert "data: a.txt, train" in done.stdout and "random order" in done.stdout and "vocab_size 11" in done.stdout
    assert done.stdout.count("val loss") == 3 and not done.stderr
    text = "--trainingText=" + "the cat sat on the mat. " * 200
    inline = train(tmp_path, text, "--tokenizer=char", "-x", 4, "-t", 32, "-o", "two")
    assert "data: inline text" in inline.stdout and losses(tmp_path / "one") == losses(tmp_path / "two")
    assert len(list(cache.glob("*/SHA256SUMS"))) == 1
    made = train(tmp_path, "--data", "a.txt", "--val-data", "b.txt", "--tokenizer", "char", "-x", 1, code=4)
    assert "no file matches 'b.txt'" in made.stderr
    write("b.txt", "dog eats cat. " * 50)
    both = train(tmp_path, "--data", "a.txt", "--val-data", "b.txt", "--tokenizer", "char", "-x", 1)
    assert "vocab_size 13" in both.stdout and both.stdout.count("val loss") == 2


@pytest.mark.parametrize("order", ["random", "documents", "shuffled", "sequential"])
def test_resuming_in_any_order_is_the_same_run(write, tmp_path, cache, order):
    write("a.jsonl", "".join(json.dumps(f"story {n} of the cat that sat on mat {n * n}") + "\n" for n in range(300)))
    words = ["--data", "a.jsonl", "--tokenizer", STORIES, "--order", order, "-t", 12, "-b", 3, "-n", 4]
    train(tmp_path, *words, "-x", 8, "-o", "straight")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/ckpt_00000004.safetensors").write_bytes((tmp_path / "straight/ckpt_00000004.safetensors").read_bytes())
    train(tmp_path, *words, "-x", 8, "-o", "again", "-y", 1)
    name = "ckpt_00000008.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    other = "shuffled" if order == "random" else "random"
    wrong = train(tmp_path, *words, "--order", other, "-x", 12, "-o", "again", "-y", 1, code=2)
    assert "position is one of another --order" in wrong.stderr


def test_a_text_shorter_than_a_window(write, tmp_path, cache):
    done = train(tmp_path, "--trainingText", "hello world", "--tokenizer", "char", "-x", 2, "-t", 64, "-o", "out")
    assert "warning: inline text has 9 tokens to train on: a window has 4 tokens instead of 64" in done.stderr
    assert len(losses(tmp_path / "out")) == 2
    done = train(tmp_path, "--trainingText", "hello world", "--tokenizer", "char", "-x", 2, "-t", 64, "--order", "sequential")
    assert "a window has 8 tokens" in done.stderr
    assert "a batch has 1 windows instead of 4" in done.stderr
    for text in ("a", "ab"):
        short = train(tmp_path, "--trainingText", text, "--tokenizer", "char", code=4)
        assert short.stderr.count("\n") == 1 and ("expected at least 2" in short.stderr or "no text to train on" in short.stderr)


def test_training_on_answers(write, tmp_path, cache):
    lines = [{"prompt": f"what is {n}?", "completion": f"{n} is a number"} for n in range(30)]
    write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    words = ["--data", "a.jsonl", "--mask-prompt", "--tokenizer", STORIES, "-x", 3, "-b", 4]
    done = train(tmp_path, *words, "-t", 32)
    assert "27 conversations to train on, 3 for validation" in done.stdout and "longer than" not in done.stdout
    short = train(tmp_path, *words, "-t", 16)
    assert "27 of 27 conversations are longer than 16 tokens and cut there" in short.stdout
    none = train(tmp_path, *words, "-t", 2, code=4)
    assert "none of the 27 conversations has an answer within T + 1 = 3 tokens" in none.stderr
    write("b.txt", "text")
    wrong = train(tmp_path, "--data", "b.txt", "--mask-prompt", "--tokenizer", STORIES, code=4)
    assert "b.txt is no file of items" in wrong.stderr


@pytest.mark.parametrize(
    "family, size, vocab_size, first",
    [
        ("chargpt", ["--num-layers", "1"], 13, 1),  # 11 characters and two special tokens, one of them before the text
        ("mingru", ["--dim", "16", "--depth", "1"], 11, 0),
    ],
)
def test_other_families_train_straight_from_text(write, tmp_path, cache, family, size, vocab_size, first):
    write("a.txt", "the cat sat on the mat. " * 200)
    words = ["--data", "a.txt", "-t", 32]
    done = call(tmp_path, "train", "--model", family, *words, "--tokenizer", "char", "-x", 3, "-s", 0, "-o", "out", *size)
    assert len(losses(tmp_path / "out")) == 3 and f"vocab_size {vocab_size}," in done.stdout
    found = call(tmp_path, "eval", "out/ckpt_00000003.safetensors", *words)
    assert found.stdout.startswith("loss ") and f"({4799 + first:,} tokens)" in found.stdout, found.stderr


def test_tasks_are_something_to_train_on(tmp_path, cache):
    train(tmp_path, "--model", "chargpt", "--data", "task:copy:300", "-t", 16, "-x", 3, "-v", 0, "-o", "run")
    model = load(tmp_path / "run/ckpt_00000003.safetensors")
    assert sorted(model.tokenizer.decode([i]) for i in range(model.tokenizer.vocab_size)) == sorted("\n:abcdefghij")
