"""llm.c's binary files for GPT-2: the model and the debug state.

Both are little-endian and begin with a header of 256 int32, of which the first is the file's magic number.
A model continues with the 16 tensors, one after the other:

    version   elements                     rows of wte
    1         float32                      vocab_size
    2         bf16, LayerNorm in float32   vocab_size
    3         float32                      padded_vocab_size
    4         bf16, LayerNorm in float32   padded_vocab_size
    5         bf16                         padded_vocab_size

A debug state continues with x (B,T) and y (B,T) in int32, then logits (B,T,V), the loss and the 16 gradients
in float32; its version 1 has vocab_size rows of wte's gradient, version 2 padded_vocab_size.

In memory a model is always one float32 block with padded rows, zero where a file has none. What a header says
is checked against the size of the file before anything is allocated.
"""

import functools
import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np

from gpt2c.errors import SerializationError, UsageError
from gpt2c.formats.blocks import bf16_bits
from gpt2c.formats.weights import Unread, Weights, loaded
from gpt2c.support.files import StrPath, atomic_write, open_input

HEADER_BYTES = 1024
MODEL_MAGIC = 20240326
DEBUG_MAGIC = 20240327
KINDS = {
    MODEL_MAGIC: "a GPT-2 model of llm.c",
    DEBUG_MAGIC: "a debug state of llm.c",
    20240328: "a tokenizer of llm.c",
    20240520: "a GPT-2 token file of llm.c",
    20240522: "a multiple-choice file of llm.c",
    20240527: "an optimizer state of llm.c",
    20240801: "a Llama-3 token file of llm.c",
    20240803: "a Llama-3 model of llm.c",
}
LIMITS = {  # above any model's needs, so that what is beyond is damage and can be named
    "version": 5,
    "max_seq_len": 2**20,
    "vocab_size": 2**22,
    "num_layers": 4096,
    "num_heads": 2**17,
    "channels": 2**17,
    "padded_vocab_size": 2**22,
}
VERSIONS = (3, 5)  # that are written
LAYERNORM = {"ln1w", "ln1b", "ln2w", "ln2b", "lnfw", "lnfb"}
CHUNK = 2**20  # elements converted at a time


class Header(NamedTuple):
    """What a model file says of itself, in the order of its header."""

    version: int
    max_seq_len: int
    vocab_size: int
    num_layers: int
    num_heads: int
    channels: int
    padded_vocab_size: int


class DebugState(NamedTuple):
    """One batch of GPT-2 with its results, to compare with. Gradients have the shapes of the parameters."""

    x: np.ndarray  # (B,T) int32
    y: np.ndarray  # (B,T) int32
    logits: np.ndarray  # (B,T,V)
    loss: float
    grads: dict[str, np.ndarray]


def gpt2_shapes(config):
    """Name -> shape of the 16 tensors, in the order of the files. `config` is a dict or has attributes."""
    _, T, _, L, _, C, Vp = _header(config)
    return {
        "wte": (Vp, C),
        "wpe": (T, C),
        "ln1w": (L, C),
        "ln1b": (L, C),
        "qkvw": (L, 3 * C, C),
        "qkvb": (L, 3 * C),
        "attprojw": (L, C, C),
        "attprojb": (L, C),
        "ln2w": (L, C),
        "ln2b": (L, C),
        "fcw": (L, 4 * C, C),
        "fcb": (L, 4 * C),
        "fcprojw": (L, C, 4 * C),
        "fcprojb": (L, C),
        "lnfw": (C,),
        "lnfb": (C,),
    }


def model_bytes(header):
    """The exact size of the model file that `header` describes."""
    return HEADER_BYTES + sum(stored * width for _, stored, width in _tensors(header))


def debug_bytes(header, B, T):
    """The exact size of a debug state of B x T tokens, its gradients stored like the model of `header`."""
    return model_bytes(header) + 4 * (2 * B * T + B * T * header.vocab_size + 1)


def read_header(path):
    """The Header of a model file of any version, checked against the size of the file."""
    with open_input(path) as file:
        return _read_header(file)


def is_llmc(head):
    """Whether a file that begins so is one of llm.c's, of whatever kind."""
    return len(head) >= 4 and struct.unpack("<i", head[:4])[0] in KINDS


def read(path):
    """The Weights in a model file of any version; its tensors are read when they are asked for."""
    header = read_header(path)
    config = {name: value for name, value in header._asdict().items() if name != "version"}
    tensors, at = {}, HEADER_BYTES
    for (name, shape), (_, stored, width) in zip(gpt2_shapes(header).items(), _tensors(header)):
        tensors[name] = Unread(shape, functools.partial(_read_one, path, header, at, stored, width))
        at += stored * width
    return Weights("gpt2", config, tensors, form=f"llm.c, version {header.version}", facts={"version": header.version})


def write(path, weights, version=3):
    """Write the Weights of a gpt2 model as version 3 (float32) or 5 (bf16)."""
    _write(path, weights.config, weights.tensors.values(), version)


def read_model(path, flat):
    """Fill `flat`, a float32 block of all tensors with padded rows, from a model file of any version."""
    with open_input(path) as file:
        header = _read_header(file)
        _check_flat(header, flat)
        _read_tensors(file, header, flat)


def write_model(path, config, flat, version=3):
    """Write `flat`, a float32 block of all tensors with padded rows, as version 3 (float32) or 5 (bf16)."""
    _check_flat(_header(config), flat)
    _write(path, config, [flat], version)


def load_debug_state(path: StrPath, config: Any) -> DebugState:
    """Read the debug state of a model with this configuration."""
    with open_input(path) as file:
        version, B, T = _read_ints(file, DEBUG_MAGIC)[1:4]
        if version not in (1, 2):
            raise SerializationError(f"{path}: version is {version}, expected 1 or 2")
        header = _header(config, version=1 if version == 1 else 3)  # the model version with the same tensors
        V = header.vocab_size
        if B < 1 or not 1 <= T <= header.max_seq_len:
            raise SerializationError(f"{path}: B, T are {B}, {T}, expected at least 1, 1 to {header.max_seq_len}")
        _check_size(file, debug_bytes(header, B, T), f"for B = {B}, T = {T} and this model")
        x, y = np.empty((2, B, T), np.int32)
        logits, loss = np.empty((B, T, V), np.float32), np.empty(1, np.float32)
        for array in (x, y, logits, loss):
            _fill(file, array)
        for name, ids in (("x", x), ("y", y)):
            if ids.min() < 0 or ids.max() >= V:
                raise SerializationError(f"{path}: {name} has ids {ids.min()} to {ids.max()}, expected 0 to {V - 1}")
        flat = np.empty(_num_parameters(header), np.float32)
        _read_tensors(file, header, flat)
    grads, start = {}, 0
    for name, shape in gpt2_shapes(header).items():
        size = math.prod(shape)
        grads[name] = flat[start : start + size].reshape(shape)
        start += size
    return DebugState(x, y, logits, float(loss[0]), grads)


def write_debug_state(path, config, x, y, logits, loss, grads):
    """Write a debug state of version 2; logits may have V or padded columns, gradients are padded."""
    header = _header(config)
    (B, T), V = np.shape(x), header.vocab_size
    parts = [
        ("x", x, (B, T), np.int32),
        ("y", y, (B, T), np.int32),
        ("logits", logits[..., :V], (B, T, V), np.float32),
        ("loss", loss, (), np.float32),
    ]
    parts += [(name, grads[name], shape, np.float32) for name, shape in gpt2_shapes(header).items()]
    for name, array, shape, _ in parts:
        if np.shape(array) != shape:
            raise UsageError(f"{name} has shape {np.shape(array)}, expected {shape}")
    with atomic_write(path, debug_bytes(header, B, T)) as file:
        file.write(struct.pack("<4i", DEBUG_MAGIC, 2, B, T).ljust(HEADER_BYTES, b"\0"))
        for _, array, _, dtype in parts:
            file.write(np.ascontiguousarray(array, dtype))


def _header(config, version=3):
    names = Header._fields[1:]
    values = config if isinstance(config, dict) else {name: getattr(config, name) for name in names}
    return Header(version, *(values[name] for name in names))


def _write(path, config, tensors, version):
    if version not in VERSIONS:
        raise UsageError(f"cannot write version {version} of llm.c's model: choose 3 (float32) or 5 (bf16)")
    header = _header(config, version)
    _check_fields(header, path)  # what could not be read back is not written
    with atomic_write(path, model_bytes(header)) as file:
        file.write(struct.pack("<8i", MODEL_MAGIC, *header).ljust(HEADER_BYTES, b"\0"))
        for tensor in tensors:
            _write_one(file, loaded(tensor).reshape(-1), version)


def _write_one(file, flat, version):
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        file.write(chunk if version == 3 else bf16_bits(chunk))


def _tensors(header):
    """(elements in memory, elements in the file, bytes of an element in the file) of every tensor."""
    for name, shape in gpt2_shapes(header).items():
        size = math.prod(shape)
        stored = header.vocab_size * header.channels if name == "wte" and header.version <= 2 else size
        bf16 = header.version == 5 or header.version in (2, 4) and name not in LAYERNORM
        yield size, stored, 2 if bf16 else 4


def _num_parameters(header):
    return sum(size for size, _, _ in _tensors(header))


def _read_ints(file, magic):
    """The 256 int32 at the start of a file that should be of the kind `magic`."""
    head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise SerializationError(f"{file.name} has {len(head):,} bytes, too few for a header of {HEADER_BYTES:,}")
    ints = struct.unpack("<256i", head)
    if ints[0] != magic:
        found = KINDS.get(ints[0], f"of no known kind (it begins with {ints[0]})")
        raise SerializationError(f"{file.name} is {found}, expected {KINDS[magic]}, which begins with {magic}")
    return ints


def _read_header(file):
    header = Header(*_read_ints(file, MODEL_MAGIC)[1:8])
    if header.version in (1, 2):  # the field came with version 3
        header = header._replace(padded_vocab_size=-(-header.vocab_size // 128) * 128)
    _check_fields(header, file.name)
    _check_size(file, model_bytes(header), "by its header")
    return header


def _check_fields(header, path):
    for name, limit in LIMITS.items():
        if not 1 <= getattr(header, name) <= limit:
            raise SerializationError(f"{path}: {name} is {getattr(header, name)}, expected 1 to {limit}")
    _, _, V, _, NH, C, Vp = header
    if C % NH:
        raise SerializationError(f"{path}: channels is {C}, expected a multiple of num_heads, {NH}")
    if Vp < V:
        raise SerializationError(f"{path}: padded_vocab_size is {Vp}, expected at least vocab_size, {V}")


def _check_size(file, expected, why):
    found = os.fstat(file.fileno()).st_size
    if found != expected:
        raise SerializationError(f"{file.name} has {found:,} bytes, expected {expected:,} {why}: get the file again")


def _check_flat(header, flat):
    expected = (_num_parameters(header),)
    if flat.dtype != np.float32 or flat.shape != expected or not flat.flags.c_contiguous:
        raise UsageError(f"the block is {flat.dtype} {flat.shape}, expected contiguous float32 {expected}")


def _read_tensors(file, header, flat):
    start = 0
    for size, stored, width in _tensors(header):
        _read_tensor(file, flat[start : start + size], stored, width)
        start += size


def _read_one(path, header, at, stored, width, out):
    """Reads the tensor at byte `at` of a model file into a contiguous array."""
    with open_input(path) as file:
        if _read_header(file) != header:
            raise SerializationError(f"{path} is another file than when its header was read: load it again")
        file.seek(at)
        _read_tensor(file, out.reshape(-1), stored, width)


def _read_tensor(file, flat, stored, width):
    """Reads a tensor, of which the file has `stored` elements of so many bytes, into a flat array; what is left of it is 0."""
    if width == 4:
        _fill(file, flat[:stored])
    else:
        for at in range(0, stored, CHUNK):
            chunk = flat[at : min(at + CHUNK, stored)]
            bits = np.empty(chunk.size, np.uint16)
            _fill(file, bits)
            np.left_shift(bits, 16, out=chunk.view(np.uint32), dtype=np.uint32)
    flat[stored:] = 0


def _fill(file, array):
    if file.readinto(array) != array.nbytes:
        raise SerializationError(f"{file.name} became shorter while it was read: get the file again")
