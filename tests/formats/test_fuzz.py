"""Damaged files of every format: they are read, or refused in one sentence, at no cost beyond their size.

GPT2C_FUZZ says how many files are tried on each reader; the same ones each time. tests/formats/fuzz.py tries others, for longer.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from fuzz import Fuzzer, Reader, campaign
from make_corpus import CORPUS
from readers import READERS

from gpt2c.errors import Gpt2cError, InputError

TRIES = int(os.environ.get("GPT2C_FUZZ", 10))
LENIENT = "metrics", "samples", "log", "text"  # of which almost anything is one, or has some lines that are
readers = pytest.mark.parametrize("name", READERS)


def tried(reader, tmp_path, seed=0, tries=TRIES):
    fuzzer = Fuzzer(reader, CORPUS, tmp_path, seed)
    return fuzzer.run(lambda: fuzzer.tries < tries)


@readers
def test_damaged_files(name, tmp_path):
    fuzzer = tried(READERS[name], tmp_path)
    assert not fuzzer.findings
    assert fuzzer.refused > TRIES // 4 or name in LENIENT


@readers
def test_sound_files_are_read_and_what_was_found_once_is_not_found_again(name, tmp_path):
    reader, path = READERS[name], tmp_path / READERS[name].seeds[0]
    for seed in reader.seeds:
        path.write_bytes((CORPUS / seed).read_bytes())
        reader.read(path)
    fuzzer = Fuzzer(reader, CORPUS, tmp_path)
    for found in sorted((CORPUS / "found" / name).glob("*")):
        fuzzer.attempt(found.read_bytes())
        assert not fuzzer.findings, found


def test_findings_are_those_of_a_reader():
    assert {folder.name for folder in (CORPUS / "found").glob("*")} <= set(READERS)


@pytest.mark.parametrize(
    "name", ["checkpoint", "llmc", "debug-state", "json", "gguf", "randygpt", "tokenizer", "tokenizer-llmc", "tokens", "choices"]
)
def test_every_prefix_of_a_small_file(name, tmp_path):
    """However short: a file that was cut is refused, whatever it is, unless it is still a shorter file of its kind."""
    reader, path = READERS[name], tmp_path / READERS[name].seeds[0]
    whole = (CORPUS / reader.seeds[0]).read_bytes()
    for size in [*range(0, min(len(whole), 80)), *range(80, len(whole), 97)]:
        path.write_bytes(whole[:size])
        with pytest.raises(Gpt2cError):
            reader.read(path)


# ---- what the fuzzer finds


def planted(path):
    """A reader with a fault behind two conditions."""
    data = path.read_bytes()
    if b"99" in data:
        if b'"' not in data[:2]:
            raise KeyError("planted")
    return data


def test_what_reaches_a_new_line_is_damaged_further_until_it_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "PACKAGE", str(Path(__file__).parent))
    fuzzer = Fuzzer(Reader(planted, ("metrics.jsonl",), fuzz.LINES), CORPUS, tmp_path)
    fuzzer.run(lambda: not fuzzer.findings and fuzzer.tries < 5000)
    assert list(fuzzer.findings) == ["KeyError in test_fuzz.py, planted: 'planted'"]
    assert len(fuzzer.pool) > 1 and all(b"99" not in data for data in fuzzer.pool[:1])
    (found,) = fuzzer.findings.values()
    (tmp_path / "again").write_bytes(found)
    with pytest.raises(KeyError):
        planted(tmp_path / "again")


def gone(path):
    raise SystemExit(3)


def endless(path):
    while True:
        pass


def wordy(path):
    raise InputError("two\nlines")


def greedy(path):
    bytearray(2**22)


@pytest.mark.parametrize(
    "read, wrong",
    [
        (gone, "SystemExit in a reader: N"),
        (endless, "TooLong in a reader: "),
        (wordy, "not one sentence: two\nlines"),
        (greedy, "N,N,N bytes of memory"),
    ],
)
def test_what_is_a_finding(read, wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    assert list(tried(Reader(read, ("config.toml",)), tmp_path, tries=1).findings) == [wrong]


def test_a_file_that_ends_the_process_is_kept(tmp_path, capfd):
    def fatal(path):
        if path.read_bytes()[:1] != b"m":
            os.kill(os.getpid(), signal.SIGKILL)

    campaign("config", Reader(fatal, ("config.toml",)), CORPUS, 0.005, 0, tmp_path / "out")
    found = list((tmp_path / "out/config").glob("*.toml"))
    assert found and all(path.read_bytes()[:1] != b"m" for path in found)
    assert "the process ended" in capfd.readouterr().out


def test_the_program_says_what_it_tried(tmp_path):
    words = [sys.executable, fuzz.__file__, "hellaswag", "--minutes", "0.005", "--seed", "7", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (
        done.stdout.startswith("hellaswag, seed 7: ") and done.stdout.endswith("; 0 findings\n") and not list(tmp_path.iterdir())
    )
