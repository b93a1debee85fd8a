"""Calls every kernel on arrays that begin, and then on arrays that end, at a page that cannot be touched.

What is read beyond an array and then thrown away changes no result, so nothing else shows it; here the process dies of it.
Each call is named before it is made.
"""

import ctypes
import itertools
import mmap

import cases  # noqa: F401  registers them
import numpy as np
from cases.case import CASES, as_stored, made
from guarded import STREAM

from gpt2c import _core

LIBC = ctypes.CDLL(None, use_errno=True)
NO_ACCESS = 0


def fenced(values, at_end):
    """A copy of an array or of a stored matrix between two such pages, at the one or the other."""
    if isinstance(values, _core.Buffer):
        return as_stored(values.dtype, values.shape, fenced(values.array, at_end))
    room = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    block = np.frombuffer(mmap.mmap(-1, room + 2 * mmap.PAGESIZE), np.uint8)
    for page in 0, mmap.PAGESIZE + room:
        if LIBC.mprotect(ctypes.c_void_p(block.ctypes.data + page), mmap.PAGESIZE, NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = mmap.PAGESIZE + (room - values.nbytes if at_end else 0)
    copy = block[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def main():
    for name, (_, sizes, _) in CASES.items():
        count = len(_core.DOORS[name].arrays)
        for size in sizes:
            args, _ = made(name, size)
            for isa, at_end in itertools.product(_core.isas(), (True, False)):
                print(name, size, isa, "at the end" if at_end else "at the beginning", flush=True)
                _core.use_isa(isa)
                getattr(STREAM, name)(*(a if a is None else fenced(a, at_end) for a in args[:count]), *args[count:])


if __name__ == "__main__":
    main()
