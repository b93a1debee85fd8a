"""Token files, the order of batches, saved positions, and finding data sets.

Where tokens are their own global index, a batch says by itself which part of which shard it came from.
"""

import os
import struct

import numpy as np
import pytest

from gpt2c.data import (
    DataLoader,
    DocumentWindows,
    Lanes,
    RandomWindows,
    choose_dataset,
    find_datasets,
    list_datasets,
    read_shard,
    write_shard,
)
from gpt2c.data import shards as shard_files
from gpt2c.errors import InputError, ResourceError, UsageError
from gpt2c.support.rng import Mt19937


def raw(path, *ints, body=b"", size=1024):
    """A file with these int32 at the start of a header of `size` bytes, then `body`."""
    path.write_bytes(struct.pack(f"<{len(ints)}i", *ints).ljust(size, b"\0") + body)
    return path


@pytest.fixture
def shards(tmp_path):
    """4 shards of 140 tokens; the value of a token is its index over all of them."""
    for k in range(4):
        write_shard(tmp_path / f"shard_{k}.bin", np.arange(140 * k, 140 * (k + 1)))
    return str(tmp_path / "shard_*.bin")


# ---- shards


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


# ---- batches


def epoch(loader):
    return [loader.next_batch() for _ in range(loader.num_batches)]


def test_one_process(shards):
    B, T = 4, 8  # windows of 32 tokens, 4 in a shard: (140 - 1) // 32
    loader = DataLoader(shards, B, T)
    assert (loader.num_tokens, loader.num_batches, len(loader.paths)) == (560, 16, 4)
    for _ in range(2):  # the second epoch is the first again
        for k, (x, y) in enumerate(epoch(loader)):
            first = 140 * (k // 4) + 32 * (k % 4)
            assert x.dtype == y.dtype == np.int32
            assert np.array_equal(x, np.arange(first, first + 32).reshape(B, T))
            assert np.array_equal(y, x + 1)


def test_reset_goes_back_to_the_start(shards):
    loader = DataLoader(shards, 4, 8)
    first = loader.next_batch()
    for _ in range(6):
        loader.next_batch()
    loader.reset()
    assert np.array_equal(loader.next_batch(), first)


def test_batches_are_independent_arrays(shards):
    loader = DataLoader(shards, 4, 8)
    x, y = loader.next_batch()
    y[:] = -1
    kept = x.copy()
    loader.next_batch()
    assert np.array_equal(x, kept) and kept.min() == 0


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_out_every_window_once(shards, world, shuffle):
    B, T = 2, 8
    loaders = [DataLoader(shards, B, T, rank, world, shuffle) for rank in range(world)]
    per_shard = 139 // (world * B * T) * world * B * T  # tokens of a shard that are inputs in an epoch
    expected = np.concatenate([np.arange(140 * k, 140 * k + per_shard) for k in range(4)])
    for _ in range(2):
        batches = [batch for loader in loaders for batch in epoch(loader)]
        seen = np.concatenate([x.ravel() for x, _ in batches])
        assert np.array_equal(np.sort(seen), expected)
        assert all(np.array_equal(y, x + 1) for x, y in batches)


def test_rank_reads_its_part_of_each_window(shards):
    loader = DataLoader(shards, 2, 8, rank=2, world=3)
    starts = [int(x[0, 0]) for x, _ in epoch(loader)]
    assert starts == [140 * k + 48 * i + 32 for k in range(4) for i in range(2)]


def test_shuffled_order_is_drawn_as_llm_c_draws_it(shards):
    """Per epoch the shard order is permuted in place; a shard's windows are ordered when it is opened."""
    for rank in range(2):
        loader = DataLoader(shards, 1, 10, rank, world=2, shuffle=True)  # 6 windows of 20 in a shard
        rng, order, expected = Mt19937(42 + rank), np.arange(4), []
        for _ in range(3):
            order = order[rng.random_permutation(4)]
            expected += [140 * k + 20 * i + 10 * rank for k in order for i in rng.random_permutation(6)]
        starts = [int(x[0, 0]) for _ in range(3) for x, _ in epoch(loader)]
        assert starts == expected
        assert starts[:24] != starts[24:48]


def test_known_shuffled_order(shards):
    """Printed by llm.c's own loader over these files."""
    loader = DataLoader(shards, 4, 8, shuffle=True)
    assert [int(x[0, 0]) for _ in range(2) for x, _ in epoch(loader)] == [
        236,
        172,
        140,
        204,
        32,
        96,
        64,
        0,
        484,
        420,
        516,
        452,
        376,
        312,
        280,
        344,
        280,
        344,
        312,
        376,
        96,
        64,
        32,
        0,
        420,
        484,
        452,
        516,
        140,
        204,
        236,
        172,
    ]


def test_one_shard_draws_no_shard_order(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(101))
    starts = [int(x[0, 0]) for x, _ in epoch(DataLoader(tmp_path / "a.bin", 1, 10, shuffle=True))]
    assert starts == (10 * Mt19937(42).random_permutation(10)).tolist()


def test_files_as_pattern_path_or_list(tmp_path, shards):
    paths = [tmp_path / "shard_2.bin", str(tmp_path / "shard_0.bin")]
    loader = DataLoader(paths, 1, 100)
    assert [int(x[0, 0]) for x, _ in epoch(loader)] == [280, 0]  # a list keeps its order
    assert DataLoader(shards, 1, 100).paths == [str(tmp_path / f"shard_{k}.bin") for k in range(4)]
    os.rename(paths[0], tmp_path / "shard_[2].bin")  # a file of that very name is not taken for a pattern
    assert DataLoader(tmp_path / "shard_[2].bin", 1, 100).next_batch()[0][0, 0] == 280
    for nothing in (str(tmp_path / "none_*.bin"), str(tmp_path / "missing.bin"), []):
        with pytest.raises(InputError, match="no file matches"):
            DataLoader(nothing, 1, 100)


def test_a_shard_must_hold_one_window(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(65))
    assert DataLoader(tmp_path / "a.bin", 2, 16, world=2).num_batches == 1
    with pytest.raises(InputError, match=r"a.bin has 65 tokens, but .* = 67; .* at most 32"):
        DataLoader(tmp_path / "a.bin", 1, 33, world=2)
    with pytest.raises(InputError, match=r"a.bin has 65 tokens, but .* = 66; .* at most 64"):
        DataLoader(tmp_path / "a.bin", 5, 13)


@pytest.mark.parametrize("name, value", [("B", 0), ("T", 0), ("world", 0), ("rank", 1), ("rank", -1)])
def test_impossible_settings(shards, name, value):
    with pytest.raises(UsageError, match=f"{name} = {value}"):
        DataLoader(shards, **{"B": 1, "T": 8, name: value})


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("done", [0, 1, 4, 7, 16, 21])  # 4 windows in a shard, 16 in an epoch
def test_restore_continues_with_identical_batches(shards, shuffle, done):
    loader = DataLoader(shards, 4, 8, shuffle=shuffle)
    for _ in range(done):
        loader.next_batch()
    state = loader.state()
    expected = [loader.next_batch() for _ in range(40)]  # reading on must not change what was saved
    other = DataLoader(shards, 4, 8, shuffle=shuffle)
    other.next_batch()
    other.restore({name: np.asarray(value) for name, value in state.items()})  # as a checkpoint gives it back
    assert np.array_equal([other.next_batch() for _ in range(40)], expected)


@pytest.mark.parametrize("name, value", [("B", 2), ("T", 4), ("rank", 1), ("world", 3), ("shuffle", True)])
def test_restore_refuses_other_settings(shards, name, value):
    settings = {"B": 4, "T": 8, "rank": 0, "world": 2, "shuffle": False}
    state = DataLoader(shards, **settings).state()
    with pytest.raises(UsageError, match=f"{name} = {int(settings[name])}, this run has {int(value)};"):
        DataLoader(shards, **settings | {name: value}).restore(state)


def test_restore_refuses_other_data(tmp_path, shards):
    state = DataLoader(shards, 4, 8).state()
    with pytest.raises(UsageError, match="num_tokens = 560, this run has 140;"):
        DataLoader(tmp_path / "shard_0.bin", 4, 8).restore(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"shard": 4},
        {"shard": -1},
        {"sample": 5},
        {"sample": -1},
        {"shard_order": np.array([0, 1, 1, 3])},
        {"shard_order": np.arange(3)},
        {"rng": np.zeros(3, np.uint32)},
    ],
)
def test_restore_refuses_a_damaged_position(shards, damage):
    loader = DataLoader(shards, 4, 8)
    with pytest.raises(InputError, match="damaged"):
        loader.restore(loader.state() | damage)


def test_a_shard_that_changes_during_the_run(tmp_path, shards):
    loader = DataLoader(shards, 4, 8)
    write_shard(tmp_path / "shard_1.bin", np.arange(50))
    with pytest.raises(InputError, match="shard_1.bin changed during the run from 140 to 50 tokens"):
        epoch(loader)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: DataLoader(path, 2, 8),
        lambda path: RandomWindows(path, 2, 8),
        lambda path: DocumentWindows(path, 2, 8, separator=0),
        lambda path: Lanes(path, 2, 8, chunks=4),
    ],
    ids=["DataLoader", "RandomWindows", "DocumentWindows", "Lanes"],
)
def test_a_shard_that_is_cut_while_it_is_read(tmp_path, make):
    """By less than a page here: then its end would be zeros. By more, and touching it would end the process."""
    path = tmp_path / "a.bin"
    write_shard(path, np.arange(200))
    loader = make(path)
    loader.next_batch()
    os.truncate(path, 1124)
    with pytest.raises(InputError, match=r"a.bin has 1124 bytes, but had 1424 when it was opened"):
        loader.next_batch()


def test_offsets_beyond_4_gib(tmp_path):
    path, count = tmp_path / "big.bin", 2**31 - 1
    raw(path, 20240520, 1, count)
    try:
        os.truncate(path, 1024 + 2 * count - 32)
        with open(path, "ab") as file:
            file.write(struct.pack("<16H", *range(100, 116)))
    except OSError:
        pytest.skip("this file system has no room for a sparse file")
    if os.stat(path).st_blocks * 512 > 2**20:
        pytest.skip("this file system has no sparse files")
    loader = DataLoader(path, 1, 4)
    assert (loader.num_tokens, loader.num_batches) == (count, (count - 1) // 4)
    loader.restore(loader.state() | {"sample": loader.num_batches - 1})
    x, y = loader.next_batch()  # the last window starts at token 2**31 - 8, 7 before the end
    assert x.tolist() == [[109, 110, 111, 112]] and y.tolist() == [[110, 111, 112, 113]]
    assert loader.next_batch()[0].tolist() == [[0, 0, 0, 0]]


# ---- discovery


@pytest.fixture
def tree(tmp_path):
    """`tree(relative path)` writes a small shard below the folder `tree.root`."""
    root = tmp_path / "data"
    root.mkdir()

    def make(relative, dtype=None):
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, [1, 2, 3], dtype)
        return str(path)

    make.root = str(root)
    return make


def test_discovery_is_recursive_and_sorted(tree):
    for relative in (
        "b_train.bin",
        "b_val.bin",
        "z/y/a_train.bin",
        "z/a_val.bin",
        "c/c_train.bin",
        "c/_train.bin",
        "c/d_training.bin",
    ):
        tree(relative)
    os.mkdir(os.path.join(tree.root, "folder_train.bin"))
    found = find_datasets(tree.root)
    assert [(d.name, os.path.relpath(d.train, tree.root)) for d in found] == [
        ("a", "z/y/a_train.bin"),
        ("b", "b_train.bin"),
        ("c", "c/c_train.bin"),
    ]
    assert [d.val for d in found] == [None, os.path.join(tree.root, "b_val.bin"), None]  # only beside it
    assert find_datasets(os.path.join(tree.root, "missing")) == []


def test_a_name_used_twice_gets_its_folder(tree):
    for relative in ("a_train.bin", "x/a_train.bin", "y/z/a_train.bin", "y/b_train.bin"):
        tree(relative)
    assert [d.name for d in find_datasets(tree.root)] == ["a", "x/a", "y/z/a", "b"]


def test_links(tree, tmp_path):
    target = tree("sub/a_train.bin")
    os.symlink(target, os.path.join(tree.root, "linked_train.bin"))
    os.symlink(os.path.join(tree.root, "gone"), os.path.join(tree.root, "broken_train.bin"))
    os.symlink(tree.root, os.path.join(tree.root, "sub", "loop"))
    (tmp_path / "elsewhere").mkdir()
    write_shard(tmp_path / "elsewhere" / "b_train.bin", [1])
    os.symlink(tmp_path / "elsewhere", os.path.join(tree.root, "outside"))
    os.symlink(tmp_path / "elsewhere", os.path.join(tree.root, "outside_again"))
    found = find_datasets(tree.root)
    assert [d.name for d in found] == ["a", "b", "linked"]
    assert found[1].train == f"{tree.root}/outside/b_train.bin"


def test_tokenizer_lookup(tree, tmp_path, monkeypatch):
    """The nearest one wins: its own, then GPT-2's beside it, in the root, above it, in the current folder."""
    tree("sub/a_train.bin")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert find_datasets(tree.root)[0].tokenizer is None
    for path in (
        "gpt2_tokenizer.bin",
        f"{tmp_path}/gpt2_tokenizer.bin",
        f"{tree.root}/gpt2_tokenizer.bin",
        f"{tree.root}/sub/gpt2_tokenizer.bin",
        f"{tree.root}/sub/a_tokenizer.bin",
    ):
        open(path, "w").close()
        assert find_datasets(tree.root)[0].tokenizer == path


def test_only_files_that_may_hold_gpt2_ids_get_gpt2s_tokenizer(tree):
    open(os.path.join(tree.root, "gpt2_tokenizer.bin"), "w").close()
    legacy, empty = tree("legacy_train.bin"), tree("empty_train.bin")
    np.array([50256, 1], "<i4").tofile(legacy)
    open(empty, "w").close()
    tree("short_train.bin")
    tree("wide_train.bin", dtype=np.uint32)
    assert [d.name for d in find_datasets(tree.root) if d.tokenizer] == ["legacy", "short"]


def test_choosing(tree):
    for relative in ("shakespeare_train.bin", "stories_train.bin", "7_train.bin"):
        tree(relative)
    datasets = find_datasets(tree.root)
    assert choose_dataset(datasets, "stories") is datasets[2]
    assert choose_dataset(datasets, "0") is datasets[0]
    assert choose_dataset(datasets, "2") is datasets[2]
    assert choose_dataset(datasets, "7") is datasets[0]  # a name comes before a number
    assert choose_dataset(datasets, os.path.join(tree.root, ".", "stories_train.bin")) is datasets[2]


def test_choosing_a_file_outside_the_list(tree):
    train, val = tree("sub/a_train.bin"), tree("sub/a_val.bin")
    assert choose_dataset([], train) == ("a", train, val, None)
    assert choose_dataset([], val) == ("a_val.bin", val, None, None)


@pytest.mark.parametrize(
    "choice, message", [("storys", "did you mean stories"), ("-1", "'-1'"), ("2", "there is shakespeare, stories")]
)
def test_choosing_what_is_not_there(tree, choice, message):
    for relative in ("shakespeare_train.bin", "stories_train.bin"):
        tree(relative)
    with pytest.raises(UsageError, match=message):
        choose_dataset(find_datasets(tree.root), choice)
    with pytest.raises(UsageError, match="there is none"):
        choose_dataset([], choice)


def test_listing(tree):
    a, a_val, b = tree("a_train.bin"), tree("a_val.bin"), tree("b/b_train.bin")
    assert (
        list_datasets(find_datasets(tree.root))
        == f"""\
Available datasets:
  0: a
    Train: {a}
    Val:   {a_val}
  1: b
    Train: {b}
    Val:   none"""
    )
