"""The speed of many ranks, predicted from what was measured on few."""

import pytest
from mpi import Imagined, finish

from gpt2c.bench import cluster


def test_the_formula_of_an_update():
    """By hand: 4 ranks, 16 MiB; each sends 12 MiB twice and adds 12 MiB; parts of 4 MiB travel in 4 pieces."""
    link = cluster.Link(bandwidth=1e9, latency=1e-5)
    expected = 2 * 12 * 2**20 / 1e9 + 12 * 2**20 / 5e9 + 1e-5 * 3 * 5
    assert cluster.exchange(2**24, 4, link, 5e9) == pytest.approx(expected)
    costs = cluster.Costs(batch=0.1, update=0.02, summing=5e9)
    assert cluster.step(2**24, 4, 3, costs, link) == pytest.approx(0.32 + expected)
    rows = list(cluster.predictions(2**24, 100, 3, costs, link))
    assert [row[0] for row in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[0][2:] == (pytest.approx(0.32), 0, pytest.approx(300 / 0.32), 1) and rows[2][3] == pytest.approx(expected)
    assert all(first[5] > second[5] for first, second in zip(rows, rows[1:]))


def test_a_link_is_found_again():
    """From what sums take on it."""
    link, ranks = cluster.Link(2e9, 3e-5), Imagined(size=3)
    measured = [(floats, cluster.exchange(4 * floats, 3, link, 1e10)) for floats in cluster.SIZES]
    found = cluster.fitted(measured, ranks, 1e10)
    assert found.latency == pytest.approx(link.latency, rel=0.01) and found.bandwidth == pytest.approx(link.bandwidth, rel=0.01)


def test_the_benchmark_of_ranks(mpi, tmp_path):
    out, _ = finish(
        2, "-m", "gpt2c", "bench", "--mpi", "--shape", "char-0.8M", "--batches", 1, "--link-gbit", 25, folder=tmp_path
    )
    assert "2 ranks, 2 of them here with 1 threads each" in out and "sums over all ranks" in out and "an update: " in out
    assert "predicted, with 25 Gbit/s and 50 us" in out and out.splitlines()[-1].split()[0] == "1024"
