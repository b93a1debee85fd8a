"""GGUF, the file of llama.cpp and ollama: metadata by name, and tensors in storage types (blocks). gguf_models has the models.

All is little-endian. A text is u64 length, UTF-8; an array is u32 type, u64 count, the elements.

    "GGUF", u32 version (2 and 3 are alike), u64 tensors, u64 pairs
    pairs     key (text), u32 type, value
    tensors   name (text), u32 dimensions, u64 each, the last one first; u32 storage type, u64 offset into the data
    data      from the next multiple of `general.alignment` (32 where it is not said) on; each tensor begins at one

The file is taken for hostile: no number in it is believed before the file is proved to be as long as that asks for.
"""

import math
import os
import struct
from typing import NamedTuple

import numpy as np

from gpt2c.errors import SerializationError, UsageError, VersionError
from gpt2c.formats import blocks, parts
from gpt2c.support.files import atomic_write, open_input

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
KINDS = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    12: "q4_K",
    13: "q5_K",
    14: "q6_K",
    30: "bf16",
}
KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
OTHERS = {10: "Q2_K", 11: "Q3_K", 20: "IQ4_NL", 23: "IQ4_XS", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}  # that people may have

# Types of values, as NumPy names those of numbers.
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, TEXT, ARRAY = 7, 8, 9
NOUNS = {int: "a whole number", float: "a number", str: "text"}
NUMBER_OF = {np.dtype(form): number for number, form in NUMBERS.items()}

# Far above any model's needs: a vocabulary of a million tokens and merges. With them the header takes at most 100 MB in memory.
MOST_BYTES = 2**24  # of the header
MOST_TEXTS = 2**20  # in arrays
READ_AHEAD = 2**18  # bytes
MOST_ENTRIES = 2**16  # pairs, and tensors
DEEPEST = 4  # arrays in arrays


class Tensor(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    at: int  # byte of the file

    @property
    def nbytes(self):
        return blocks.size(self.kind, math.prod(self.shape))


class Rows(NamedTuple):
    """A tensor of a file that has some rows of a parameter. With heads, neighbours in a head of the file are the elements j and
    j + D/2 of the parameter's."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0


class Content(NamedTuple):
    """The header of a file, all of it checked. Values are int, float, bool, str; arrays NumPy's, or lists of str or arrays."""

    path: object
    version: int
    metadata: dict
    tensors: dict[str, Tensor]
    stamp: tuple  # by which the file is known again

    def said(self, key, kind, default=None):
        """A value of the metadata of this type. What is missing is `default`, an error where there is none."""
        value = self.metadata.get(key, default)
        if type(value) is not kind:
            found = "missing" if value is None else quoted(str(value))
            raise invalid(self.path, f"its {key} is {found}, expected {NOUNS[kind]}")
        return value

    def shape(self, name, dimensions):
        """The shape of a tensor that must be there and have so many dimensions."""
        if name not in self.tensors:
            raise invalid(self.path, f"it has no tensor {name}")
        shape = self.tensors[name].shape
        if len(shape) != dimensions:
            raise invalid(self.path, f"{name} has shape {shape}, expected {dimensions} dimensions")
        return shape

    def layers(self, key):
        """The number of layers that it says it has, which is no more than it has tensors."""
        layers = self.said(key, int)
        if not 0 < layers <= len(self.tensors):
            raise invalid(self.path, f"it says that it has {layers:,} layers, and has {len(self.tensors)} tensors")
        return layers

    def agrees(self, sizes):
        """An error if it says of any of these that it is not the size that its tensors have: {key: size}."""
        for key, size in sizes.items():
            if (found := self.said(key, int, size)) != size:
                raise invalid(self.path, f"its {key} is {found:,}, and {size:,} by its tensors")

    def part(self, name):
        """A tensor, to be read when it is needed."""
        kind, shape, at = self.tensors[name]
        return parts.in_file(self.path, self.stamp, at, kind, shape)


def is_gguf(head):
    """Whether a file that begins so is one."""
    return head[:4] == MAGIC


def invalid(path, why):
    """The error that says so of a file."""
    return SerializationError(f"{path} is not a valid GGUF file: {why}; get it again")


def quoted(text):
    """A text of a file in an error: its beginning, in one line."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def short(number):
    """The shortest decimals that are this float32."""
    return float(str(np.float32(number)))


def read(path):
    """The Content of a file."""
    with open_input(path) as file:
        source = _Source(path, file)
        version, tensors, pairs = source.beginning()
        metadata = dict(source.pair() for _ in range(pairs))
        if len(metadata) < pairs:
            raise invalid(path, "two of its keys are the same")
        infos = [source.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 2**31 or alignment & (alignment - 1):
            raise invalid(path, f"its alignment is {quoted(str(alignment))}, expected a power of two")
        start = -(-source.at // alignment) * alignment
        return Content(path, version, metadata, _placed(path, infos, start, alignment, source.size), parts.stamp(file))


def _placed(path, infos, start, alignment, size):
    """{name: Tensor} of those that were found, each in a place of its own within the file."""
    placed = {}
    for name, kind, shape, offset in infos:
        tensor = placed[name] = Tensor(kind, shape, start + offset)
        if offset % alignment or tensor.at + tensor.nbytes > size:
            raise invalid(path, f"the tensor {quoted(name)} has {tensor.nbytes:,} bytes at byte {tensor.at:,} of {size:,}")
    if len(placed) < len(infos):
        raise invalid(path, "two of its tensors have the same name")
    end = 0
    for name, tensor in sorted(placed.items(), key=lambda entry: entry[1].at):
        if tensor.at < end:
            raise invalid(path, f"the tensor {quoted(name)} begins before the one before it ends")
        end = tensor.at + tensor.nbytes
    return placed


class _Source:
    """A file that is read from its beginning, never beyond its end, and as far as a header may go."""

    def __init__(self, path, file):
        self.path, self.file, self.head, self.at, self.texts_left = path, file, b"", 0, MOST_TEXTS
        self.size = os.fstat(file.fileno()).st_size

    def require(self, size):
        """An error unless so many bytes of a header follow; they are in `head` then."""
        if size > self.size - self.at:
            raise invalid(self.path, f"{size:,} bytes are said to follow byte {self.at:,} of {self.size:,}")
        if size > MOST_BYTES - self.at:
            raise invalid(self.path, f"its header has more than {MOST_BYTES:,} bytes")
        if (lacking := self.at + size - len(self.head)) > 0:
            self.head += self.file.read(max(lacking, len(self.head), READ_AHEAD))
            if self.at + size > len(self.head):
                raise invalid(self.path, "it became shorter while it was read")

    def take(self, size):
        self.require(size)
        self.at += size
        return self.head[self.at - size : self.at]

    def unpacked(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def beginning(self):
        """The version, and how many tensors and pairs there are."""
        if self.take(4) != MAGIC:
            raise invalid(self.path, "it does not begin with GGUF")
        (version,) = self.unpacked("<I")
        if version not in VERSIONS:
            if version and version & 0xFFFF == 0:
                raise SerializationError(f"{self.path} is a GGUF file for big-endian machines: get the one for little-endian")
            newer = VERSIONS[-1] < version < 2**16
            raise (VersionError if newer else SerializationError)(
                f"{self.path} is a GGUF file of version {version}, expected {' or '.join(map(str, VERSIONS))}: "
                + ("a newer gpt2c may read it" if newer else "convert it again with today's llama.cpp")
            )
        tensors, pairs = self.unpacked("<2Q")
        if max(tensors, pairs) > MOST_ENTRIES:
            raise invalid(self.path, f"it says that it has {tensors:,} tensors and {pairs:,} keys")
        return version, tensors, pairs

    def text(self, most=MOST_BYTES):
        (length,) = self.unpacked("<Q")
        if length > most:
            raise invalid(self.path, f"a name has {length:,} bytes, expected at most {most:,}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise invalid(self.path, f"the text before byte {self.at:,} is not UTF-8") from None

    def texts(self, count):
        """So many of them. A slice ends where `head` does, so that one look at the end says whether all of them were there."""
        end = self.at + 8 * count
        while True:
            self.require(end - self.at)
            head, end, found = self.head, self.at, []
            for _ in range(count):
                first = end + 8
                end = first + int.from_bytes(head[end:first], "little")
                found.append(head[first:end])
            if end <= len(head):
                break
        self.at = end
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError:
            raise invalid(self.path, f"a text before byte {end:,} is not UTF-8") from None

    def pair(self):
        key = self.text(2**16 - 1)
        return key, self.value(*self.unpacked("<I"))

    def value(self, kind):
        if kind in NUMBERS:
            return self.numbers(kind, 1)[0].item()
        if kind == BOOL:
            return self.bools(1)[0].item()
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array()
        raise invalid(self.path, f"the value before byte {self.at:,} is of type {kind}, expected 0 to 12")

    def numbers(self, kind, count):
        return np.frombuffer(self.take(count * np.dtype(NUMBERS[kind]).itemsize), NUMBERS[kind])

    def bools(self, count):
        data = self.take(count)
        if data.strip(b"\0\1"):
            raise invalid(self.path, f"a truth value before byte {self.at:,} is neither 0 nor 1")
        return np.frombuffer(data, np.bool_)

    def array(self, depth=1):
        kind, count = self.unpacked("<IQ")
        if kind in NUMBERS:
            return self.numbers(kind, count)
        if kind == BOOL:
            return self.bools(count)
        if kind not in (TEXT, ARRAY) or depth == DEEPEST:
            raise invalid(self.path, f"an array before byte {self.at:,} has elements of type {kind}, {depth} deep")
        self.texts_left -= count * (1 if kind == TEXT else 16)  # which is what an array takes more in memory
        if self.texts_left < 0:
            raise invalid(self.path, f"an array before byte {self.at:,} has {count:,} elements")
        return self.texts(count) if kind == TEXT else [self.array(depth + 1) for _ in range(count)]

    def tensor(self):
        """(name, kind, shape, offset)."""
        name = self.text(64)
        (dimensions,) = self.unpacked("<I")
        if not 1 <= dimensions <= 4:
            raise invalid(self.path, f"the tensor {quoted(name)} has {dimensions:,} dimensions, expected 1 to 4")
        shape = self.unpacked(f"<{dimensions}Q")[::-1]
        number, offset = self.unpacked("<IQ")
        if number not in KINDS:
            found, known = OTHERS.get(number, f"number {number}"), ", ".join(blocks.KINDS).upper()
            raise SerializationError(f"{self.path}: {quoted(name)} is stored as {found}; gpt2c reads {known}")
        if not all(shape) or shape[-1] % blocks.KINDS[KINDS[number]].elements:
            raise invalid(self.path, f"the tensor {quoted(name)} of shape {shape} is no whole number of blocks")
        return name, KINDS[number], shape, offset


# ---- writing


def write(path, metadata, tensors):
    """Writes a file of version 3. Values are bool, int (u32), float (float32), text, a list of texts or a NumPy array; tensors
    are Parts by name."""
    head = bytearray(MAGIC + struct.pack("<I2Q", VERSIONS[-1], len(tensors), len(metadata)))
    for key, value in metadata.items():
        try:
            head += _text(key) + _typed(value)
        except (OverflowError, struct.error):
            raise UsageError(f"{key} is {quoted(str(value))}, more than a GGUF file holds there") from None
    end = 0
    for name, part in tensors.items():
        dimensions = part.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", KIND_NUMBERS[part.kind], end)
        end = _aligned(end + blocks.size(part.kind, math.prod(part.shape)))
    with atomic_write(path, _aligned(len(head)) + end) as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        for part in tensors.values():
            for piece in part.pieces():
                file.write(piece)
            file.write(bytes(_aligned(file.tell()) - file.tell()))


def _aligned(at):
    return -(-at // ALIGNMENT) * ALIGNMENT


def _text(text):
    data = text.encode(errors="replace")  # half a UTF-16 pair, as a name that is no UTF-8 arrives from a command line
    return struct.pack("<Q", len(data)) + data


def _typed(value):
    """The type and the bytes of a value."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<2I", NUMBER_OF[np.dtype("<u4")], value)
    if isinstance(value, float):
        return struct.pack("<If", NUMBER_OF[np.dtype("<f4")], value)
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<2IQ", ARRAY, NUMBER_OF[value.dtype], len(value)) + value.tobytes()
    return struct.pack("<2IQ", ARRAY, TEXT, len(value)) + b"".join(map(_text, value))
