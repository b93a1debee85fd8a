"""The peak that shares are measured by: its kernel does as many operations as it says."""

import numpy as np
import pytest

import gpt2c
from gpt2c import _core

SUMS, ROWS, STEPS = 12, 3, 1000


@pytest.mark.parametrize("isa", _core.isas())
def test_the_sums_of_the_peak_kernel_show_the_operations_it_counts(isa):
    gpt2c.set_isa(isa)
    sink, flops = np.empty(ROWS, np.float32), np.empty(1, np.float32)
    _core.Stream().peak(sink, flops, STEPS)

    factor, term = np.float64(np.float32(1.0001)), np.float64(np.float32(0.0001))
    sums = 0.1 * np.arange(SUMS)
    for _ in range(STEPS):
        sums = sums * factor + term
    lanes = flops[0] / (2 * SUMS * ROWS * STEPS)  # each holds the same sums, and the result is their total
    roundings = 2 * STEPS + SUMS
    assert np.abs(sink / (lanes * sums.sum()) - 1).max() <= roundings * 2.0**-24
