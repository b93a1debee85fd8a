"""gpt2c train-tokenizer: sources and their order, what it prints and writes, warnings and exit codes."""

from pathlib import Path

import pytest
from programs import call

from gpt2c.commands import train_tokenizer
from gpt2c.errors import InputError, UsageError
from gpt2c.tokenizers.tokenizer import Tokenizer

pytest.importorskip("tokenizers")

TEXT = "the cat sat on the mat.\nthe naïve cat, 😀 again.\n" * 50


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(TEXT, encoding="utf-8", newline="")
    return tmp_path


def run(*words, code=0):
    return call(".", "train-tokenizer", *words, code=code)


def trained():
    return Tokenizer.load("tokenizer.json")


def test_the_documents_command(capsys):
    done = run("--bpeTrainingFile=./corpus.txt", "--bpeVocabSize=300", "--bpeMinFrequency=3", "--bpeSavePath=./out.json")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    made = Tokenizer.load("out.json")
    ids = made.encode(TEXT)
    assert lines[0].startswith(f"bpe tokenizer: {made.vocab_size} tokens from {len(TEXT):,} characters of ./corpus.txt in ")
    size = len(TEXT.encode())
    assert lines[1] == f"compression: {size:,} bytes are {len(ids):,} tokens, {size / len(ids):.2f} bytes per token"
    assert lines[2].startswith("longest tokens: ' naïve', ' again', ' 😀'")
    assert lines[3:] == ["round trip: the same text", "written: ./out.json"]
    assert made.to_json() == Tokenizer.make("bpe", TEXT, vocab_size=300, min_frequency=3).to_json()


def test_the_order_of_sources():
    words = []
    for flag, text in (
        ("--training-text=", "ax ax ax"),
        ("--training-file=", "bx bx bx"),
        ("--bpe-training-text=", "cx cx cx"),
        ("--bpe-training-file=", "dx dx dx"),
    ):
        if flag.endswith("file="):
            Path(text[0]).write_text(text, encoding="utf-8")
        words.append(flag + (text[0] if flag.endswith("file=") else text))
        assert train_tokenizer.main(words) == 0
        assert trained().tokens[256] == text[:2].encode()


def test_files_are_read_whole_and_each_by_itself(monkeypatch):
    Path("a.txt").write_bytes("x é".encode())
    Path("b.txt").write_bytes(b"y z")
    monkeypatch.setattr(train_tokenizer, "BLOCK", 3)  # divides the é
    assert list(train_tokenizer.read_files(["a.txt", "b.txt"])) == ["x é", "y z"]
    chunks = list(train_tokenizer.read_files(["corpus.txt"]))
    assert "".join(chunks) == TEXT and len(chunks) > 100
    assert all(chunk.startswith((" ", "\n")) for chunk in chunks[1:])  # cut before a space: no word is divided
    train_tokenizer.main(["a.txt", "b.txt", "--kind", "char"])
    assert trained().tokens == [b" ", b"x", b"y", b"z", "é".encode()]


def test_a_vocabulary_too_small_warns():
    done = run("--bpeTrainingText=your training corpus here", "--bpeVocabSize=256")
    assert done.returncode == 0 and trained().vocab_size == 257
    assert done.stderr == (
        "gpt2c train-tokenizer: warning: a vocabulary of 256 has no room for a merge: the bytes and special "
        "tokens alone are 257; raise the size\n"
    )


@pytest.mark.parametrize(
    "words, kind, eot",
    [
        (["--kind", "char"], "char", None),
        (["--kind", "char", "--unk", "--special=<|bos|>", "--special=<|eos|>"], "char", b"<|eos|>"),
        (["--kind", "byte"], "byte", None),
        (["--kind=word", "--vocab-size=6"], "word", b"</s>"),
        (["--special", "<|end|>"], "bpe", b"<|end|>"),
    ],
)
def test_kinds(words, kind, eot, capsys):
    assert train_tokenizer.main(["corpus.txt", *words]) == 0
    made, out = trained(), capsys.readouterr().out
    assert made.kind == kind and (None if made.eot is None else made.tokens[made.eot]) == eot
    assert f"{kind} tokenizer: {made.vocab_size:,} tokens" in out
    if kind == "word":
        known = sum(i != 0 for i in made.encode(TEXT)) / len(made.encode(TEXT))
        assert f"words in the vocabulary: {known:.2%}" in out and 0.3 < known < 1
    else:
        assert "round trip: the same text" in out


def test_byte_needs_no_text(capsys):
    assert train_tokenizer.main(["--kind", "byte"]) == 0
    assert trained().vocab_size == 256


def test_a_text_that_does_not_come_back_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "something else")
    assert train_tokenizer.main(["corpus.txt"]) == 1
    assert "NOT the same text" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, error, found",
    [
        ([], UsageError, "name a text"),
        (["nowhere.txt"], InputError, "nowhere.txt"),
        (["empty.txt"], InputError, "empty"),
        (["latin1.txt"], InputError, "byte 4100 is 0xe9"),
        (["cut.txt"], InputError, "byte 1 is 0xc3"),
        (["corpus.txt", "--vocab-size", "0"], UsageError, "expected 1 or more"),
        (["corpus.txt", "--kind", "char", "--vocab-size", "9"], UsageError, "--vocab-size does not apply to a char"),
        (["corpus.txt", "--unk"], UsageError, "--unk does not apply to a bpe"),
        (["corpus.txt", "--kind", "gpt2"], UsageError, "char, byte, word, bpe"),
        (["corpus.txt", "-o", "no/folder/t.json"], UsageError, "no folder"),
    ],
)
def test_errors_leave_nothing_behind(words, error, found, here, monkeypatch):
    Path("empty.txt").touch()
    Path("latin1.txt").write_bytes(b"abc " * 1025 + b"\xe9t\xe9")
    Path("cut.txt").write_bytes(b"a\xc3")
    monkeypatch.setattr(train_tokenizer, "BLOCK", 4096)
    with pytest.raises(error, match=found):
        train_tokenizer.main(words)
    assert {p.name for p in here.iterdir()} == {"corpus.txt", "empty.txt", "latin1.txt", "cut.txt"}


def test_exit_codes():
    run("nowhere.txt", code=4)
    run("--vocab-sise", "3", code=2)
    done = run("--help")
    assert done.returncode == 0 and "--bpe-vocab-size" in done.stdout


def test_an_interrupt_while_reading_leaves_nothing_behind(here, monkeypatch):
    def interrupted(decoder, block, at, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_tokenizer, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer.main(["corpus.txt"])
    assert {p.name for p in here.iterdir()} == {"corpus.txt"}
