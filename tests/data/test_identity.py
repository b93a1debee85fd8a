"""How data are known again: by the tokens that are served, and by nothing else."""

import os

import numpy as np
import pytest

from gpt2c.data import DataLoader, DocumentWindows, ItemLoader, Lanes, RandomWindows, identity, write_shard
from gpt2c.data.items import Item
from gpt2c.data.tasks import TASKS, Task, by_position
from gpt2c.errors import InputError

LOADERS = pytest.mark.parametrize("make", [
    lambda files, **how: DataLoader(files, 1, 8, **how),
    lambda files, **how: RandomWindows(files, 1, 8, **how),
    lambda files, **how: DocumentWindows(files, 1, 8, 0, **how),
    lambda files, **how: Lanes(files, 1, 8, 2, **how),
])  # fmt: skip


@pytest.fixture
def shards(tmp_path):
    paths = [str(tmp_path / f"{number}.bin") for number in range(3)]
    for number, path in enumerate(paths):
        write_shard(path, np.arange(100 + number) % 17)
    return paths


def change(path, at):
    """Another token at this place of a file."""
    tokens = np.fromfile(path, "<u2", offset=1024)
    tokens[at] += 1
    write_shard(path, tokens)


@LOADERS
def test_any_token_counts_and_nothing_else(shards, make):
    known = make(shards).identity
    assert [tokens for tokens, _ in known] == [100, 101, 102] and len({digest for _, digest in known}) == 3
    os.utime(shards[0], (1, 1))
    write_shard(shards[1], np.fromfile(shards[1], "<u2", offset=1024), np.uint32)  # in another format
    np.fromfile(shards[2], "<u2", offset=1024).astype("<i4").tofile(shards[2])  # and another one
    assert make(shards).identity == known
    for at in 0, 57, 99:
        change(shards[0], at)
        now = make(shards).identity
        assert now[0] != known[0] and now[1:] == known[1:]
        known = now


@LOADERS
def test_only_what_is_served_counts(shards, make):
    train, val = make(shards[0], part=(0, 0.75)).identity, make(shards[0], part=(0.75, 1)).identity
    assert [train[0][0], val[0][0]] == [75, 25]
    change(shards[0], 75)
    assert make(shards[0], part=(0, 0.75)).identity == train and make(shards[0], part=(0.75, 1)).identity != val


@LOADERS
def test_of_much_data_blocks_are_hashed(shards, make, monkeypatch):
    """Spread evenly, the ends of each file among them."""
    monkeypatch.setattr(identity, "WHOLE", 200)
    monkeypatch.setattr(identity, "BLOCK", 4)
    monkeypatch.setattr(identity, "BLOCKS", 7)  # three in each
    seen = set()
    for at in range(100):
        before = make(shards).identity
        change(shards[0], at)
        if make(shards).identity != before:
            seen.add(at)
    assert seen == {*range(4), *range(48, 52), *range(96, 100)}


def test_blocks_of_short_files(shards, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE", 200)
    before = DataLoader(shards, 1, 8).identity
    change(shards[1], 50)
    assert [a == b for a, b in zip(before, DataLoader(shards, 1, 8).identity)] == [True, False, True]


def test_items_and_which_of_their_tokens_count():
    def loader(*rows, T=4):
        return ItemLoader([Item(np.array(ids, np.int32), np.array(counts, bool)) for ids, counts in rows], 1, T)

    first, second = ([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])
    known = loader(first, second).identity
    assert known[0][0] == 5 and loader(first, second, T=1).identity == known
    others = [
        loader(second, first), loader(first), loader(([1, 2, 7], [0, 1, 1]), second), loader(([1, 2, 3], [0, 0, 1]), second),
        loader(([1, 2], [0, 1]), ([3, 4, 5], [1, 0, 1])),
    ]  # fmt: skip
    assert known not in [other.identity for other in others]


def test_tasks():
    digests = {task.identity for task in TASKS.values()}
    assert len(digests) == len(TASKS) and all(task.identity in digests for task in TASKS.values())
    one, other = (Task(lambda rng, n=n: ("1+1=", str(n)), by_position, "12") for n in (1, 2))
    assert one.identity != other.identity


DAMAGED = [
    None,
    7,
    [],
    {"training": 7},
    {"training": {}},
    {"training": [7]},
    {"training": [[100]]},
    {"training": [["100", "ab"]]},
]


@pytest.mark.parametrize("before", DAMAGED)
def test_what_a_damaged_checkpoint_says_of_its_data(shards, before):
    with pytest.raises(InputError, match="damaged"):
        identity.changes(before, DataLoader(shards, 1, 8), None, carries=False)


def test_what_is_not_known_has_not_changed(shards):
    loader = DataLoader(shards, 1, 8)
    for before, val_loader in ({}, loader), ({"training": loader.identity}, loader), ({"validation": [[1, "ab"]]}, None):
        assert identity.changes(before, loader, val_loader, carries=True) == ("", True)
    assert identity.changes({"training": [[1, "ab"]]}, object(), None, carries=True) == ("", True)
