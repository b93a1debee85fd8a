"""safetensors, the container of Hugging Face's models: tensors by name, in one file or in several with an index.

    u64       little-endian: length of the header
    header    JSON: {"name": {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, ..., "__metadata__": {text: text}}
    data      where the offsets count from, without holes; little-endian, row by row

An index is JSON: {"metadata": {"total_size": bytes}, "weight_map": {name: the file that has it}}. The files are taken for
hostile: no number in them is believed before the file is proved to be as long as that asks for.
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import NamedTuple

from gpt2c.errors import SerializationError
from gpt2c.formats import blocks, parts
from gpt2c.support.files import atomic_write, open_input

KINDS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA = {"format": "pt"}  # without which some versions of transformers refuse a file
MOST_HEADER = 2**24  # bytes: far above any model's needs, as the next ones
MOST_TENSORS = 2**16
MOST_DIMENSIONS = 8
MOST_DATA = 5 * 10**9  # bytes of tensors in a file that is written; a larger model is several files


class Tensor(NamedTuple):
    path: object
    stamp: tuple  # of the file, by which it is known again
    dtype: str  # as the file says it
    shape: tuple[int, ...]
    at: int  # byte of the file

    def part(self):
        """Its numbers, to be read when they are needed."""
        return parts.in_file(self.path, self.stamp, self.at, KINDS[self.dtype], self.shape)


def quoted(value):
    """What a file says, in an error: its beginning, in one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def invalid(path, why):
    """The error that says so of a file."""
    return SerializationError(f"{path} is not valid: {why}; get it again")


def parsed(path, data):
    """The object that a JSON text is."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise invalid(path, f"it is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise invalid(path, "it is no object of JSON")
    return found


def read(path):
    """{name: Tensor} of a file, its header checked."""
    with open_input(path) as file:
        stamp, size = parts.stamp(file), os.fstat(file.fileno()).st_size
        head = file.read(9)
        length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
        if head[8:] != b"{" or not 2 <= length <= min(size - 8, MOST_HEADER):
            raise invalid(path, f"it begins with {head!r}, expected the length of its header and a brace")
        table = parsed(path, b"{" + file.read(length - 1))
    table.pop("__metadata__", None)
    if len(table) > MOST_TENSORS:
        raise invalid(path, f"it has {len(table):,} tensors, expected at most {MOST_TENSORS:,}")
    start, end = 8 + length, 0
    found = {name: _entry(path, name, entry) for name, entry in table.items()}
    for name, (_, _, begin, until) in sorted(found.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise invalid(path, f"the tensor {quoted(name)} begins at byte {begin:,} of the data, expected {end:,}")
        end = until
    if start + end != size:
        raise invalid(path, f"its tensors end at byte {start + end:,} of {size:,}")
    return {name: Tensor(path, stamp, dtype, shape, start + begin) for name, (dtype, shape, begin, _) in found.items()}


def _entry(path, name, entry):
    """(dtype, shape, begin, end) of a tensor in the table; of the sizes that they say."""

    def are_sizes(values, most):
        return isinstance(values, list) and len(values) <= most and all(type(n) is int and 0 <= n < 2**63 for n in values)

    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise invalid(path, f"the tensor {quoted(name)} has no dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not are_sizes(shape, MOST_DIMENSIONS) or not are_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise invalid(path, f"the tensor {quoted(name)} has shape {quoted(shape)} and offsets {quoted(offsets)}")
    kind = KINDS.get(entry["dtype"])
    if kind and offsets[1] - offsets[0] != blocks.size(kind, math.prod(shape)):
        raise invalid(path, f"the tensor {quoted(name)} of shape {quoted(shape)} has {offsets[1] - offsets[0]:,} bytes")
    return entry["dtype"], tuple(shape), *offsets


def read_folder(folder):
    """{name: Tensor} of the file or files in a folder."""
    folder = Path(folder)
    if (folder / FILE).exists() or not (folder / INDEX).exists():
        return read(folder / FILE)
    path = folder / INDEX
    with open_input(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_HEADER:
            raise invalid(path, f"it has more than {MOST_HEADER:,} bytes")
        names = parsed(path, file.read()).get("weight_map")
    if not isinstance(names, dict) or not all(map(_is_plain, names.values())):
        raise invalid(path, "its weight_map does not name a file beside it for each tensor")
    files = {name: read(folder / name) for name in sorted(set(names.values()))}
    for name, file in names.items():
        if name not in files[file]:
            raise invalid(path, f"{quoted(file)} does not have the tensor {quoted(name)}")
    return {name: files[file][name] for name, file in names.items()}


def _is_plain(name):
    """Whether this is the name of such a file, in the same folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and name.isprintable() and not {"/", "\\"} & {*name}


# ---- writing


def write(path, tensors):
    """Writes Parts by name: those of wide numbers first, so that each begins at a multiple of its numbers' size."""
    table, end = {"__metadata__": METADATA}, 0
    tensors = dict(sorted(tensors.items(), key=lambda item: -blocks.KINDS[item[1].kind].nbytes))
    for name, part in tensors.items():
        begin, end = end, end + nbytes(part)
        table[name] = {"dtype": DTYPES[part.kind], "shape": list(part.shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(path, 8 + len(header) + end) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for part in tensors.values():
            for piece in part.pieces():
                file.write(piece)


def write_folder(folder, tensors):
    """Writes Parts by name into a folder: one file, or several with an index."""
    groups, room = [{}], MOST_DATA
    for name, part in tensors.items():
        if nbytes(part) > room and groups[-1]:
            groups.append({})
            room = MOST_DATA
        groups[-1][name] = part
        room -= nbytes(part)
    if len(groups) == 1:
        return write(folder / FILE, tensors)
    names = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write(folder / file, group)
        names |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": sum(map(nbytes, tensors.values()))}, "weight_map": names}
    with atomic_write(folder / INDEX) as file:
        file.write(json.dumps(index, indent=2).encode())


def nbytes(part):
    return blocks.size(part.kind, math.prod(part.shape))
