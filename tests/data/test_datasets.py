"""Finding data sets in a folder, their tokenizers, and choosing one."""

import os

import numpy as np
import pytest

from gpt2c.data import choose_dataset, find_datasets, list_datasets, write_shard
from gpt2c.errors import UsageError


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
    with pytest.raises(UsageError, match="there is no data set '999"):
        choose_dataset(datasets, "9" * 5000)
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
