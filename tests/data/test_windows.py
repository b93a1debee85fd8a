"""Batches from random places, inside documents, and of conversations: what is in them, and going on after a stop."""

import numpy as np
import pytest

from gpt2c.data import DocumentWindows, ItemLoader, Lanes, RandomWindows, write_shard
from gpt2c.data.items import Item
from gpt2c.errors import InputError, UsageError


@pytest.fixture
def shards(tmp_path):
    """3 shards of 50 tokens; the value of a token is its index over all of them."""
    for k in range(3):
        write_shard(tmp_path / f"s_{k}.bin", np.arange(50 * k, 50 * (k + 1)))
    return str(tmp_path / "s_*.bin")


@pytest.fixture
def documents(tmp_path):
    """Documents 0 1.., separated by 0: lengths 3, 12, 2 and 30, each of tokens 100 * document + position."""
    tokens = [t for d, n in enumerate((3, 12, 2, 30)) for t in (0, *range(100 * d + 1, 100 * d + n))]
    write_shard(tmp_path / "d.bin", tokens)
    return str(tmp_path / "d.bin")


def items(*lengths, prompt=3):
    """Items of `prompt` tokens that do not count and answers that make them this long."""
    return [Item(np.arange(100 * k, 100 * k + n, dtype=np.int32), np.arange(n) >= prompt) for k, n in enumerate(lengths)]


def make(kind, shards, documents, **options):
    if kind == "random":
        return RandomWindows(shards, 4, 8, **options)
    if kind == "documents":
        return DocumentWindows(documents, 4, 8, 0, **options)
    return ItemLoader(items(5, 6, 7, 8, 9, 4, 5, 12, 6), 4, 8, shuffle=True, **options)


KINDS = ["random", "documents", "items"]


def test_random_windows_lie_inside_shards_and_everywhere(shards):
    loader = RandomWindows(shards, 4, 8)
    assert (loader.num_tokens, loader.num_batches) == (150, 4)
    starts = set()
    for _ in range(300):
        x, y = loader.next_batch()
        assert x.dtype == y.dtype == np.int32 and x.shape == (4, 8)
        assert (x == x[:, :1] + np.arange(8)).all() and (y == x + 1).all() and (y // 50 == x[:, :1] // 50).all()
        starts |= set(x[:, 0].tolist())
    assert starts == {50 * k + i for k in range(3) for i in range(42)}


def test_the_held_out_part_is_never_served(shards):
    train = RandomWindows(shards, 4, 8, part=(0, 0.6))
    assert train.num_tokens == 90
    assert all((train.next_batch()[1] % 50 < 30).all() for _ in range(200))


def test_document_windows_stay_inside_documents(documents):
    loader = DocumentWindows(documents, 4, 8, 0)
    seen, rows = set(), []
    for _ in range(300):
        x, y = loader.next_batch()
        assert ((y == -1) | (y[:, :] >= 0)).all() and (y[:, 0] >= 0).all()
        for inputs, targets in zip(x, y):
            counted = targets[targets >= 0]
            assert (inputs[1 : len(counted)] == counted[:-1]).all()  # the window runs on
            assert 0 not in counted[:-1] and (targets[len(counted) :] == -1).all() and (inputs[len(counted) :] == 0).all()
            inside = [t for t in (*inputs[: len(counted)].tolist(), *counted.tolist()) if t]
            assert len({t // 100 for t in inside}) == 1
            seen |= set(inside)
            rows.append(inside[0] // 100)
    assert len(seen) == sum((2, 11, 1, 29))
    assert 0.5 < rows.count(3) / len(rows) < 0.75  # 30 of 47 tokens


def test_a_document_at_the_end_of_the_data_has_a_target(tmp_path):
    write_shard(tmp_path / "a.bin", [0, 5, 6, 0])
    loader = DocumentWindows(tmp_path / "a.bin", 8, 4, 0)
    x, y = loader.next_batch()
    assert (x == [0, 5, 6, 0]).all() and (y == [5, 6, 0, -1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_gives_the_same_batches(shards, documents, kind):
    loader = make(kind, shards, documents)
    for _ in range(5):
        loader.next_batch()
    state = loader.state()
    expected = [loader.next_batch() for _ in range(9)]
    assert not np.array_equal(expected[0], expected[1])
    other = make(kind, shards, documents)
    other.restore({name: np.asarray(value) for name, value in state.items()})
    assert np.array_equal([other.next_batch() for _ in range(9)], expected)
    loader.reset()
    assert np.array_equal(loader.next_batch(), make(kind, shards, documents).next_batch())


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_take_the_batches_in_turn(shards, documents, kind):
    one = make(kind, shards, documents)
    many = [make(kind, shards, documents, rank=rank, world=3) for rank in range(3)]
    for _ in range(4):
        for loader in many:
            assert np.array_equal(loader.next_batch(), one.next_batch())


@pytest.mark.parametrize("kind", KINDS)
def test_other_seeds_are_other_batches(shards, documents, kind):
    loaders = [make(kind, shards, documents, seed=seed) for seed in (1, 2)]
    assert not np.array_equal(*([loader.next_batch() for _ in range(2)] for loader in loaders))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"seed": 5}, UsageError, "seed = 5, this run has 1337"),
        ({"B": 9}, UsageError, "B = 9"),
        ({"batch": -1}, InputError, "damaged"),
        ({"num_tokens": 7}, UsageError, "num_tokens = 7"),
    ],
)
def test_restore_refuses(shards, documents, kind, change, error, message):
    loader = make(kind, shards, documents)
    with pytest.raises(error, match=message):
        loader.restore(loader.state() | change)
    with pytest.raises(UsageError, match="another --order"):
        loader.restore({"B": 4, "T": 8})


def test_too_short(tmp_path):
    write_shard(tmp_path / "a.bin", np.arange(9))
    assert RandomWindows(tmp_path / "a.bin", 2, 8).next_batch()[0].tolist() == [list(range(8))] * 2
    with pytest.raises(InputError, match="9 tokens, but a window takes T . 1 = 10"):
        RandomWindows(tmp_path / "a.bin", 2, 9)
    write_shard(tmp_path / "a.bin", [0])
    with pytest.raises(InputError, match="1 tokens, expected at least 2"):
        DocumentWindows(tmp_path / "a.bin", 2, 8, 0)


# ---- conversations


def test_only_answers_count():
    loader = ItemLoader(items(5, 4, 8), 4, 6)
    x, y = loader.next_batch()
    assert x.tolist() == [[0, 1, 2, 3, 0, 0], [100, 101, 102, 0, 0, 0], [200, 201, 202, 203, 204, 205], [0] * 6]
    assert y.tolist() == [[-1, -1, 3, 4, -1, -1], [-1, -1, 103, -1, -1, -1], [-1, -1, 203, 204, 205, 206], [-1] * 6]
    assert (y >= 0).sum() == 2 + 1 + 4 and (loader.cut, loader.dropped, loader.num_batches) == (1, 0, 1)


def test_items_without_an_answer_left_are_dropped_and_counted():
    loader = ItemLoader(items(9, 9, prompt=5) + items(9, prompt=3), 1, 4)
    assert (loader.cut, loader.dropped, loader.num_batches) == (3, 2, 1)
    assert loader.next_batch()[1].tolist() == [[-1, -1, 3, 4]]
    with pytest.raises(InputError, match="none of the 1 conversations"):
        ItemLoader(items(9, prompt=5), 1, 4)


def test_each_epoch_has_every_item_once_in_an_order_of_its_own():
    loader = ItemLoader(items(*[5] * 10), 4, 8, shuffle=True)
    epochs = [np.concatenate([loader.next_batch()[0][:, 0] for _ in range(3)]).tolist() for _ in range(2)]
    assert all(sorted(epoch)[2:] == [100 * k for k in range(10)] for epoch in epochs) and epochs[0] != epochs[1]


def test_lanes_go_on_and_begin_anew(shards):
    loader = Lanes(shards, 4, 8, chunks=5)
    begun = set()
    for _ in range(60):
        assert not loader.continues
        x, y = loader.next_batch()
        begun |= set(x[:, 0].tolist())
        for _ in range(4):
            assert loader.continues and (y == x + 1).all()
            before, (x, y) = x, loader.next_batch()
            assert (x == before + 8).all() and (x // 50 == before // 50).all()
    assert begun == {50 * k + i for k in range(3) for i in range(10)}


def test_lanes_are_shorter_in_a_short_text(shards):
    assert Lanes(shards, 2, 8, chunks=1000).num_batches == 6
    with pytest.raises(InputError, match=r"50 tokens, but a chunk takes T \+ 1 = 51"):
        Lanes(shards, 2, 50, chunks=1)


def test_ranks_have_lanes_of_their_own_and_resume_in_them(shards):
    ranks = [Lanes(shards, 2, 8, chunks=3, rank=rank, world=2) for rank in (0, 1)]
    whole = Lanes(shards, 4, 8, chunks=3)
    for _ in range(4):
        assert (np.concatenate([rank.next_batch()[0] for rank in ranks]) == whole.next_batch()[0]).all()
    other = Lanes(shards, 4, 8, chunks=3)
    other.restore(whole.state())
    assert (other.next_batch()[0] == whole.next_batch()[0]).all()
