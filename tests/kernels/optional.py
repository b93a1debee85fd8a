"""Calls every kernel with and without each of its optional arrays, and with sizes of 0 and of one more.

What the door lets through, the kernel must do, and what it refuses it must say of that kernel. A kernel that reads an array
that is not there ends the process, as one does that reads or writes beyond it (fenced.py); so each call is named before it is
made.
"""

import itertools

import numpy as np
from fenced import fenced
from guarded import STREAM

from gpt2c import _core

# What fits every kernel together
SIZES = dict(B=2, T=3, C=8, H=2, D=4, E=2, G=4, K=1, M=3, N=4, S=4, I=5, R=5, P=7, V=5, Y=16, Z=32)
SCALARS = dict(H=2, V=5, p=0.5)  # those that have no default, and where 1 will not do


def array(name, dims, dtype, sizes):
    """Ones, or numbers that are there for whoever counts from 0: of tokens, targets, and experts, each slot's another."""
    shape = [dim if isinstance(dim, int) else dim[0] * sizes[dim[1]] for dim in dims]
    dtype = "f32" if dtype == _core.ANY else dtype
    values = np.ones(shape) if dtype == "f32" else np.zeros(shape) + (np.arange(shape[-1]) if name == "chosen" else 0)
    return fenced(values.astype(_core.DTYPES[dtype].array), at_end=True)


def arrays_of(name, sizes):
    return {one: array(one, dims, dtype, sizes) for one, _, dims, dtype, _ in _core.DOORS[name].arrays}


def outcome(name, sizes, arrays, there):
    """None, or what the door says, of a call with those arrays that are named in `there`."""
    scalars = {scalar: SCALARS.get(scalar, 1) for scalar, _, default in _core.DOORS[name].scalars if default is None}
    print(name, sizes, *there, flush=True)
    try:
        getattr(STREAM, name)(*(a if one in there else None for one, a in arrays.items()), **scalars)
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{name}: "), error
        return str(error)


def check_presence(name):
    door = _core.DOORS[name]
    sizes = {letter: SIZES[letter] for letter in door.letters}
    arrays = arrays_of(name, sizes)
    optional = [array[0] for array in door.arrays if array[1]]
    needed = [one for one in arrays if one not in optional]
    assert outcome(name, sizes, arrays, arrays) is None

    grouped = {one: word for word, members in door.groups.items() for one in members}
    assert all(len(members) > 1 for members in door.groups.values())
    for one in optional:
        without, alone = ([*needed, *some] for some in ([other for other in optional if other != one], [one]))
        for there in without, alone:
            said = outcome(name, sizes, arrays, there)
            assert one not in grouped or f"{grouped[one]!r} come together" in said, said
    units = [*door.groups.values(), *([one] for one in optional if one not in grouped)]
    for some in itertools.product([False, True], repeat=len(units)):
        outcome(name, sizes, arrays, needed + [one for unit, given in zip(units, some) if given for one in unit])


def check_sizes(name):
    sizes = {letter: SIZES[letter] for letter in _core.DOORS[name].letters}
    for letter, size in itertools.product(sizes, (0, 1)):
        other = sizes | {letter: size and sizes[letter] + 1}
        arrays = arrays_of(name, other)
        outcome(name, other, arrays, arrays)


def main():
    for name in _core.DOORS:
        check_presence(name)
        check_sizes(name)


if __name__ == "__main__":
    main()
