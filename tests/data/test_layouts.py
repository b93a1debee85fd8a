"""llm.c's own data sets, and files of questions with choices."""

import csv
import json
import random
import re

import numpy as np
import pytest
from programs import call
from texts import STORIES, ids, stories_tokenizer

from gpt2c.data import read_choices, write_choices
from gpt2c.data.choices import Example
from gpt2c.errors import InputError


def test_tiny_shakespeare(write, tmp_path):
    sections = [f"section {n}:\nwords and more words\nto the end" for n in range(4000)]
    write("t.txt", "\n\n".join(sections))
    call(tmp_path, "prepare", "t.txt", "--layout", "tinyshakespeare", "--tokenizer", STORIES)
    tokenizer = stories_tokenizer()
    expected = []
    for n, section in enumerate(sections):
        expected += [tokenizer.eot, *tokenizer.encode(section + ("\n\n" if n < len(sections) - 1 else ""))]
    assert ids(tmp_path / "data/tiny_shakespeare_val.bin") == expected[:32768]
    assert ids(tmp_path / "data/tiny_shakespeare_train.bin") == expected[32768:]


def test_tiny_stories(write, tmp_path):
    shards = [[{"story": f"  story {n} of {k}\n", "other": n} for n in range(50)] for k in range(3)]
    for k, shard in enumerate(shards):
        write(f"in/data{k:02d}.json", json.dumps(shard))
    call(tmp_path, "prepare", "in", "--layout", "tinystories", "--tokenizer", STORIES)
    tokenizer, found = stories_tokenizer(), []
    for k, shard in enumerate(shards):
        random.Random(1337 + k).shuffle(shard)
        found.append([i for story in shard for i in (tokenizer.eot, *tokenizer.encode(story["story"].strip()))])
    assert ids(tmp_path / "data/TinyStories_val.bin") == found[0]
    assert ids(tmp_path / "data/TinyStories_train.bin") == found[1] + found[2]


def test_hellaswag_and_mmlu(write, tmp_path):
    tokenizer = stories_tokenizer()
    write(
        "h.jsonl",
        "".join(
            json.dumps({"ctx": f"A man {n}", "endings": ["sits", "runs far", "eats", "is"], "label": n}) + "\n" for n in range(4)
        ),
    )
    with open(tmp_path / "m.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["1+1?", "1", "2", "3", "4", "B"], ["a, b\nc?", "x", "y", "z", "w", "D"]])
    assert "4 examples" in call(tmp_path, "prepare", "h.jsonl", "--layout", "hellaswag", "--tokenizer", STORIES).stdout
    call(tmp_path, "prepare", "m.csv", "--layout", "mmlu", "--tokenizer", STORIES)
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
    done = call(tmp_path, "prepare", name, "--layout", layout, "--tokenizer", STORIES, code=4)
    assert re.search(message, done.stderr), done.stderr
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
