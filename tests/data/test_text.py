"""From text to tokens: reading files of every kind, preparing data sets, the cache, and what goes wrong."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt2c.data import read_choices, read_shard, text_dataset, text_files, write_choices
from gpt2c.data.choices import Example
from gpt2c.data.conversations import conversation
from gpt2c.data.documents import read_pieces, total_bytes
from gpt2c.data.encoding import encode_pieces
from gpt2c.data.reading import Reading
from gpt2c.data.writer import dataset_writer
from gpt2c.errors import InputError, UsageError
from gpt2c.tokenizers.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
STORIES = str(ROOT / "data/stories_tokenizer.bin")


@pytest.fixture
def write(tmp_path):
    """`write(name, content)` makes a file and gives its path."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def stories():
    return Tokenizer.load(STORIES)


def documents(path, reading=None, **options):
    """The texts of a file's documents, joined from their pieces."""
    texts = []
    for piece in read_pieces([path], reading or Reading(**options)):
        if piece.first:
            texts.append("")
        texts[-1] += piece.text
    return texts


def prepare(folder, *words, check=True):
    command = [sys.executable, "-m", "gpt2c", "prepare", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def train(folder, *words, check=True):
    command = [
        sys.executable,
        "-m",
        "gpt2c.train",
        "-e",
        "scratch",
        "--num-layers",
        "1",
        "--channels",
        "16",
        "--num-heads",
        "1",
        "--log-every",
        "1",
        "-s",
        "0",
        *map(str, words),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def ids(path):
    return read_shard(path).tokens.tolist()


def random_text(size, seed=0, alphabet="ab éß中🙂\n\t"):
    rng = random.Random(seed)
    return "".join(rng.choice(alphabet) for _ in range(size))


# ---- reading


@pytest.mark.parametrize("size", [0, 1, 7, 1000, 700_001])
def test_plain_text_comes_back_whole(write, size):
    text = random_text(size)
    path = write("a.txt", text)
    assert documents(path) == ([text] if text else [])
    parts = list(read_pieces([path], Reading()))
    assert all(a.at + len(a.text.encode()) == b.at for a, b in zip(parts, parts[1:]))


@pytest.mark.parametrize("block", [61, 1000])
def test_pieces_encode_to_the_ids_of_the_whole(write, monkeypatch, block):
    """Wherever a block ends: the cuts are where no token reaches over."""
    monkeypatch.setattr("gpt2c.data.reading.BLOCK", block)
    text = random_text(30_000, alphabet="ab 's\n\t.12é中") + random_text(30_000, alphabet="a  \n\n") + "x" * 5000 + " end"
    pieces = list(read_pieces([write("a.txt", text)], Reading()))
    assert len(pieces) > 20
    for kind in ("bpe", "word", "char", "byte"):
        tokenizer = Tokenizer.make(kind, text)  # with tokens for runs of white space
        assert np.concatenate([tokenizer.encode_array(piece.text) for piece in pieces]).tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("at", range(8))
def test_a_text_is_cut_for_validation_between_characters(write, at):
    path = write("a.txt", "a中b🙂")
    parts = {"train": "", "val": ""}
    for piece in read_pieces([path], Reading(), at):
        parts[piece.part] += piece.text
    assert parts["train"] + parts["val"] == "a中b🙂"
    assert 0 <= at - len(parts["train"].encode()) < 4
    assert parts["train"] == "a中b🙂".encode()[:at].decode("utf-8", "ignore")


def test_a_byte_order_mark_is_not_text(write):
    assert documents(write("a.txt", "\ufeffhello")) == ["hello"]
    assert documents(write("a.jsonl", '\ufeff"hello"\n')) == ["hello"]
    assert documents(write("a.json", '\ufeff["hello"]')) == ["hello"]


def test_sections(write):
    path = write("a.txt", "one\n\ntwo\ntwo\n\nthree")
    assert documents(path, split_on="\n\n") == ["one\n\n", "two\ntwo\n\n", "three"]
    assert [p.at for p in read_pieces([path], Reading(split_on="\n\n"))] == [0, 5, 14]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.json", '["one", {"text": "two"} ,\n"three \\u00e9"]\n'),
        ("a.jsonl", '"one"\n\n{"text": "two", "n": 1}\n"three é"'),
        ("a.json", '"one"\n{"text": "two"}\n"three é"\n'),
        ("a.csv", 'n,text,more\n1,one,x\n2,two,y\n3,"three é",z\n'),
        ("a.csv", "n,body\n1,one\n2,two\n3,three é\n"),
        ("a.tsv", "body\tn\none\t1\ntwo\t2\nthree é\t3\n"),
    ],
)
def test_records(write, name, content):
    assert documents(write(name, content)) == ["one", "two", "three é"]


def test_records_longer_than_a_block(write):
    texts = [random_text(size, size).strip() for size in (5, 700_000, 300_000, 9)]
    assert documents(write("a.json", json.dumps(texts, ensure_ascii=False))) == texts
    assert documents(write("a.jsonl", "".join(json.dumps(text) + "\n" for text in texts))) == texts


@pytest.mark.parametrize(
    "content, options, texts",
    [
        ('a,b\n"x\n""y""",2\nz,3\n', {}, ['x\n"y"', "z"]),
        ("a,b\nx,y\n", {"csv_header": False}, ["a", "x"]),
        ("a,b\nx,y\n", {"column": "b"}, ["y"]),
        ("a,b\nx,y\n", {"column": "2"}, ["y"]),
        ("1,-2.5,b\n1,1,c\n", {"csv_header": False}, ["b", "c"]),
    ],
)
def test_csv(write, content, options, texts):
    assert documents(write("a.csv", content), **options) == texts


@pytest.mark.parametrize(
    "name, content, options, message",
    [
        ("a.txt", b"abc\xffdef", {}, "byte 3 is 0xff"),
        ("a.txt", b"a" * 300_000 + b"\n\xe4\xb8", {}, "byte 300001 is 0xe4"),
        ("a.jsonl", b'"ok"\n"\xff"\n', {}, "byte 6, in row 2, is 0xff"),
        ("a.csv", b"text\nok\n\xc3(\n", {}, "byte 8, in row 3, is 0xc3"),
        ("a.txt", "x" * 600_000, {"max_line": 0.3}, "no white space in the 0.3 MB from byte 0"),
        ("a.txt", "ab " * 200_000, {"split_on": "\n\n", "max_line": 0.3}, "in the 0.3 MB from byte 0"),
        ("a.jsonl", '"ok"\n"' + "x" * 400_000 + '"\n', {"max_line": 0.3}, "row 2 .* longer than 0.3 MB"),
        ("a.json", '["ok", "' + "x" * 700_000 + '"]', {"max_line": 0.3}, "item 2 .* longer than 0.3 MB"),
        ("a.csv", "text\n" + '"' + "x\n" * 200_000 + '"\n', {"max_line": 0.3}, "line .* field limit"),
        ("a.jsonl", '"ok"\n{"a": }\n', {}, "row 2 of .* is not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", {}, "row 1 of .* is not JSON"),
        ("a.json", '["ok", ]', {}, "item 2 of .* is not JSON"),
        ("a.json", '["ok" "b"]', {}, "'\"' after item 1, expected ','"),
        ("a.json", '["ok"', {}, "its end after item 1"),
        ("a.json", '["ok"] x', {}, "goes on after its array of 1 items"),
        ("a.jsonl", '{"txt": "ok"}\n', {}, "row 1 of .* has keys txt; expected"),
        ("a.jsonl", "7\n", {}, "row 1 of .* has int"),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": "a"}, {"role": "cat", "content": "b"}]}\n',
            {},
            "message 2 in row 1 of .* role 'cat'",
        ),
        ("a.jsonl", '{"prompt": 1, "completion": "b"}\n', {}, "message 1 in row 1 of .* type int"),
        ("a.csv", "text,b\nx,1\ny\n", {}, "line 3 of .* has 1 columns, expected 2"),
        ("a.csv", 'text\n"x" y\n', {}, "line 2 of .* is not CSV"),
        ("a.csv", "a,b\n1,2\n", {}, "no column of .* holds text"),
    ],
)
def test_what_cannot_be_read_is_named(write, name, content, options, message):
    with pytest.raises(InputError, match=message):
        documents(write(name, content), **options)


def test_replacing_what_is_not_utf_8(write):
    assert documents(write("a.txt", b"abc\xffdef"), errors="replace") == ["abc\ufffddef"]
    assert documents(write("a.jsonl", b'"a\xff"\n'), errors="replace") == ["a\ufffd"]


def test_a_missing_column_is_named(write):
    with pytest.raises(UsageError, match="no column 'c'; it has a, b"):
        documents(write("a.csv", "a,b\nx,y\n"), column="c")


def test_files_folders_and_patterns(write, tmp_path):
    for name in ("f/b.txt", "f/g/a.md", "f/.hidden.txt", "f/picture.png", "c.txt"):
        write(name, "x")
    relative = [os.path.relpath(path, tmp_path) for path in text_files([f"{tmp_path}/c*", tmp_path / "f"])]
    assert relative == ["c.txt", "f/b.txt", "f/g/a.md"]
    for nothing, message in (("none*", "no file matches"), ("empty", "no text below")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            text_files(tmp_path / nothing)


def test_a_file_that_is_too_large_is_refused(write):
    with pytest.raises(InputError, match="a.txt has 2.0 KB, more than the 1e-06 GB"):
        total_bytes([write("a.txt", "x" * 2000)], Reading(max_file_size=1e-6))


def test_conversations():
    assert conversation({"prompt": "hi", "completion": "ho"}, "") == [("User: hi", False), (" Assistant:", False), (" ho", True)]
    many = conversation(
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"},
            ]
        },
        "",
    )
    assert "".join(text for text, _ in many) == "System: s User: a Assistant: b User: c Assistant: d"
    assert [text for text, answer in many if answer] == [" b", " d"]
    spelled = conversation("User: a Assistant: b User: c Assistant: d </s>", "")
    assert "".join(text for text, _ in spelled) == "User: a Assistant: b User: c Assistant: d"
    assert [text for text, answer in spelled if answer] == [" b", " d"]
    with pytest.raises(InputError, match="row 1 has no answer"):
        conversation("just text", "row 1")


# ---- encoding and writing


def test_processes_give_the_same_ids_in_order(write, stories):
    files = [write("a.txt", random_text(900_000, alphabet="the cat \n.,é")), write("b.txt", random_text(400_000, 1, "dog \n"))]
    total = total_bytes(files, Reading())
    one, two = (list(encode_pieces(read_pieces(files, Reading(), 1_000_000), stories, total, workers)) for workers in (1, 2))
    assert [(part, at) for part, _, at in one] == [(part, at) for part, _, at in two] and len(one) > 3
    assert all(np.array_equal(a, b) for (_, a, _), (_, b, _) in zip(one, two))
    joined = {part: np.concatenate([x for p, x, _ in one if p == part]).tolist() for part in ("train", "val")}
    assert joined["train"].count(stories.eot) == 2 and joined["train"][0] == stories.eot
    assert stories.decode(joined["train"] + joined["val"]).replace("<|endoftext|>", "") == "".join(
        Path(file).read_text(encoding="utf-8") for file in files
    )


def test_an_error_in_a_worker_names_the_place(write):
    path = write("a.jsonl", '"abc"\n"abd"\n')
    with pytest.raises(InputError, match="row 2 of .*a.jsonl: "):
        list(encode_pieces(read_pieces([path], Reading()), Tokenizer.make("char", "abc"), 10, 2))


def test_shards_are_split_and_older_files_go(tmp_path, stories):
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


def test_a_failure_leaves_what_was_there(tmp_path, stories):
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


def test_prepare_and_find_again(write, tmp_path):
    text = "".join(f"line {n} of the text\n" for n in range(1000))
    write("book.txt", text)
    done = prepare(tmp_path, "book.txt", "--tokenizer", STORIES, "--shard-tokens", 2000)
    assert "training tokens" in done.stdout and len(list((tmp_path / "data").glob("book_train_*.bin"))) > 1
    listed = train(tmp_path, "--list-datasets")
    assert "0: book\n    Train: data/book_train_[0-9]" in listed.stdout and "Val:   data/book_val.bin" in listed.stdout
    trained = train(tmp_path, "--data", "book", "-x", 1)
    assert trained.returncode == 0 and "vocab_size 4096" in trained.stdout, trained.stderr
    tokenizer = Tokenizer.load(STORIES)
    first = sum((ids(path) for path in sorted((tmp_path / "data").glob("book_train_*.bin"))), [])
    last = ids(tmp_path / "data/book_val.bin")
    assert first[0] == last[0] == tokenizer.eot
    assert tokenizer.decode(first[1:]) + tokenizer.decode(last[1:]) == text
    assert len(tokenizer.decode(first[1:])) == int(0.9 * len(text))


def test_validation_shares_no_document(write, tmp_path):
    write("a.jsonl", "".join(json.dumps({"text": f"document number {n}"}) + "\n" for n in range(200)))
    prepare(tmp_path, "a.jsonl", "--tokenizer", STORIES, "--val-fraction", 0.25)
    tokenizer = Tokenizer.load(STORIES)
    texts = [tokenizer.decode(ids(tmp_path / f"data/a_{part}.bin")).split("<|endoftext|>")[1:] for part in ("train", "val")]
    train, val = map(set, texts)
    assert not train & val and len(train | val) == 200 and 45 <= len(val) <= 55


def test_the_locale_does_not_matter(write, tmp_path):
    write("a.txt", "größer 中 " * 100)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "gpt2c", "prepare", "a.txt", "--tokenizer", "char"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
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
    done = prepare(tmp_path, *words, "--tokenizer", "char", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1) and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("data/.*.tmp"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(write, tmp_path, number, code):
    write("a.txt", random_text(6_000_000, alphabet="once upon a time\n.,"))
    words = ["a.txt", "--tokenizer", STORIES, "--workers", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2c", "prepare", *map(str, words)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not any(path.stat().st_size for path in tmp_path.glob("data/.a.*.tmp/train_0")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code and not err, err
    assert list((tmp_path / "data").iterdir()) == []
    contents = []
    for _ in range(2):
        prepare(tmp_path, *words)
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
    command = [sys.executable, "-m", "gpt2c", "prepare", "big.txt", "--tokenizer", STORIES, "--workers", "2"]
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


# ---- llm.c's layouts


def test_tiny_shakespeare(write, tmp_path):
    sections = [f"section {n}:\nwords and more words\nto the end" for n in range(4000)]
    write("t.txt", "\n\n".join(sections))
    prepare(tmp_path, "t.txt", "--layout", "tinyshakespeare", "--tokenizer", STORIES)
    tokenizer = Tokenizer.load(STORIES)
    expected = []
    for n, section in enumerate(sections):
        expected += [tokenizer.eot, *tokenizer.encode(section + ("\n\n" if n < len(sections) - 1 else ""))]
    assert ids(tmp_path / "data/tiny_shakespeare_val.bin") == expected[:32768]
    assert ids(tmp_path / "data/tiny_shakespeare_train.bin") == expected[32768:]


def test_tiny_stories(write, tmp_path):
    shards = [[{"story": f"  story {n} of {k}\n", "other": n} for n in range(50)] for k in range(3)]
    for k, shard in enumerate(shards):
        write(f"in/data{k:02d}.json", json.dumps(shard))
    prepare(tmp_path, "in", "--layout", "tinystories", "--tokenizer", STORIES)
    tokenizer, found = Tokenizer.load(STORIES), []
    for k, shard in enumerate(shards):
        random.Random(1337 + k).shuffle(shard)
        found.append([i for story in shard for i in (tokenizer.eot, *tokenizer.encode(story["story"].strip()))])
    assert ids(tmp_path / "data/TinyStories_val.bin") == found[0]
    assert ids(tmp_path / "data/TinyStories_train.bin") == found[1] + found[2]


def test_hellaswag_and_mmlu(write, tmp_path):
    tokenizer = Tokenizer.load(STORIES)
    write(
        "h.jsonl",
        "".join(
            json.dumps({"ctx": f"A man {n}", "endings": ["sits", "runs far", "eats", "is"], "label": n}) + "\n" for n in range(4)
        ),
    )
    with open(tmp_path / "m.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["1+1?", "1", "2", "3", "4", "B"], ["a, b\nc?", "x", "y", "z", "w", "D"]])
    assert "4 examples" in prepare(tmp_path, "h.jsonl", "--layout", "hellaswag", "--tokenizer", STORIES).stdout
    prepare(tmp_path, "m.csv", "--layout", "mmlu", "--tokenizer", STORIES)
    examples = read_choices(tmp_path / "data/hellaswag_val.bin")
    assert [e.label for e in examples] == [0, 1, 2, 3]
    assert examples[2].context == tokenizer.encode("A man 2") and examples[2].answers[1] == tokenizer.encode(" runs far")
    words = np.fromfile(tmp_path / "data/hellaswag_val.bin", "<u2", offset=1024)
    header = np.fromfile(tmp_path / "data/hellaswag_val.bin", "<i4", 256)
    n = len(tokenizer.encode("A man 0"))
    assert words[0] == 65535 and words[2:6].tolist() == [0, 0, 4, n] and words[words[1] // 2] == 65535
    assert header[:3].tolist() == [20240522, 1, 4] and header[3] >= words[1] and not header[4:].any()
    questions = read_choices(tmp_path / "data/mmlu_val.bin")
    assert [q.label for q in questions] == [1, 3]
    assert tokenizer.decode(questions[1].context) == "Question: a, b\nc?\n\nAnswer:"
    assert tokenizer.decode(questions[1].answers[0]) == " x"


@pytest.mark.parametrize(
    "layout, name, content, message",
    [
        ("hellaswag", "a.jsonl", '{"ctx": "a", "endings": ["b"], "label": 1}\n', "row 1 of .* no example of HellaSwag"),
        ("hellaswag", "a.jsonl", '{"ctx": "a", "endings": [1], "label": 0}\n', "row 1 of .* no example of HellaSwag"),
        ("mmlu", "a.csv", "q,1,2,3,4,A\nq,1,2,3,4,E\n", "line 2 of .* no example of MMLU"),
        ("tinystories", "a.json", '[{"text": "x"}]', "item 1 of .* has no story"),
    ],
)
def test_records_that_do_not_fit_their_layout(write, tmp_path, layout, name, content, message):
    write(name, content)
    done = prepare(tmp_path, name, "--layout", layout, "--tokenizer", STORIES, check=False)
    assert done.returncode == 4 and re.search(message, done.stderr), done.stderr
    assert not list((tmp_path / "data").glob("*_val.bin"))


def test_damaged_choice_files(tmp_path):
    path = tmp_path / "c.bin"
    write_choices(path, [Example([1, 2], [[3], [4, 5], [6], [7]], 2), Example([9], [[3], [4], [6], [7]], 0)])
    good = path.read_bytes()
    assert read_choices(path)[0] == ([1, 2], [[3], [4, 5], [6], [7]], 2)
    for at in range(1024, len(good), 2):  # structure is checked; ids may be any
        for value in (0, 65534, 65535):
            path.write_bytes(good[:at] + value.to_bytes(2, "little") + good[at + 2 :])
            try:
                examples = read_choices(path)
            except InputError:
                continue
            assert [len(e.answers) for e in examples] == [4, 4]
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(InputError):
            read_choices(path)
    path.write_bytes(good + b"\0\0")
    with pytest.raises(InputError, match="after its last example"):
        read_choices(path)


# ---- the cache


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


# ---- training straight from text


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
    made = train(tmp_path, "--data", "a.txt", "--val-data", "b.txt", "--tokenizer", "char", "-x", 1, check=False)
    assert made.returncode == 4 and "no file matches 'b.txt'" in made.stderr
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
    wrong = train(tmp_path, *words, "--order", other, "-x", 12, "-o", "again", "-y", 1, check=False)
    assert wrong.returncode == 2 and "position is one of another --order" in wrong.stderr


def test_a_text_shorter_than_a_window(write, tmp_path, cache):
    done = train(tmp_path, "--trainingText", "hello world", "--tokenizer", "char", "-x", 2, "-t", 64, "-o", "out")
    assert "warning: inline text has 9 tokens to train on: a window has 4 tokens instead of 64" in done.stderr
    assert len(losses(tmp_path / "out")) == 2
    done = train(tmp_path, "--trainingText", "hello world", "--tokenizer", "char", "-x", 2, "-t", 64, "--order", "sequential")
    assert "a window has 8 tokens" in done.stderr
    assert "a batch has 1 windows instead of 4" in done.stderr
    for text in ("a", "ab"):
        short = train(tmp_path, "--trainingText", text, "--tokenizer", "char", check=False)
        assert short.returncode == 4, short.stderr
        assert short.stderr.count("\n") == 1 and ("expected at least 2" in short.stderr or "no text to train on" in short.stderr)


def test_training_on_answers(write, tmp_path, cache):
    lines = [{"prompt": f"what is {n}?", "completion": f"{n} is a number"} for n in range(30)]
    write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    words = ["--data", "a.jsonl", "--mask-prompt", "--tokenizer", STORIES, "-x", 3, "-b", 4]
    done = train(tmp_path, *words, "-t", 32)
    assert "27 conversations to train on, 3 for validation" in done.stdout and "longer than" not in done.stdout
    short = train(tmp_path, *words, "-t", 16)
    assert "27 of 27 conversations are longer than 16 tokens and cut there" in short.stdout
    none = train(tmp_path, *words, "-t", 2, check=False)
    assert none.returncode == 4 and "none of the 27 conversations has an answer within T + 1 = 3 tokens" in none.stderr
    write("b.txt", "text")
    wrong = train(tmp_path, "--data", "b.txt", "--mask-prompt", "--tokenizer", STORIES, check=False)
    assert wrong.returncode == 4 and "b.txt is no file of items" in wrong.stderr


@pytest.mark.parametrize(
    "family, size, vocab_size, first",
    [
        ("chargpt", ["--num-layers", "1"], 13, 1),  # 11 characters and two special tokens, one of them before the text
        ("mingru", ["--dim", "16", "--depth", "1"], 11, 0),
    ],
)
def test_other_families_train_straight_from_text(write, tmp_path, cache, family, size, vocab_size, first):
    write("a.txt", "the cat sat on the mat. " * 200)
    command = [
        sys.executable,
        "-m",
        "gpt2c.train",
        "--model",
        family,
        "--data",
        "a.txt",
        "--tokenizer",
        "char",
        "-e",
        "scratch",
        "-x",
        "3",
        "-s",
        "0",
        "-t",
        "32",
        "-o",
        "out",
        *size,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(losses(tmp_path / "out")) == 3, done.stderr
    assert f"vocab_size {vocab_size}," in done.stdout
    found = subprocess.run(
        [sys.executable, "-m", "gpt2c", "eval", "out/ckpt_00000003.safetensors", "--data", "a.txt", "-t", "32"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout.startswith("loss ") and f"({4799 + first:,} tokens)" in found.stdout, found.stderr
