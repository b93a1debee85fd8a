"""Text from files of every kind: what is read, where it is cut, and what cannot be read."""

import json
import os

import numpy as np
import pytest
from texts import random_text

from gpt2c.data import text_files
from gpt2c.data.documents import read_pieces, total_bytes
from gpt2c.data.reading import Reading
from gpt2c.errors import InputError, UsageError
from gpt2c.tokenizers.tokenizer import Tokenizer


def documents(path, reading=None, **options):
    """The texts of a file's documents, joined from their pieces."""
    texts = []
    for piece in read_pieces([path], reading or Reading(**options)):
        if piece.first:
            texts.append("")
        texts[-1] += piece.text
    return texts


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
    for column in "c", "0", "3", "9" * 5000:  # Python reads no number of so many digits
        with pytest.raises(UsageError, match=f"no column '{column}'; it has a, b"):
            documents(write("a.csv", "a,b\nx,y\n"), column=column)


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


def test_what_is_taken_of_a_csv_file_that_does_not_say_is_told_once(write, capsys):
    path = write("a.csv", "the first,2\nx,y\n")
    assert documents(path) == documents(path) == ["x"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the column 'the first' is read, the first of 2 with text" in said
    assert "its first row is taken for the names of columns (--no-csv-header if it is data)" in said
    documents(write("b.csv", "text,more\nx,y\n")), documents(write("c.csv", "a,b\nx,y\n"), column="b")
    assert capsys.readouterr().err == ""
