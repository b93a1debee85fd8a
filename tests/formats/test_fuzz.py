"""Damaged files of every format: they load, or they are refused with one clear error, at no cost beyond their size.

Each damage follows from a number, so that a failure names what repeats it. GPT2C_FUZZ says how many files of each format
are tried; a nightly run takes 10000.
"""

import json
import os
import random
import signal
import struct
import tracemalloc

import pytest
from make_corpus import CONFIG, CORPUS

from gpt2c.commands.command_line import parse
from gpt2c.data import DataLoader
from gpt2c.errors import Gpt2cError
from gpt2c.formats import native, randygpt
from gpt2c.formats.llmc import load_debug_state
from gpt2c.models.files import load, load_run
from gpt2c.models.registry import make_config
from gpt2c.runs import folder as runs
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

TRIES = int(os.environ.get("GPT2C_FUZZ", 300))
ROOM = 2**20  # bytes beyond the file's own that reading it may take
INTERESTING = [0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, -(2**31), 2**30, 1024]
TEXTS = [b"0", b"-1", b"1e999", b"99999999999999999999", b"null", b"NaN", b'"', b"[", b"{", b"}", b"\\", b"\xff", b"\0", b"\n"]


def read_run(path):
    """A checkpoint, and a run resumed from it."""
    model, run = load_run(path)
    if run and model.config.vocab_size == 5 and model.config.max_seq_len >= 4:
        Trainer(model, DataLoader(CORPUS / "gpt2_shard.bin", B=1, T=4, shuffle=True), None, TrainConfig()).restore(run)


def read_config(path):
    parse(["--config", str(path)], [TrainConfig], "fuzz")


def read_metrics(path):
    os.replace(path, path.with_name("metrics.jsonl"))
    runs.read_metrics(path.parent)


READERS = {
    "run.safetensors": read_run,
    "weights.safetensors": load,
    "model_v3.bin": load,
    "model_v5.bin": load,
    "debug_state.bin": lambda path: load_debug_state(path, make_config("gpt2", CONFIG)),
    "tokenizer.bin": Tokenizer.load,
    "tokenizer.json": Tokenizer.load,
    "gpt2_shard.bin": lambda path: DataLoader(path, B=1, T=4, vocab_size=5),
    "llama_shard.bin": lambda path: DataLoader(path, B=1, T=4, vocab_size=5),
    "legacy_tokens.bin": lambda path: DataLoader(path, B=1, T=4, vocab_size=5),
    "metrics.jsonl": read_metrics,
    "config.toml": read_config,
}


def damaged(whole, number):
    """The `number`-th damage of some bytes: cut, longer, or with bytes, words or pieces changed."""
    rng = random.Random(number)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.4 else rng.randrange(min(len(data), 600) + 1)
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data += rng.randbytes(rng.choice((1, 4, 100)))
        elif kind == 2 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 4:
            data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack("<i", rng.choice(INTERESTING))
        elif kind == 5:
            data[at : at + rng.randrange(20)] = rng.choice(TEXTS) * rng.choice((1, 1, 3, 200))
        elif kind == 6:
            del data[at : at + rng.randrange(1, 30)]
        elif kind == 7:
            data[at:at] = data[at : at + rng.randrange(1, 60)]
        elif digits := [i for i, b in enumerate(data[:4000]) if 48 <= b < 58]:
            data[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
        if not data:
            break
    return bytes(data)


class TooLong(BaseException):
    """A reader did not come back."""


def time_out(*_):
    raise TooLong


def attempt(read, path, data, number):
    """Reads a file with these bytes: (whether it was refused, the bytes that took)."""
    path.write_bytes(data)
    tracemalloc.reset_peak()
    start, refused = tracemalloc.get_traced_memory()[0], False
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        read(path)
    except Gpt2cError as error:
        assert str(error) and "\n" not in str(error).strip(), f"damage {number}: not one sentence: {error}"
        refused = True
    except (Exception, TooLong) as error:
        raise AssertionError(f"damage {number}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return refused, tracemalloc.get_traced_memory()[1] - start


def try_all(read, whole, path, tries, damage=damaged):
    """Reads `tries` damaged files; how many were refused."""
    count = 0
    path.write_bytes(whole)
    read(path)  # and what is imported on the way is there
    before = signal.signal(signal.SIGALRM, time_out)
    tracemalloc.start()
    try:
        for number in range(tries):
            data = damage(whole, number)
            refused, taken = attempt(read, path, data, number)
            if taken > len(data) + ROOM:  # once more: the interpreter's table of strings may have grown, which it does once
                taken = attempt(read, path, data, number)[1]
            assert taken <= len(data) + ROOM, f"damage {number}: {taken:,} bytes for a file of {len(data):,}"
            count += refused
    finally:
        tracemalloc.stop()
        signal.signal(signal.SIGALRM, before)
    return count


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    refused = try_all(READERS[name], (CORPUS / name).read_bytes(), tmp_path / "damaged", TRIES)
    assert refused > TRIES // 4


def sealed(whole, number):
    """A checkpoint with an entry of its metadata damaged and its digest made to fit: damage that was meant."""
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    table, body = json.loads(whole[8:start]), whole[start:]
    metadata = table.pop("__metadata__")
    name = random.Random(number).choice(["config", "run", "tokenizer", "family", "step"])
    metadata[name] = damaged(metadata[name].encode() or b"{}", number).decode("utf-8", "replace")
    del metadata["sha256"]
    metadata["sha256"] = native._digest(table, metadata, [body])
    text = json.dumps({"__metadata__": metadata, **table}).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_checkpoints_that_lie(tmp_path):
    assert try_all(read_run, (CORPUS / "run.safetensors").read_bytes(), tmp_path / "damaged", TRIES, sealed) > TRIES // 4


def test_damaged_files_of_randygpt(tmp_path):
    """The smallest such file has 5 MB: its head and its length are damaged, by a tenth as many tries."""
    from test_rgpt import written

    path = tmp_path / "x.bin"
    written(path, 2)
    whole, rng = path.read_bytes(), random.Random(1)
    randygpt.read(path)
    tracemalloc.start()
    try:
        for number in range(TRIES // 10):
            data = damaged(whole[:24], number) + whole[24 : rng.choice((len(whole), len(whole), rng.randrange(24, 999)))]
            path.write_bytes(data)
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            try:
                randygpt.read(path)
            except Gpt2cError as error:
                assert "\n" not in str(error)
            assert tracemalloc.get_traced_memory()[1] - start <= len(data) + ROOM
    finally:
        tracemalloc.stop()


def test_every_prefix_of_a_small_file(tmp_path):
    """However short: a file that was cut is refused, whatever it is, unless it is still a shorter file of its kind."""
    for name, read in READERS.items():
        whole, path = (CORPUS / name).read_bytes(), tmp_path / "cut"
        for size in [*range(0, min(len(whole), 80)), *range(80, len(whole), 97)]:
            path.write_bytes(whole[:size])
            if name in ("metrics.jsonl", "config.toml", "legacy_tokens.bin"):  # which may end anywhere, or at a line
                try:
                    read(path)
                except Gpt2cError:
                    pass
            else:
                with pytest.raises(Gpt2cError):
                    read(path)
