"""What numbers are stored as, and a kernel's door, read from its text in kernels.def: which arguments it takes and what they
must be.

generate.py imports this when gpt2c is built, and stream.pyx includes it: so both number the arrays, sizes and scalars of a
call alike. As a part of stream.pyx it is compiled without negative indices.
"""

import collections
import inspect
import math
import re

DType = collections.namedtuple("DType", "itemsize array c")  # bytes of a number; what NumPy calls it, and what C does
DTYPES = {"f32": DType(4, "float32", "float"), "i32": DType(4, "int32", "int32_t"), "u8": DType(1, "uint8", "uint8_t")}

# What a matrix of weights may be stored as, numbered as in C (stored.h): the columns of a block, its bytes in a file, and those
# that GROUP rows of it take in each of the planes that a group of rows consists of here. Single numbers stay as they are.
Blocks = collections.namedtuple("Blocks", "columns nbytes planes")
GROUP, LINE = 16, 64  # rows that are interleaved; the bytes to a multiple of which a plane is filled up
STORED = {
    "f32": Blocks(1, 4, ()),
    "bf16": Blocks(1, 2, ()),
    "f16": Blocks(1, 2, ()),
    "q8_0": Blocks(32, 34, (32, 512)),
    "q4_0": Blocks(32, 18, (32, 256)),
    "q4_1": Blocks(32, 20, (32, 32, 256)),
    "q5_0": Blocks(32, 22, (32, 64, 256)),
    "q5_1": Blocks(32, 24, (32, 32, 64, 256)),
    "q4_K": Blocks(256, 144, (32, 32, 128, 128, 2048)),
    "q5_K": Blocks(256, 176, (32, 32, 128, 128, 512, 2048)),
    "q6_K": Blocks(256, 210, (32, 256, 1024, 2048)),
}
ANY = "w"  # in a door: any of these
CACHED = ("f32", "bf16", "f16", "q8_0")  # what a KV cache may hold, blocks as in a file; they have the same numbers

_ARRAY = re.compile(r"(\w+)(\?(\w*))?:([^:\s]+)(?::([ibw]))?$")
_DIM = re.compile(r"(?=.)(\d*)([A-Z]?)$")
_SCALAR = re.compile(r"(\w+):([nf])(?:=(\S+))?$")
_RULE = re.compile(r"(\w+)(%|<=|>=|=)([\w*+]+)(?:\?(\w+))?$")
_NEED = re.compile(r"(\w+)->(\w+)$")
_BYTES = re.compile(r"(\w+)=bytes\((\w+)(?:,(\w+))?\)$")
_MISSING = inspect.Parameter.empty


def nbytes(dtype, shape):
    """Bytes of an array of this type and shape, or of a matrix that is stored so: nothing else counts them."""
    if dtype in DTYPES:
        return DTYPES[dtype].itemsize * math.prod(shape)
    (rows, columns), planes = shape, STORED[dtype].planes
    if not planes:
        return rows * row_bytes(dtype, columns)
    blocks = row_bytes(dtype, columns) // STORED[dtype].nbytes
    return -(-rows // GROUP) * sum(-(-blocks * plane // LINE) * LINE for plane in planes)


def row_bytes(dtype, columns):
    """Bytes of a row of a stored matrix in a file, or of a head in a KV cache."""
    form = STORED[dtype]
    if columns % form.columns:
        raise ValueError(f"rows of {columns} numbers cannot be {dtype}, whose blocks have {form.columns}")
    return columns // form.columns * form.nbytes


def _show(dim):
    return str(dim) if isinstance(dim, int) else (str(dim[0]) if dim[0] > 1 else "") + dim[1]


class Door:
    """One kernel's argument list."""

    def __init__(self, number, name, text):
        self.number, self.name, self.text = number, name, text
        self.arrays = []  # (name, optional, [(factor, letter) or int], dtype, writable)
        self.groups = {}  # the arrays that come all or none: word: [name]
        self.letters = []  # sizes, in order of appearance
        self.scalars = []  # (name, kind, default)
        outputs, inputs, scalars, rules = [part.split() for part in (text + "| | |").split("|")[:4]]
        for item in outputs + inputs:
            self._read_array(item, len(self.arrays) < len(outputs))
        for item in scalars:
            scalar, kind, default = self._parts(_SCALAR, item)
            self.scalars.append((scalar, kind, default and (int if kind == "n" else float)(default)))
        self.needs = [self._parts(_NEED, rule) for rule in rules if "->" in rule]  # (what, which other)
        # (size, which matrix) or (size, type, numbers)
        self.bytes = [[part for part in self._parts(_BYTES, rule) if part] for rule in rules if "=bytes(" in rule]
        # (size, "%", "<=", ">=" or "=", a sum of products of sizes and numbers, where what is given)
        self.rules = [self._parts(_RULE, rule) for rule in rules if "->" not in rule and "=bytes(" not in rule]
        self.defaults = {a[0]: None if a[1] else _MISSING for a in self.arrays}  # of every argument, in order
        self.defaults |= {s[0]: _MISSING if s[2] is None else s[2] for s in self.scalars}
        self._check_names()

    def _parts(self, pattern, item):
        match = pattern.match(item)
        if match is None:
            raise ValueError(f"{self.name}: what is {item!r}?")
        return match.groups()

    def _read_array(self, item, writable):
        name, optional, group, dims, kind = self._parts(_ARRAY, item)
        shape = []
        for dim in dims.split(","):
            factor, letter = self._parts(_DIM, dim)
            shape.append((int(factor or 1), letter) if letter else int(factor))
            if letter and letter not in self.letters:
                self.letters.append(letter)
        if group:
            self.groups.setdefault(group, []).append(name)
        dtype = {None: "f32", "i": "i32", "b": "u8", "w": ANY}[kind]
        self.arrays.append((name, bool(optional), shape, dtype, writable))

    def _check_names(self):
        arrays, scalars = [a[0] for a in self.arrays], [s[0] for s in self.scalars]
        names = arrays + self.letters + scalars + list(self.groups)
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(f"{self.name}: two arguments are named {name}")
        named = [name for need in [*self.needs, *self.bytes] for name in need]
        for left, _, right, where in self.rules:
            named += [left, *re.split(r"[*+]", right), *([where] if where else [])]
        for name in named:
            if not name.isdigit() and name not in names:
                raise ValueError(f"{self.name}: a rule names {name}, which is none of the arguments")

    @property
    def signature(self):
        """For help(): a default is shown where all that follow have one too."""
        parameters, shown = [], True
        for name, default in reversed(self.defaults.items()):
            shown = shown and default is not _MISSING
            anywhere = inspect.Parameter.POSITIONAL_OR_KEYWORD
            parameters.insert(0, inspect.Parameter(name, anywhere, default=default if shown else _MISSING))
        return inspect.Signature(parameters)

    def bind(self, args, kwargs):
        """Every argument in order, defaults filled in."""
        if len(args) == len(self.defaults) and not kwargs:
            return args
        if len(args) > len(self.defaults):
            raise TypeError(f"{self.name}: too many positional arguments")
        given = dict(zip(self.defaults, args))
        for name in kwargs:
            if name in given:
                raise TypeError(f"{self.name}: multiple values for argument {name!r}")
        bound = self.defaults | given | kwargs
        for name, value in bound.items():
            if value is _MISSING:
                raise TypeError(f"{self.name}: missing a required argument: {name!r}")
            if name not in self.defaults:
                raise TypeError(f"{self.name}: got an unexpected keyword argument {name!r}")
        return tuple(bound.values())

    def sizes(self, arrays):
        """The value of each letter, from the shapes of the arrays; an error where they disagree."""
        value, source = {}, {}
        for (name, optional, dims, dtype, _), a in zip(self.arrays, arrays):
            if a is None:
                if not optional:
                    raise TypeError(f"{self.name}: {name} is None, expected an array")
                continue
            if a.dtype != dtype and not (dtype == ANY and a.dtype in STORED):
                expected = "a stored matrix" if dtype == ANY else DTYPES[dtype].array
                found = DTYPES[a.dtype].array if a.dtype in DTYPES else a.dtype
                raise TypeError(f"{self.name}: {name} holds {found}, expected {expected}")
            shape = a.shape
            if dims[0] == (1, "R"):  # R: all leading dimensions together
                rows = 1
                for size in shape[: len(shape) - len(dims) + 1]:
                    rows *= size
                shape = (rows, *shape[len(shape) - len(dims) + 1 :])
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
                expected = ", ".join(_show(dim) for dim in dims)
                known = ", ".join(f"{letter} = {v} from {source[letter]}" for letter, v in value.items())
                raise ValueError(
                    f"{self.name}: {name} has shape {a.shape}, expected ({expected})" + (f" with {known}" if known else "")
                )
        return [value.get(letter, 0) for letter in self.letters]

    def check_rules(self, arrays, sizes, scalars):
        """An error where arguments that are right one by one make no sense together."""
        value = dict(zip(self.letters, sizes)) | {scalar[0]: number for scalar, number in zip(self.scalars, scalars)}
        given = self._given(arrays, value)
        for size, *row in self.bytes:
            dtype, numbers = self._row(row, arrays, value)
            if numbers % STORED[dtype].columns or value[size] != row_bytes(dtype, numbers):
                raise ValueError(f"{self.name}: {size} = {value[size]}, expected the bytes of {numbers} numbers as {dtype}")
        for left, sign, right, where in self.rules:
            if where and where not in given:
                continue
            products = [[int(part) if part.isdigit() else value[part] for part in term.split("*")] for term in right.split("+")]
            a, b = value[left], sum(math.prod(product) for product in products)
            if not ((b > 0 and a % b == 0) if sign == "%" else a <= b if sign == "<=" else a >= b if sign == ">=" else a == b):
                wanted = {"%": "a multiple of ", "=": ""}.get(sign, sign + " ") + right + ("" if right.isdigit() else f" = {b}")
                raise ValueError(f"{self.name}: {left} = {a}, expected {wanted}")

    def _row(self, row, arrays, value):
        """(storage type, numbers) of what a rule counts the bytes of."""
        what, *numbers = row
        if not numbers:
            matrix = next(a for array, a in zip(self.arrays, arrays) if array[0] == what)
            return matrix.dtype, matrix.shape[1]
        if not 0 <= value[what] < len(CACHED):
            raise ValueError(f"{self.name}: {what} = {value[what]}, expected one of {len(CACHED)} types, from 0")
        return CACHED[value[what]], value[numbers[0]]

    def _given(self, arrays, value):
        """The names and the words of the arrays that are there; an error where others should be there too."""
        given = [name for (name, *_), a in zip(self.arrays, arrays) if a is not None]
        for word, members in self.groups.items():
            there = [name for name in members if name in given]
            if len(there) == len(members):
                given.append(word)
            elif there:
                absent = next(name for name in members if name not in there)
                raise TypeError(f"{self.name}: {absent} is None, but {there[0]} is not: the arrays of {word!r} come together")
        for what, other in self.needs:
            if (what in given or value.get(what)) and other not in given:
                raise TypeError(f"{self.name}: {what} is given without {other}, which it needs")
        return given
