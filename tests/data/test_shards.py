"""Token files: what is in one, what is refused, and what a failed write leaves."""

import os
import struct

import numpy as np
import pytest

from gpt2c.data import DataLoader, read_shard, write_shard
from gpt2c.data import shards as shard_files
from gpt2c.errors import InputError, ResourceError, UsageError


def raw(path, *ints, body=b"", size=1024):
    """A file with these int32 at the start of a header of `size` bytes, then `body`."""
    path.write_bytes(struct.pack(f"<{len(ints)}i", *ints).ljust(size, b"\0") + body)
    return path


def test_uint16_layout(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, [0, 1, 50256])
    assert path.read_bytes()[:1024] == struct.pack("<3i", 20240520, 1, 3).ljust(1024, b"\0")
    assert path.read_bytes()[1024:] == struct.pack("<3H", 0, 1, 50256)
    shard = read_shard(path)
    assert shard.magic == 20240520 and shard.tokens.tolist() == [0, 1, 50256]
    with pytest.raises(ValueError, match="read-only"):
        shard.tokens[0] = 5


def test_uint32_where_an_id_needs_it_or_on_request(tmp_path):
    path = tmp_path / "a.bin"
    write_shard(path, [1, 65535, 65536])
    assert path.read_bytes()[:1024] == struct.pack("<3i", 20240801, 7, 3).ljust(1024, b"\0")
    assert path.read_bytes()[1024:] == struct.pack("<3I", 1, 65535, 65536)
    assert read_shard(path).tokens.tolist() == [1, 65535, 65536]
    write_shard(path, [65535])
    assert read_shard(path).magic == 20240520
    write_shard(path, [3], dtype=np.uint32)
    assert read_shard(path).magic == 20240801


def test_headerless_int32(tmp_path):
    path = tmp_path / "a.bin"
    np.array([50256, 0, 7], "<i4").tofile(path)
    shard = read_shard(path)
    assert shard.magic is None and shard.tokens.tolist() == [50256, 0, 7]
    x, y = DataLoader(path, B=1, T=2).next_batch()
    x[0, 1] += 1  # the caller's own, not the mapped file
    assert x.tolist() == [[50256, 1]] and y.tolist() == [[0, 7]]


@pytest.mark.parametrize("bad, vocab_size, highest", [(50257, None, 50256), (-1, None, 50256), (9, 9, 8)])
def test_headerless_ids_out_of_range(tmp_path, bad, vocab_size, highest):
    np.array([5, bad], "<i4").tofile(tmp_path / "a.bin")
    with pytest.raises(InputError, match=f"a.bin .* id {bad} at position 1, expected .* 0 to {highest};"):
        read_shard(tmp_path / "a.bin", vocab_size)


def test_headerless_ids_of_a_larger_vocabulary(tmp_path):
    np.array([5, 50257], "<i4").tofile(tmp_path / "a.bin")
    assert read_shard(tmp_path / "a.bin", 50258).tokens.tolist() == [5, 50257]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("at", [0, 9, 10, 24])
def test_the_scan_finds_one_bad_id(tmp_path, monkeypatch, dtype, at):
    monkeypatch.setattr(shard_files, "SCAN", 10)  # so that 25 tokens are three pieces, the last one short
    tokens = np.full(25, 99)
    tokens[at] = 100
    write_shard(tmp_path / "a.bin", tokens, dtype)
    assert len(read_shard(tmp_path / "a.bin", 101).tokens) == 25
    for opened in (read_shard, lambda path, vocab_size: DataLoader(path, 1, 1, vocab_size=vocab_size)):
        with pytest.raises(InputError, match=f"a.bin .* id 100 at position {at}, expected ids from 0 to 99;"):
            opened(tmp_path / "a.bin", 100)


@pytest.mark.parametrize("vocab_size, dtype", [(65536, "u2"), (65537, "u4")])
def test_a_shard_that_grows_has_room_for_every_id_of_its_vocabulary(tmp_path, vocab_size, dtype):
    writer = shard_files.ShardWriter(tmp_path / "a.bin", vocab_size)
    writer.write([0, vocab_size - 1])
    writer.finish()
    tokens = read_shard(tmp_path / "a.bin", vocab_size).tokens
    assert tokens.dtype == dtype and tokens.tolist() == [0, vocab_size - 1]


def test_the_largest_uint16_id(tmp_path):
    write_shard(tmp_path / "a.bin", [65535])
    assert read_shard(tmp_path / "a.bin", 65536).tokens.tolist() == [65535]
    with pytest.raises(InputError, match="id 65535 at position 0, expected ids from 0 to 65534"):
        read_shard(tmp_path / "a.bin", 65535)


def test_uint32_ids_beyond_int32_are_never_served(tmp_path):
    path = raw(tmp_path / "a.bin", 20240801, 7, 2, body=struct.pack("<2I", 1, 2**31))
    with pytest.raises(InputError, match="id 2147483648 at position 1"):
        read_shard(path)


@pytest.mark.parametrize(
    "ints, body, message",
    [
        ((20240520, 2, 1), b"\0\0", "version 2, expected 1"),
        ((20240801, 1, 1), b"\0\0\0\0", "version 1, expected 7"),
        ((20240520, 1, 0), b"", "declares 0 tokens"),
        ((20240520, 1, -5), b"\0\0", "declares -5 tokens"),
        ((20240520, 1, 3), b"\0" * 5, "has 1029 bytes, but its header declares 3 tokens, which take 1030"),
        ((20240520, 1, 3), b"\0" * 8, "has 1032 bytes, .* 1030"),
        ((20240801, 7, 3), b"\0" * 6, "has 1030 bytes, .* 1036"),
        ((20240520, 1, 2**31 - 1), b"\0\0", "has 1026 bytes, .* 4294968318"),
        ((20240326, 3), b"", "GPT-2 model"),
        ((20240327, 2), b"", "debug state"),
        ((20240328, 2), b"", "tokenizer"),
        ((20240522, 1), b"", "multiple-choice"),
        ((20240527, 1), b"", "optimizer state"),
        ((20240803, 3), b"", "Llama-3 model"),
        ((50257,), b"", "id 50257 at position 0"),
        ((50256,), b"\0\0", "begins with 50256, not with 20240520 or 20240801 .* 1026 bytes"),
    ],
)
def test_broken_and_foreign_files(tmp_path, ints, body, message):
    with pytest.raises(InputError, match=f"a.bin.*{message}"):
        read_shard(raw(tmp_path / "a.bin", *ints, body=body))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<!DOCTYPE html><html>404</html>", "31 bytes begin with b'<!DOCTYPE html><html>404'.*download failed"),
        (b"To be, or not to be", "19 bytes begin with b'To be.*where token ids should be"),
        (b"", "0 bytes begin with b''"),
        (struct.pack("<i", 20240520), "version 0, expected 1"),
        (struct.pack("<3i", 20240520, 1, 4), "has 12 bytes, .* 1032"),
    ],
)
def test_files_shorter_than_a_header(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_shard(tmp_path / "a.bin")


def test_not_a_file(tmp_path):
    for path, problem in [(tmp_path, "not a regular file"), (tmp_path / "missing.bin", "No such file")]:
        with pytest.raises(InputError, match=f"{path}.*{problem}"):
            read_shard(path)


@pytest.mark.parametrize(
    "tokens, dtype, message",
    [
        ([], None, r"shape \(0,\)"),
        ([[1, 2]], None, r"shape \(1, 2\)"),
        ([1.5], None, "float64"),
        ([3, -1], None, "from -1 to 3"),
        ([2**31], None, "from 2147483648 .* 0 to 2147483647"),
        ([65536], np.uint16, "to 65536, but a uint16 shard holds 0 to 65535"),
        ([1], np.int32, "not int32"),
    ],
)
def test_write_refuses(tmp_path, tokens, dtype, message):
    with pytest.raises(UsageError, match=message):
        write_shard(tmp_path / "a.bin", tokens, dtype)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_shard(path, [1, 2, 3])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="cannot write .*a.bin: No space left on device"):
        write_shard(path, [4, 5, 6, 7])
    assert read_shard(path).tokens.tolist() == [1, 2, 3]
    assert os.listdir(tmp_path) == ["a.bin"]
