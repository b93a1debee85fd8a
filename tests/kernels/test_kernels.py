"""Every kernel against the float64 oracle: each instruction set, several numbers of threads, awkward sizes.

The cases are in tests/kernels/cases/, a file for each file of kernels/: a new kernel needs one there. What single kernels
promise besides is in test_promises.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import cases  # noqa: F401  registers them
import numpy as np
import pytest
from cases.case import CASES, assert_within, made
from guarded import bits, call, run

from gpt2c import _core

HERE = Path(__file__).parent


def test_every_kernel_has_a_case():
    assert {*CASES, "peak"} == {*_core.DOORS}


EVERY_SIZE = [(name, sizes) for name, (_, awkward, large) in CASES.items() for sizes in (*awkward, large)]


@pytest.mark.parametrize("name, sizes", EVERY_SIZE, ids=str)
def test_against_the_oracle(isa, threads, name, sizes):
    args, expected = made(name, sizes)
    assert_within(run(name, *args), expected)


@pytest.mark.parametrize("script", ["fenced.py", "optional.py"])
def test_nothing_beside_an_array_is_touched(script):
    """On any instruction set, and whatever optional arrays are there, in a process that dies of it."""
    done = subprocess.run(
        [sys.executable, str(HERE / script)],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]}: {done.stderr}"


@pytest.mark.parametrize("threads", [2, 3, 7], indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(isa, threads, name):
    """Several times, so that threads that are in each other's way meet."""
    args, _ = made(name, CASES[name][2])
    together = [bits(call(name, args)) for _ in range(5)]
    _core.use_threads(1)
    assert together == 5 * [bits(call(name, args))]


def batch_axis(array):
    """Which dimension runs over independent rows, in the kernel's door; None if none does."""
    return next((i for i, size in enumerate(array[2]) if size in ((1, "R"), (1, "B"))), None)


def rows_of(array, axis, part):
    return array if axis is None or array is None else np.ascontiguousarray(array[(slice(None),) * axis + (part,)])


@pytest.mark.parametrize(
    "name", [name for name in CASES if batch_axis(_core.DOORS[name].arrays[0]) == 0 and not name.startswith("dropout")]
)  # whose masks depend on where an element stands
def test_an_element_or_row_has_the_same_bits_wherever_it_stands(isa, name):
    args, _ = made(name, CASES[name][2])
    door = _core.DOORS[name].arrays
    axes = [batch_axis(array) for array in door] + [None] * (len(args) - len(door))
    outputs = [axis for array, axis, arg in zip(door, axes, args) if array[-1] and arg is not None]
    R = len(args[0])
    whole = call(name, args)
    for n in range(min(R, 35)):
        for part in slice(n, R), slice(0, R - n), slice(n, n + 1), slice(0, n + 1):
            some = call(name, [rows_of(a, axis, part) for a, axis in zip(args, axes)])
            expected = [rows_of(a, axis, part) for a, axis in zip(whole, outputs)]
            assert bits(a for a, axis in zip(some, outputs) if axis is not None) == bits(
                a for a, axis in zip(expected, outputs) if axis is not None
            )


STORING = {
    name: [scalar for scalar, *_ in door.scalars if scalar.startswith("add")]
    for name, door in _core.DOORS.items()
    if name in CASES
}


@pytest.mark.parametrize("name", [name for name, flags in STORING.items() if flags])
def test_storing_is_adding_to_zeros(name, isa, rng):
    """With add = 0 it does not matter what was in the gradient."""
    make, sizes, large = CASES[name]
    for size in (*sizes, large):
        args = make(rng, *size)[0]
        one_for_all = name.endswith("_w")
        stored = sum(a[-1] for a in _core.DOORS[name].arrays) if one_for_all else len(STORING[name])  # the first outputs
        zeros, nans = ([a if a is None else np.full_like(a, fill) for a in args[:stored]] for fill in (0, np.nan))
        added = call(name, (*zeros, *args[stored:]))
        found = call(name, (*nans, *args[stored:], *[0] * len(STORING[name])))
        for a, b in zip(added, found, strict=True):
            np.testing.assert_array_equal(a, b)
