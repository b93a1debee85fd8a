"""Storage types, against blocks that the gguf package reads and writes (tests/golden/make_block_goldens.py)."""

import numpy as np
import pytest
from goldens import golden

from gpt2c.formats import blocks

GOLDEN = golden("blocks")


def decoded(kind, data):
    elements, nbytes, *_ = blocks.KINDS[kind]
    out = np.full(data.size // nbytes * elements, np.nan, np.float32)
    blocks.decode(kind, data.reshape(-1), out)
    return out


def encoded(kind, values):
    return np.concatenate(list(blocks.encode(kind, values.reshape(-1))))


@pytest.mark.parametrize("piece", [2**18, 256])
@pytest.mark.parametrize("kind", blocks.KINDS)
def test_every_block_is_read_to_the_bit(kind, piece, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE", piece)
    data, expected = (GOLDEN[kind.upper()][part] for part in ("data", "read"))
    found = decoded(kind, data)
    assert expected.size == found.size and blocks.size(kind, found.size) == data.size
    np.testing.assert_array_equal(found.view(np.uint32), expected.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("piece", [2**18, 256])
@pytest.mark.parametrize("kind", sorted(set(blocks.WRITTEN) - {"f32"}))
def test_every_block_is_written_to_the_bit(kind, piece, monkeypatch):
    monkeypatch.setattr(blocks, "PIECE", piece)
    found, expected = encoded(kind, GOLDEN["numbers"]), GOLDEN[kind.upper()]["written"]
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("kind, error", [
    ("f32", 0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 0.006), ("q5_0", 0.045), ("q4_1", 0.085), ("q4_0", 0.095),
])  # fmt: skip
def test_what_is_written_is_near(kind, error, rng):
    """Root mean square errors of normal numbers, a little above those of plain rounding (f16, bf16: half a step)."""
    values = rng.standard_normal(4096, np.float32)
    found = decoded(kind, encoded(kind, values))
    assert np.sqrt(np.mean((found - values) ** 2)) <= error
    np.testing.assert_array_equal(decoded(kind, encoded(kind, found)), found)


@pytest.mark.parametrize(
    "kind, most", [("f16", 65504), ("q8_0", 65504 * 127), ("q4_0", 65504 * 8), ("q4_1", 65504), ("q5_0", 65504 * 16)]
)
def test_what_a_block_cannot_hold(kind, most):
    values = np.zeros(32, np.float32)
    for large in most, -most:
        values[3] = large
        assert blocks.fits(kind, values) and np.isfinite(decoded(kind, encoded(kind, values))).all()
        values[3] = 1.01 * large
        assert not blocks.fits(kind, values) and blocks.fits("bf16", values) and blocks.fits("f32", values)
    for value in np.inf, np.nan:
        values[3] = value
        assert blocks.fits(kind, values) == (kind == "f16")
        assert decoded("bf16", encoded("bf16", values)).tobytes() == values.tobytes()


def test_blocks_of_zeros_and_of_the_smallest_numbers_are_finite():
    for kind in blocks.WRITTEN:
        for value in 0, 1e-45, -1e-45, 1e-38:
            assert np.isfinite(decoded(kind, encoded(kind, np.full(32, value, np.float32)))).all()
