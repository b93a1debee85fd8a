"""Parameters as Parts, and Parts as parameters: what the formats share whose files have some rows of a parameter in each tensor,
in storage types (blocks). Everything goes piece by piece, so that neither reading nor writing takes a model's memory."""

import functools
import math
import os
from collections import Counter

import numpy as np

from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats import blocks
from gpt2c.formats.weights import Part, Unread, loaded
from gpt2c.support.files import open_input

READ = 2**20  # elements that are read at a time: a matrix of a small model, which threads then lay out in one go


def stamp(file):
    """By which an open file is known again."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def in_file(path, known, at, kind, shape):
    """A Part that is in a file, whose stamp is known, from this byte on: read when it is needed."""
    elements, nbytes, *_ = blocks.KINDS[kind]

    def pieces():
        left = blocks.size(kind, math.prod(shape))
        with open_input(path) as file:
            if stamp(file) != known:
                raise SerializationError(f"{path} is another file than when its header was read: load it again")
            file.seek(at)
            while left:
                piece = np.empty(min(left, READ // elements * nbytes), np.uint8)
                if file.readinto(piece) != piece.nbytes:
                    raise SerializationError(f"{path} became shorter while it was read: get the file again")
                left -= piece.nbytes
                yield piece

    return Part(kind, tuple(shape), pieces)


def unread(shape, parts):
    """A parameter of this shape, of which these Parts have the first rows and the rest is 0."""

    def fill(out):
        flat, at = out.reshape(-1), 0
        for part in parts:
            for piece in part.pieces():
                count = blocks.count(part.kind, piece.size)
                blocks.decode(part.kind, piece, flat[at : at + count])
                at += count
        flat[at:] = 0

    return Unread(shape, fill, tuple(parts))


class Source:
    """The parameters that a writer is given, by name, as Parts."""

    def __init__(self, tensors):
        self._tensors, self._name, self._array = tensors, None, None

    def parts(self, name, shapes):
        """A parameter as consecutive Parts of these shapes, from its first row on: as the file has them that it is still in, or
        else of its float32 array."""
        tensor = self._tensors[name]
        if isinstance(tensor, Unread) and [part.shape for part in tensor.parts] == list(shapes):
            return list(tensor.parts)
        found, first = [], 0
        for shape in shapes:
            found.append(Part("f32", shape, functools.partial(self._rows, name, first, math.prod(shape))))
            first += math.prod(shape)
        return found

    def _rows(self, name, first, size):
        """The bytes of so many numbers of a parameter. One array is in memory: of the parameter that was asked for last."""
        if name != self._name:
            self._array = None  # before there is another one
            self._name, self._array = name, loaded(self._tensors[name])
        yield from blocks.encode("f32", self._array.reshape(-1)[first : first + size])


def of_array(array):
    """A float32 array as a Part."""
    return Part("f32", array.shape, functools.partial(blocks.encode, "f32", array.reshape(-1)))


def converted(name, part, kind):
    """A Part in another storage type; as it is where it has this one. `name` is what an error calls it."""
    if part.kind == kind:
        return part

    def pieces():
        for piece in part.pieces():
            values = np.empty(blocks.count(part.kind, piece.size), np.float32)
            blocks.decode(part.kind, piece, values)
            if not blocks.fits(kind, values):
                raise UsageError(f"{name} cannot be {kind}: it has numbers that are infinite or too large for that; choose bf16")
            yield from blocks.encode(kind, values)

    return Part(kind, part.shape, pieces)


def reordered(part, order):
    """A Part with its rows, whole blocks, as they are but in this order: new row i is the old row order[i]."""

    def pieces():
        yield _joined(part).reshape(len(order), -1)[order].reshape(-1)

    return part._replace(pieces=pieces)


def transposed(part):
    """A matrix of single numbers, (N, M), as (M, N)."""
    rows, columns = part.shape

    def pieces():
        matrix = _joined(part).view(f"<u{blocks.KINDS[part.kind].nbytes}").reshape(rows, columns)
        step = max(1, blocks.PIECE // rows)
        for at in range(0, columns, step):
            yield np.ascontiguousarray(matrix[:, at : at + step].T).reshape(-1).view(np.uint8)

    return Part(part.kind, (columns, rows), pieces)


def same(part, other):
    """Whether two Parts are the same numbers in the same storage type."""
    alike = (part.kind, part.shape) == (other.kind, other.shape)
    return alike and all((a == b).all() for a, b in zip(part.pieces(), other.pieces(), strict=True))


def _joined(part):
    """All bytes of a Part."""
    data, at = np.empty(blocks.size(part.kind, math.prod(part.shape)), np.uint8), 0
    for piece in part.pieces():
        data[at : at + piece.size] = piece
        at += piece.size
    return data


def commonest(parts):
    """The storage type of most numbers in matrices."""
    counts = Counter()
    for part in parts:
        counts[part.kind] += math.prod(part.shape) * (len(part.shape) > 1)
    return counts.most_common(1)[0][0]
