"""The order of batches, and saved positions.

Tokens are their own global index, so a batch says by itself which part of which shard it came from.
"""

import os
import struct

import numpy as np
import pytest

from gpt2c.data import DataLoader, DocumentWindows, Lanes, RandomWindows, write_shard
from gpt2c.errors import InputError, UsageError
from gpt2c.support.rng import Mt19937


@pytest.fixture
def shards(tmp_path):
    """4 shards of 140 tokens; the value of a token is its index over all of them."""
    for k in range(4):
        write_shard(tmp_path / f"shard_{k}.bin", np.arange(140 * k, 140 * (k + 1)))
    return str(tmp_path / "shard_*.bin")


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
    first = [236, 172, 140, 204, 32, 96, 64, 0, 484, 420, 516, 452, 376, 312, 280, 344]
    second = [280, 344, 312, 376, 96, 64, 32, 0, 420, 484, 452, 516, 140, 204, 236, 172]
    assert [[int(x[0, 0]) for x, _ in epoch(loader)] for _ in range(2)] == [first, second]


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
    path.write_bytes(struct.pack("<3i", 20240520, 1, count).ljust(1024, b"\0"))
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
