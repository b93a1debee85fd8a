# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The door between Python and the kernels.

A Stream has one method per kernel. Each checks the shapes and types of its arguments against the kernel's line in
kernels.def and then runs the kernel at once, records it, or does neither (a stream that only plans). What was
recorded is a Program: it replays in C with the GIL released and no Python in between.

    s = Stream()                          # runs at once, on NumPy arrays
    s.gelu_forward(out, x)
    s = Stream("record"); ...; program = s.program(); program.run(); print(program)
"""
import inspect
import math
import operator
import re
import threading

import numpy as np

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc

cdef extern from "program.h":
    enum: MAX_ARRAYS
    enum: MAX_SIZES
    enum: MAX_SCALARS
    ctypedef struct Call:
        int32_t kernel
        void* p[56]
        int64_t n[8]
        float f[8]
    const int gpt2c_num_kernels
    const char* gpt2c_kernel_names[]
    const char* gpt2c_kernel_doors[]
    const int gpt2c_num_isas
    const char* gpt2c_isa_name(int isa)
    bint gpt2c_isa_usable(int isa)
    void gpt2c_set_isa(int isa)
    void gpt2c_set_num_threads(int n)
    void gpt2c_set_matmul_bf16(bint on)
    bint gpt2c_has_openmp()
    int gpt2c_run(const Call* calls, int64_t count, double* seconds) nogil
    const char* gpt2c_compiler


cdef class Buffer:
    """A named piece of memory: float32 ("f") or int32 ("i"), contiguous. `owner` keeps the memory alive."""
    cdef readonly str name
    cdef readonly tuple shape
    cdef readonly str kind
    cdef readonly object owner
    cdef uintptr_t address
    cdef Buffer whole  # what this is a part of

    def __init__(self, str name, tuple shape, uintptr_t address, owner, str kind="f"):
        self.name, self.shape, self.address, self.owner, self.kind = name, shape, address, owner, kind

    def rows(self, int64_t first, int64_t last, *row_shape):
        """Rows first to last of this buffer, seen as rows of the given shape: (last - first, *row_shape)."""
        size = 1
        for n in row_shape:
            size *= n
        address = self.address + 4 * size * first if self.address else 0
        part = Buffer(f"{self.name}[{first}:{last}]", (last - first, *row_shape), address, self.owner, self.kind)
        part.whole = self
        return part

    @property
    def array(self):
        """The memory as a NumPy array, shared."""
        interface = dict(shape=self.shape, typestr="<f4" if self.kind == "f" else "<i4", data=(self.address, False), version=3)
        return np.asarray(_View(interface, self))


class _View:
    """What NumPy needs to wrap a Buffer's memory and keep the Buffer alive."""

    def __init__(self, interface, buffer):
        self.__array_interface__, self.buffer = interface, buffer


def buffer_of(str name, array, bint writable=True, str where=""):
    """A Buffer on the memory of a NumPy array (C-contiguous float32 or int32)."""
    kind, flags = {"<f4": "f", "<i4": "i"}.get(array.dtype.str), array.flags
    if kind is None or not flags.c_contiguous or (writable and not flags.writeable):
        faults = ("" if flags.c_contiguous else ", not contiguous") + ("" if flags.writeable or not writable else ", read-only")
        raise TypeError(f"{where}{name}: expected a contiguous{' writable' if writable else ''} float32 or int32 array, "
                        f"found {array.dtype}{faults}")
    return Buffer(name, array.shape, array.ctypes.data, array, kind)


# What a kernel's line in kernels.def asks of its arguments.
_ARRAY = re.compile(r"(\w+)(\??):([^:\s]+)(:i)?$")
_SCALAR = re.compile(r"(\w+):([nf])(?:=(\S+))?$")
_RULE = re.compile(r"(\w+)(%|<=|>=|=)([\w*]+)$")


class Door:
    """One kernel's argument list, read from its text in kernels.def."""

    def __init__(self, number, name, text):
        self.number, self.name, self.text = number, name, text
        self.arrays = []   # (name, optional, [(factor, letter) or int], kind, writable)
        self.letters = []  # sizes, in order of appearance
        self.scalars = []  # (name, kind, default)
        outputs, inputs, scalars, rules = [part.split() for part in (text + "| | |").split("|")[:4]]
        self.rules = [_RULE.match(rule).groups() for rule in rules]  # (size, "%", "<=", ">=" or "=", sizes or numbers, multiplied)
        for i, item in enumerate(outputs + inputs):
            array, optional, dims, integer = _ARRAY.match(item).groups()
            shape = []
            for dim in dims.split(","):
                if dim.isdigit():
                    shape.append(int(dim))
                    continue
                factor, letter = int(dim[:len(dim) - 1] or 1), dim[len(dim) - 1]
                shape.append((factor, letter))
                if letter not in self.letters:
                    self.letters.append(letter)
            self.arrays.append((array, bool(optional), shape, "i" if integer else "f", i < len(outputs)))
        for item in scalars:
            scalar, kind, default = _SCALAR.match(item).groups()
            self.scalars.append((scalar, kind, default and (int if kind == "n" else float)(default)))
        empty, anywhere = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.signature = inspect.Signature(
            [inspect.Parameter(a[0], anywhere) for a in self.arrays]
            + [inspect.Parameter(s[0], anywhere, default=empty if s[2] is None else s[2]) for s in self.scalars])

    def bind(self, args, kwargs):
        """Every argument in order, defaults filled in."""
        if not kwargs and len(args) == len(self.arrays) + len(self.scalars):
            return args
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        bound.apply_defaults()
        return bound.args

    def sizes(self, arrays):
        """The value of each letter, from the shapes of the arrays; an error where they disagree."""
        value, source = {}, {}
        for (name, optional, dims, kind, writable), a in zip(self.arrays, arrays):
            if a is None:
                if not optional:
                    raise TypeError(f"{self.name}: {name} is None, expected an array")
                continue
            if a.kind != kind:
                raise TypeError(f"{self.name}: {name} holds {_TYPE[a.kind]}, expected {_TYPE[kind]}")
            shape = a.shape
            if dims[0] == (1, "R"):  # R: all leading dimensions together
                rows = 1
                for size in shape[:len(shape) - len(dims) + 1]:
                    rows *= size
                shape = (rows, *shape[len(shape) - len(dims) + 1:])
            good = len(shape) == len(dims)
            if good:
                for dim, size in zip(dims, shape):
                    if isinstance(dim, int):
                        good = good and size == dim
                        continue
                    factor, letter = dim
                    if letter not in value and size % factor == 0:
                        value[letter] = size // factor
                        source[letter] = name
                    good = good and size == factor * value.get(letter, -1)
            if not good:
                expected = ", ".join(_dim(d, value) for d in dims)
                known = ", ".join(f"{l} = {v} from {source[l]}" for l, v in value.items())
                raise ValueError(f"{self.name}: {name} has shape {a.shape}, expected ({expected})" + (f" with {known}" if known else ""))
        return [value.get(letter, 0) for letter in self.letters]

    def check_rules(self, sizes, scalars):
        """An error where sizes that fit the arrays still make no sense together."""
        value = dict(zip(self.letters, sizes)) | {scalar[0]: number for scalar, number in zip(self.scalars, scalars)}
        for left, sign, right in self.rules:
            a, b = value[left], math.prod(int(part) if part.isdigit() else value[part] for part in right.split("*"))
            if not ((b > 0 and a % b == 0) if sign == "%" else a <= b if sign == "<=" else a >= b if sign == ">=" else a == b):
                wanted = {"%": "a multiple of ", "=": ""}.get(sign, sign + " ") + right + ("" if right.isdigit() else f" = {b}")
                raise ValueError(f"{self.name}: {left} = {a}, expected {wanted}")


_TYPE = {"f": "float32", "i": "int32"}


def _dim(dim, value):
    return str(dim) if isinstance(dim, int) else (str(dim[0]) if dim[0] > 1 else "") + dim[1]


DOORS = {}
for _i in range(gpt2c_num_kernels):
    _name = gpt2c_kernel_names[_i].decode()
    DOORS[_name] = Door(_i, _name, gpt2c_kernel_doors[_i].decode())

_running = threading.Lock()  # the kernels' scratch is one


cdef int _run(const Call* calls, int64_t count, double* seconds) except -1:
    cdef int failed
    with _running:
        with nogil:
            failed = gpt2c_run(calls, count, seconds)
    if failed:
        raise MemoryError("not enough memory for the kernels' scratch")
    return 0


cdef class Program:
    """Recorded kernel calls. run() replays them; str() lists them, one line per call."""
    cdef Call* calls
    cdef int64_t count, room
    cdef list lines   # (Door, argument names, sizes, scalars)
    cdef list owners  # what keeps the memory alive

    def __cinit__(self):
        self.calls, self.count, self.room, self.lines, self.owners = NULL, 0, 0, [], []

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
        if self.count:
            _run(self.calls, self.count, NULL if seconds is None else &seconds[0])

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
    door.check_rules(sizes, scalars)
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
    _kinds = [kind for _, kind, _ in _door.scalars]
    if (len(_door.arrays) > MAX_ARRAYS or len(_door.letters) + _kinds.count("n") > MAX_SIZES
            or _kinds.count("f") > MAX_SCALARS):
        raise ImportError(f"{_name} has more arguments than a Call holds")
    setattr(Stream, _name, _method(_door))


def isas():
    """Instruction sets that this build has and this CPU can run, best last."""
    return [gpt2c_isa_name(i).decode() for i in range(gpt2c_num_isas) if gpt2c_isa_usable(i)]


def use_isa(str name):
    """Makes all kernels run their version for an instruction set that isas() names."""
    for i in range(gpt2c_num_isas):
        if gpt2c_isa_name(i).decode() == name and gpt2c_isa_usable(i):
            gpt2c_set_isa(i)
            return
    raise ValueError(f"instruction set {name!r} is not usable here, expected one of {', '.join(isas())}")


def use_threads(int n):
    """Makes all kernels run on up to n threads."""
    gpt2c_set_num_threads(n)


def use_matmul_bf16(bint on):
    """Whether products of matrices round their operands to bf16."""
    gpt2c_set_matmul_bf16(on)


def build_info():
    """How this module was built."""
    return {"openmp": bool(gpt2c_has_openmp()), "compiler": gpt2c_compiler.decode()}
