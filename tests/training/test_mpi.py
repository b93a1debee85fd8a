"""Five families on 1, 2, 3 and 4 ranks: the same losses on any number of them, the same bits on the same number."""

import json
from pathlib import Path

import numpy as np
import pytest
from mpi import finish

from gpt2c.data import write_shard
from gpt2c.models.files import read
from gpt2c.models.registry import FAMILIES

RANKS = str(Path(__file__).parent / "ranks.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(name, ranks, *words): the folder of such a call of ranks.py, made once."""
    folder = tmp_path_factory.mktemp("ranks")
    write_shard(folder / "d_train.bin", np.random.default_rng(0).integers(0, 31, 3000))

    def train(name, ranks, *words):
        if not (folder / name).exists():
            (folder / name).mkdir()
            finish(ranks, RANKS, "d_train.bin", name, *words, folder=folder)
        return folder / name

    return train


def assert_same_losses(one, other, steps=50, tolerance=1e-5, families=FAMILIES):
    """The losses of the last steps, and what was measured of them on the way."""
    for family in families:
        a, b = (json.loads((folder / f"{family}.json").read_text()) for folder in (one, other))
        assert len(b) == steps
        for column, allowed in enumerate((tolerance, 10 * tolerance, tolerance)):  # loss, norm of the gradients, validation
            old, new = ([row[column] for row in rows if row[column] is not None] for rows in (a[-steps:], b))
            np.testing.assert_allclose(new, old, rtol=allowed, err_msg=f"{family}, {column}")


def assert_same_bits(one, other, step):
    """All that a run is made of, but for the flag that says how moments were kept."""
    for family in FAMILIES:
        a, b = (read(folder / f"{family}_{step}.safetensors") for folder in (one, other))
        one_s, other_s = (c.weights.tensors | c.weights.moments | c.run.arrays for c in (a, b))
        assert one_s.keys() == other_s.keys()
        for name in one_s:
            assert one_s[name].tobytes() == other_s[name].tobytes(), f"{family} {name}"
        for content in (a, b):
            content.run.values["config"].pop("zero")
        assert a.run.values == b.run.values


@pytest.mark.parametrize("ranks", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_do_not_depend_on_the_number_of_ranks(mpi, trained, ranks):
    assert_same_losses(trained("1", 1), trained(str(ranks), ranks))


def test_sharded_moments_give_the_same_bits(mpi, trained):
    assert_same_bits(trained("2", 2), trained("2-zero", 2, "zero"), 50)


def test_a_resumed_run_has_the_same_bits(mpi, trained):
    assert_same_bits(trained("2", 2), trained("2-again", 2, trained("2", 2)), 50)


@pytest.mark.parametrize("ranks, made, words", [(1, ("2-zero", 2, "zero"), []), (3, ("2", 2), ["zero"]), (2, ("1", 1), [])])
def test_a_run_goes_on_with_another_number_of_ranks(mpi, trained, ranks, made, words):
    """mingru's gradients reach back into a chunk that was computed elsewhere: at first they do so no longer."""
    again = trained(f"{made[0]}-on-{ranks}", ranks, trained(*made), *words)
    assert_same_losses(trained("1", 1), again, 27, families=FAMILIES.keys() - {"mingru"})
    assert_same_losses(trained("1", 1), again, 27, tolerance=1e-3, families=["mingru"])
    old, new = (json.loads((folder / "mingru.json").read_text()) for folder in (trained("1", 1), again))
    np.testing.assert_allclose(new[0][0], old[23][0], rtol=1e-5)  # the state is whole
