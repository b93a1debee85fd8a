"""gpt2c prepare: the files that it makes, its errors, its end amid the work."""

import json
import random
import signal
import time

import programs
import psutil
import pytest
from programs import call, run, start
from texts import STORIES, ids, random_text, stories_tokenizer

from gpt2c.data import read_shard
from gpt2c.tokenizers.tokenizer import Tokenizer


def test_prepare_and_find_again(write, tmp_path):
    text = "".join(f"line {n} of the text\n" for n in range(1000))
    write("book.txt", text)
    done = call(tmp_path, "prepare", "book.txt", "--tokenizer", STORIES, "--shard-tokens", 2000)
    assert "training tokens" in done.stdout and len(list((tmp_path / "data").glob("book_train_*.bin"))) > 1
    listed = call(tmp_path, "train", "--list-datasets")
    assert "0: book\n    Train: data/book_train_[0-9]" in listed.stdout and "Val:   data/book_val.bin" in listed.stdout
    small = ["-e", "scratch", "--num-layers", 1, "--channels", 16, "--num-heads", 1, "-s", 0]
    assert "vocab_size 4096" in call(tmp_path, "train", *small, "--data", "book", "-x", 1).stdout
    tokenizer = stories_tokenizer()
    first = sum((ids(path) for path in sorted((tmp_path / "data").glob("book_train_*.bin"))), [])
    last = ids(tmp_path / "data/book_val.bin")
    assert first[0] == last[0] == tokenizer.eot
    assert tokenizer.decode(first[1:]) + tokenizer.decode(last[1:]) == text
    assert len(tokenizer.decode(first[1:])) == int(0.9 * len(text))


def test_validation_shares_no_document(write, tmp_path):
    write("a.jsonl", "".join(json.dumps({"text": f"document number {n}"}) + "\n" for n in range(200)))
    call(tmp_path, "prepare", "a.jsonl", "--tokenizer", STORIES, "--val-fraction", 0.25)
    tokenizer = stories_tokenizer()
    texts = [tokenizer.decode(ids(tmp_path / f"data/a_{part}.bin")).split("<|endoftext|>")[1:] for part in ("train", "val")]
    train, val = map(set, texts)
    assert not train & val and len(train | val) == 200 and 45 <= len(val) <= 55


def test_the_locale_does_not_matter(write, tmp_path):
    write("a.txt", "größer 中 " * 100)
    run(tmp_path, "prepare", "a.txt", "--tokenizer", "char", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    tokenizer = Tokenizer.load(tmp_path / "data/a_tokenizer.json")
    assert tokenizer.decode(ids(tmp_path / "data/a_train.bin") + ids(tmp_path / "data/a_val.bin")) == "größer 中 " * 100


@pytest.mark.parametrize(
    "words, code, message",
    [
        ([], 2, "name the text"),
        (["missing.txt"], 4, "no file matches"),
        (["bad.txt"], 4, "bad.txt is not UTF-8: byte 2 is 0xfe"),
        (["bad.txt", "--val-fraction", "1"], 2, "expected a fraction below 1"),
        (["empty.txt"], 4, "is empty"),
        (["good.txt", "--max-vocab", "2"], 4, "good.txt from byte 0 brings the different characters to 4"),
        (["good.txt", "--name", "../x"], 2, "cannot be called"),
    ],
)
def test_errors_are_one_sentence(write, tmp_path, words, code, message):
    write("bad.txt", b"ab\xfe")
    write("empty.txt", "")
    write("good.txt", "abcd")
    done = call(tmp_path, "prepare", *words, "--tokenizer", "char", code=code)
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("data/.*.tmp"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(write, tmp_path, number, code):
    write("a.txt", random_text(1_200_000, alphabet="once upon a time\n.,"))
    words = ["prepare", "a.txt", "--tokenizer", STORIES, "--workers", 2]
    process = start(tmp_path, *words)
    while not any(path.stat().st_size for path in tmp_path.glob("data/.a.*.tmp/train_0")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    told = [line for line in err.splitlines() if not line.startswith("encoding: ")]  # progress, where it takes long
    assert process.returncode == code and not told, err
    assert list((tmp_path / "data").iterdir()) == []
    contents = []
    for _ in range(2):
        run(tmp_path, *words)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()})
    assert contents[0] == contents[1] and set(contents[0]) == {"a_train.bin", "a_val.bin", "a_tokenizer.json"}


@pytest.mark.slow
def test_a_gigabyte_takes_little_memory(tmp_path):
    words = [random_text(n % 9 + 2, n, "etaoinshrdlu") for n in range(5000)]
    rng = random.Random(0)
    with open(tmp_path / "big.txt", "w", encoding="utf-8") as file:
        block = "".join(rng.choice(words) + rng.choice((" ", " ", " ", ".\n")) for _ in range(200_000))
        while file.tell() < 1e9:
            file.write(block)
    command = programs.command("prepare", "big.txt", "--tokenizer", STORIES, "--workers", 2)
    process = psutil.Popen(command, cwd=tmp_path)
    most = 0
    while process.poll() is None:
        try:
            most = max(most, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    print(f"\n1 GB in {most / 1e6:.0f} MB")
    assert process.returncode == 0 and most < 500e6
    assert sum(len(read_shard(path).tokens) for path in tmp_path.glob("data/big_*_00*.bin")) > 1e8
