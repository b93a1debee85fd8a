# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The door between Python and the kernels.

A Stream has one method per kernel. Each checks the shapes and types of its arguments against the kernel's line in
kernels.def and then runs the kernel at once, records it, or does neither (a stream that only plans). What was
recorded is a Program: it replays in C with the GIL released and no Python in between.

    s = Stream()                          # runs at once, on NumPy arrays
    s.gelu_forward(out, x)
    s = Stream("record"); ...; program = s.program(); program.run(); print(program)
"""
import operator

import numpy as np

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc

cdef extern from "program.h":
    enum: MAX_ARRAYS
    enum: MAX_SIZES
    enum: MAX_SCALARS
    ctypedef struct Call:
        int32_t kernel
        void* p[MAX_ARRAYS]
        int64_t n[MAX_SIZES]
        float f[MAX_SCALARS]
    const int gpt2c_num_kernels
    const char* gpt2c_kernel_names[]
    const char* gpt2c_kernel_doors[]
    const int gpt2c_num_isas
    const char* gpt2c_isa_name(int isa)
    bint gpt2c_isa_usable(int isa)
    bint gpt2c_has_openmp()
    const char* gpt2c_compiler
    ctypedef struct Settings:
        int isa
        int threads
        bint matmul_bf16
    ctypedef struct Scratch:
        float* memory
        size_t floats
    int gpt2c_run(const Call* calls, int64_t count, Settings settings, Scratch* scratch, double* seconds) nogil

include "door.py"  # DTYPES, STORED, CACHED, nbytes, class Door

_TYPESTR = {name: np.dtype(dtype.array).str for name, dtype in DTYPES.items()}  # "f32": "<f4"
_DTYPE = {typestr: name for name, typestr in _TYPESTR.items()}


cdef class Buffer:
    """A named piece of memory, contiguous: numbers of a type that DTYPES names, or a matrix as STORED says. `owner` keeps the
    memory alive."""
    cdef readonly str name
    cdef readonly tuple shape
    cdef readonly str dtype
    cdef readonly object owner
    cdef uintptr_t address
    cdef Buffer whole  # what this is a part of

    def __init__(self, str name, tuple shape, uintptr_t address, owner, str dtype="f32"):
        self.name, self.shape, self.address, self.owner, self.dtype = name, shape, address, owner, dtype

    def rows(self, int64_t first, int64_t last, *row_shape):
        """Rows first to last of this buffer, seen as rows of the given shape: (last - first, *row_shape)."""
        address = self.address + nbytes(self.dtype, (first, *row_shape)) if self.address else 0
        part = Buffer(f"{self.name}[{first}:{last}]", (last - first, *row_shape), address, self.owner, self.dtype)
        part.whole = self
        return part

    def shaped(self, *shape):
        """The same numbers in another shape."""
        if nbytes(self.dtype, shape) != nbytes(self.dtype, self.shape):
            raise ValueError(f"{self.name} has shape {self.shape}, which is not {shape}")
        again = Buffer(self.name, shape, self.address, self.owner, self.dtype)
        again.whole = self
        return again

    @property
    def array(self):
        """The memory as a NumPy array, shared; that of other types than DTYPES has as bytes."""
        shape, dtype = (self.shape, self.dtype) if self.dtype in DTYPES else ((nbytes(self.dtype, self.shape),), "u8")
        interface = dict(shape=shape, typestr=_TYPESTR[dtype], data=(self.address, False), version=3)
        return np.asarray(_View(interface, self))


class _View:
    """What NumPy needs to wrap a Buffer's memory and keep the Buffer alive."""

    def __init__(self, interface, buffer):
        self.__array_interface__, self.buffer = interface, buffer


def buffer_of(str name, array, bint writable=True, str where=""):
    """A Buffer on the memory of a NumPy array (C-contiguous float32, int32 or bytes)."""
    dtype, flags = _DTYPE.get(array.dtype.str), array.flags
    if dtype is None or not flags.c_contiguous or (writable and not flags.writeable):
        faults = ("" if flags.c_contiguous else ", not contiguous") + ("" if flags.writeable or not writable else ", read-only")
        raise TypeError(f"{where}{name}: expected a contiguous{' writable' if writable else ''} float32 or int32 array, "
                        f"found {array.dtype}{faults}")
    return Buffer(name, array.shape, array.ctypes.data, array, dtype)


DOORS = {}
for _i in range(gpt2c_num_kernels):
    _name = gpt2c_kernel_names[_i].decode()
    DOORS[_name] = Door(_i, _name, gpt2c_kernel_doors[_i].decode())

cdef Settings _settings = Settings(0, 1, False)  # changed and copied with the GIL held
cdef bint _has_had_threads = False


cdef class _Room:
    """The kernels' scratch."""
    cdef Scratch scratch

    def __dealloc__(self):
        free(self.scratch.memory)


cdef list _rooms = []  # those that no run is in: as many as there ever were runs at once


cdef int _run(const Call* calls, int64_t count, double* seconds) except -1:
    global _has_had_threads
    cdef Settings settings = _settings
    cdef _Room room = _rooms.pop() if _rooms else _Room()
    cdef int failed
    if settings.threads > 1:
        _has_had_threads = True
    with nogil:
        failed = gpt2c_run(calls, count, settings, &room.scratch, seconds)
    _rooms.append(room)
    if failed:
        raise MemoryError("not enough memory for the kernels' scratch")
    return 0


cdef class Program:
    """Recorded kernel calls. run() replays them; str() lists them, one line per call.

    Programs of several threads may run at once; each has its scratch and, to its end, the settings that it began with."""
    cdef Call* calls
    cdef int64_t count, room
    cdef bint running
    cdef list lines   # (Door, argument names, sizes, scalars)
    cdef list owners  # what keeps the memory alive

    def __cinit__(self):
        self.calls, self.count, self.room, self.running, self.lines, self.owners = NULL, 0, 0, False, [], []

    def __dealloc__(self):
        free(self.calls)

    cdef int append(self, Call call, line, owners) except -1:
        if self.count == self.room:
            room = 2 * self.room + 64
            grown = <Call*>realloc(self.calls, room * sizeof(Call))
            if grown == NULL:
                raise MemoryError("not enough memory to record a program")
            self.calls, self.room = grown, room
        self.calls[self.count] = call
        self.count += 1
        self.lines.append(line)
        self.owners.extend(owners)
        return 0

    def run(self, double[::1] seconds=None):
        """Runs every call in order. `seconds`, one number per call, receives the time each took."""
        if seconds is not None and seconds.shape[0] != self.count:
            raise ValueError(f"seconds has {seconds.shape[0]} entries, the program {self.count} calls")
        if self.running:
            raise RuntimeError("this program is running in another thread: record one, or make a model, for each thread")
        if not self.count:
            return
        self.running = True
        try:
            _run(self.calls, self.count, NULL if seconds is None else &seconds[0])
        finally:
            self.running = False

    def __len__(self):
        return self.count

    @property
    def calls(self):
        """(kernel, {size: number}) of each call."""
        return [(door.name, dict(zip(door.letters, sizes))) for door, names, sizes, scalars in self.lines]

    def __str__(self):
        return "\n".join(_line(*line) for line in self.lines)


def _line(door, names, sizes, scalars):
    values = [f"{letter}={n}" for letter, n in zip(door.letters, sizes)]
    values += [f"{name}={value:g}" for (name, kind, default), value in zip(door.scalars, scalars) if value != default]
    return f"{door.name}({', '.join(names + values)})"


class Stream:
    """One method per kernel; mode "run" runs each call, "record" collects them for program(), "plan" only checks."""

    def __init__(self, mode="run"):
        if mode not in ("run", "record", "plan"):
            raise ValueError(f"mode is {mode!r}, expected run, record or plan")
        self.mode = mode
        self._program = Program()

    def program(self):
        """What was recorded since the last call of this."""
        program, self._program = self._program, Program()
        return program


cdef int _call(Program program, str mode, door, args) except -1:
    cdef Call call
    cdef Buffer buffer
    cdef int i, num_arrays = len(door.arrays)
    arrays = []
    for i in range(num_arrays):
        a = args[i]
        if a is not None and not isinstance(a, Buffer):
            a = buffer_of(door.arrays[i][0], np.asarray(a), door.arrays[i][4], f"{door.name}: ")
        arrays.append(a)
    sizes, scalars = door.sizes(arrays), args[num_arrays:]
    door.check_rules(arrays, sizes, scalars)
    if mode == "plan":
        return 0
    call.kernel = door.number
    for i in range(num_arrays):
        buffer = arrays[i]
        call.p[i] = NULL if buffer is None else <void*>buffer.address
    for i in range(len(sizes)):
        call.n[i] = sizes[i]
    n, f = len(sizes), 0
    for (name, kind, default), value in zip(door.scalars, scalars):
        if kind == "n":
            call.n[<int>n] = operator.index(value)
            n += 1
        else:
            call.f[<int>f] = value
            f += 1
    for i in range(num_arrays):
        if door.arrays[i][3] == ANY:
            call.n[<int>n] = -1 if arrays[i] is None else list(STORED).index(arrays[i].dtype)
            n += 1
    if mode == "run":
        _run(&call, 1, NULL)
    else:
        names = ["NULL" if a is None else a.name for a in arrays]
        program.append(call, (door, names, sizes, scalars), [a.owner for a in arrays if a is not None])
    return 0


def _method(door):
    def method(self, *args, **kwargs):
        _call(self._program, self.mode, door, door.bind(args, kwargs))
    method.__name__, method.__qualname__ = door.name, f"Stream.{door.name}"
    method.__signature__, method.__doc__ = door.signature, f"{door.text}\n\nSee kernels/gpt2c.h for the formula."
    return method


for _name, _door in DOORS.items():
    setattr(Stream, _name, _method(_door))


def isas():
    """Instruction sets that this build has and this CPU can run, best last."""
    return [gpt2c_isa_name(i).decode() for i in range(gpt2c_num_isas) if gpt2c_isa_usable(i)]


def use_isa(str name):
    """Makes all kernels run their version for an instruction set that isas() names, from the next run on."""
    for i in range(gpt2c_num_isas):
        if gpt2c_isa_name(i).decode() == name and gpt2c_isa_usable(i):
            _settings.isa = i
            return
    raise ValueError(f"instruction set {name!r} is not usable here, expected one of {', '.join(isas())}")


def use_threads(int n):
    """Makes all kernels run on up to n threads, from the next run on."""
    _settings.threads = n


def has_had_threads():
    """Whether kernels have run on several threads, which a child of fork does not have but OpenMP waits for."""
    return _has_had_threads


def use_matmul_bf16(bint on):
    """Whether products of matrices round their operands to bf16, from the next run on."""
    _settings.matmul_bf16 = on


def build_info():
    """How this module was built."""
    return {"openmp": bool(gpt2c_has_openmp()), "compiler": gpt2c_compiler.decode()}
