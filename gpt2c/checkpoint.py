"""Saving and loading models: gpt2c's checkpoint of any family, and llm.c's files for gpt2.

A checkpoint is one safetensors file. Its tensors are the parameters by name and, of a run, Adam's moments ("m." and
"v." before the name) and whatever else the run carries ("run." before). Its metadata are text:

    format     "gpt2c 1"
    family, config (JSON), tokenizer (tokenizer.json, or "")
    run        JSON: what a run needs to go on besides its arrays; "" for weights alone
    sha256     of the tensor table, the metadata above and the data
"""
import dataclasses
import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2c import llmc
from gpt2c.errors import InputError, UsageError
from gpt2c.files import atomic_write, open_input
from gpt2c.model import Model
from gpt2c.models import FAMILIES, make_config
from gpt2c.tokenizer import Tokenizer

FORMAT = "gpt2c 1"
DTYPES = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I32": np.dtype("<i4"), "U32": np.dtype("<u4"),
          "I64": np.dtype("<i8"), "U64": np.dtype("<u8")}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class RunState:
    """What a run carries besides the model: plain values and arrays, by name."""

    values: dict = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def save(path, model, run: RunState | None = None):
    """Writes a checkpoint; with a run, Adam's moments and the run's state go with it."""
    tensors = {name: model.params[name] for name in model.params}
    if run:
        tensors |= {f"m.{name}": model.m[name] for name in model.m} | {f"v.{name}": model.v[name] for name in model.v}
        tensors |= {f"run.{name}": np.ascontiguousarray(array) for name, array in run.arrays.items()}
    table, end = {}, 0
    for name, array in tensors.items():
        table[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    metadata = {"format": FORMAT, "family": model.family, "config": json.dumps(dataclasses.asdict(model.config)),
                "tokenizer": model.tokenizer.to_json() if model.tokenizer else "",
                "run": json.dumps(run.values) if run else ""}
    metadata["sha256"] = _digest(table, metadata, (array.data.cast("B") for array in tensors.values() if array.size))
    header = json.dumps({"__metadata__": metadata, **table}).encode()
    header += b" " * (-len(header) % 64 + 56)  # the data begin at a multiple of 64 bytes
    with atomic_write(path, 8 + len(header) + end) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for array in tensors.values():
            file.write(array.data)


def _digest(table, metadata, blocks):
    text = json.dumps([{name: table[name] for name in sorted(table)}, {k: metadata[k] for k in sorted(metadata)}])
    digest = hashlib.sha256(text.encode())
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def load(path, **switches):
    """The Model in a gpt2c checkpoint or an llm.c model file (versions 1 to 5), told apart by content."""
    return load_run(path, **switches)[0]


def load_run(path, **switches):
    """(Model, RunState or None): with a run's state, Adam's moments are in the model."""
    with open_input(path) as file:
        head = file.read(9)
    if len(head) >= 4 and struct.unpack("<i", head[:4])[0] in llmc.KINDS:
        return _load_llmc(path, **switches), None
    if head[8:9] != b"{":
        raise InputError(f"{path} is neither a gpt2c checkpoint nor an llm.c model (it begins with {head[:8]!r})")
    return _load_checkpoint(path, **switches)


def _load_llmc(path, **switches):
    header = llmc.read_header(path)
    model = Model("gpt2", make_config("gpt2", {k: v for k, v in header._asdict().items() if k != "version"}), **switches)
    llmc.read_model(path, model.params.flat)
    return model


def _load_checkpoint(path, **switches):
    import safetensors  # checks the tensor table: offsets without holes or overlaps, sizes, the file's length

    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = metadata.get("format")
                raise InputError(f"{path} is a safetensors file of format {found!r}, expected {FORMAT!r}"
                                 + ("; a newer gpt2c wrote it" if str(found).startswith("gpt2c ") else ""))
            start, table = _table(path)
            expected = metadata.pop("sha256", None)
            data = np.memmap(path, np.uint8, "r", start)
            order = sorted(table, key=lambda name: table[name]["data_offsets"][0])
            blocks = (data[slice(*table[name]["data_offsets"])] for name in order)
            if _digest(table, metadata, blocks) != expected:
                raise InputError(f"{path} is damaged: its SHA-256 is not the one it was saved with; use another checkpoint")
            return _build(path, metadata, {name: file.get_tensor(name) for name in order}, switches)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a valid checkpoint: {error}") from None


def _table(path):
    """Where the data begin, and the tensor table of a file that safetensors has found valid."""
    with open_input(path) as file:
        length = struct.unpack("<Q", file.read(8))[0]
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return 8 + length, table


def _build(path, metadata, tensors, switches):
    if metadata["family"] not in FAMILIES:
        raise InputError(f"{path} holds a model of family {metadata['family']!r}; this gpt2c has {', '.join(FAMILIES)}")
    tokenizer = Tokenizer.from_json(metadata["tokenizer"]) if metadata["tokenizer"] else None
    model = Model(metadata["family"], make_config(metadata["family"], json.loads(metadata["config"])), tokenizer, **switches)
    run = RunState(json.loads(metadata["run"])) if metadata["run"] else None
    for prefix, arena in (("", model.params), ("m.", model.m), ("v.", model.v))[: 3 if run else 1]:
        for spec in arena.specs:
            array = tensors.pop(prefix + spec.name)
            if array.shape != spec.shape or array.dtype != np.float32:
                raise InputError(f"{path}: {prefix}{spec.name} is {array.dtype} {array.shape}, expected float32 {spec.shape}")
            arena[spec.name][...] = array
    if run:
        run.arrays = {name.removeprefix("run."): tensors.pop(name) for name in list(tensors) if name.startswith("run.")}
    if tensors:
        raise InputError(f"{path} holds tensors that a {metadata['family']} model has not: {', '.join(tensors)}")
    return model, run


def save_model(model, path, version=3):
    """The weights alone: llm.c's format for a gpt2 model and a name in .bin, else a checkpoint."""
    if Path(path).suffix == ".bin" and model.family == "gpt2":
        llmc.write_model(path, model.config, model.params.flat, version)
    elif version != 3:
        raise UsageError(f"version {version} is llm.c's: it needs a gpt2 model and a name ending in .bin")
    else:
        save(path, model)
