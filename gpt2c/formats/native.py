"""Saving and loading models: gpt2c's checkpoint of any family, and llm.c's files for gpt2.

A checkpoint is one safetensors file. Its tensors are the parameters by name and, of a run, the optimizer's moments
("m." and "v." before the name, as far as there are any yet) and whatever else the run carries ("run." before). Its
metadata are text:

    format     "gpt2c 1"
    family, config (JSON), tokenizer (tokenizer.json, or "")
    step, best_val_loss   of the run that the weights are from, where there was one
    description, turns    in the words of whoever made it; of conversations, if it has learned any (Model)
    run        JSON: what a run needs to go on besides its arrays; "" for weights alone
    sha256     of the tensor table, the metadata above and the data
"""

import dataclasses
import hashlib
import json
import os
import re
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2c.errors import Gpt2cError, InputError, SerializationError, UsageError, VersionError
from gpt2c.formats import llmc
from gpt2c.formats.randygpt import is_rgpt, read_rgpt
from gpt2c.models.family import FAMILIES, make_config
from gpt2c.models.model import Model
from gpt2c.support.files import StrPath, atomic_write, open_input
from gpt2c.tokenizers.tokenizer import Tokenizer

FORMAT = "gpt2c 1"
DTYPES = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
SAID = {"description": str, "turns": int}  # more that a checkpoint says of its model, where there is something to say
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class RunState:
    """What a run carries besides the model: plain values and arrays, by name."""

    values: dict = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def save(path, model, run: RunState | None = None, moments=(), step=None, best=None):
    """Writes a checkpoint; with a run, its state and the optimizer's moments, Arenas, go with it."""
    tensors = {arena.prefix + name: arena[name] for arena in (model.params, *moments) for name in arena}
    if run:
        tensors |= {f"run.{name}": np.ascontiguousarray(array) for name, array in run.arrays.items()}
    table, end = {}, 0
    for name, array in tensors.items():
        table[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    metadata = {
        "format": FORMAT,
        "family": model.family,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "tokenizer": model.tokenizer.to_json() if model.tokenizer else "",
        "run": json.dumps(run.values) if run else "",
    }
    metadata |= {name: json.dumps(value) for name, value in (("step", step), ("best_val_loss", best)) if value is not None}
    metadata |= {name: json.dumps(value) for name in SAID if (value := getattr(model, name))}
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


def load(path: StrPath, **switches: Any) -> Model:
    """The Model in a gpt2c checkpoint, an llm.c model file (versions 1 to 5), a checkpoint of randyGPT, or JSON, told apart
    by content."""
    return load_run(path, **switches)[0]


def load_run(path, **switches):
    """(Model, RunState or None): with a run's state, the optimizer's moments are in the model."""
    with open_input(path) as file:
        head = file.read(8)
    if len(head) >= 4 and struct.unpack("<i", head[:4])[0] in llmc.KINDS:
        return _load_llmc(path, **switches), None
    if head[:1] == b"{":
        from gpt2c.formats.json import read_json

        return read_json(path), None
    if is_rgpt(head):
        return _load_rgpt(path, **switches), None
    return read(path).build(**switches)


def newest(paths, warn):
    """The Content of the newest of these checkpoints, oldest first, that is whole; None if there are no checkpoints.

    `warn` is told of each that is damaged. One of a newer version is an error: it must not be passed over.
    """
    paths = list(paths)
    for path in reversed(paths):
        try:
            return read(path)
        except VersionError:
            raise
        except InputError as error:
            warn(f"passed over: {error}")
    if paths:
        raise SerializationError(f"no checkpoint in {paths[0].parent} is whole: start again in another --out-dir, or remove them")
    return None


def _load_llmc(path, **switches):
    header = llmc.read_header(path)
    model = Model("gpt2", make_config("gpt2", {k: v for k, v in header._asdict().items() if k != "version"}), **switches)
    llmc.read_model(path, model.params.flat)
    return model


def _load_rgpt(path, **switches):
    """The weights; the file says neither the characters of its tokens nor where in the data it was."""
    old = read_rgpt(path)
    model = Model("chargpt", make_config("chargpt", old.config), **switches)
    for name, array in old.params.items():
        model.params[name][...] = array
    return model


def metadata(path):
    """What a checkpoint says of itself, without its data being read or checked: {name: value}, and "tensors": the table."""
    with _opened(path) as (metadata, _, table):
        said = {
            name: json.loads(text) if name in ("config", "run", "step", "best_val_loss", *SAID) and text else text
            for name, text in metadata.items()
        }
    return said | {"tensors": table}


@dataclass
class Content:
    """A checkpoint that was found whole: its tensors are views of the file, until they are copied to a model."""

    path: Path
    family: str
    config: object
    tokenizer: Tokenizer | None
    tensors: dict[str, np.ndarray]
    run: RunState | None
    said: dict = field(default_factory=dict)  # of SAID

    def build(self, part=None, **switches):
        """(Model, RunState or None). `part` as in copy_to."""
        model = Model(self.family, self.config, self.tokenizer, **switches)
        for name, value in self.said.items():
            setattr(model, name, value)
        return model, self.copy_to(model, part)

    def copy_to(self, model, part=None):
        """Fills a model of this family and configuration, and lets the file go: a deleted file that is still mapped keeps
        its room on the disk. Of the moments only what lies in part(their size), (first, last), if it is given: no memory
        is taken for the rest. The RunState, or None."""
        tensors, self.tensors = self.tensors, {}
        for arena in (model.params, model.m, model.v):
            begin, end = part(arena.size) if part and arena is not model.params else (0, arena.size)
            for name in arena if arena.prefix + next(iter(arena)) in tensors else ():
                first, last = arena.range(name)
                wanted = slice(max(first, begin), max(first, begin, min(last, end)))
                arena.flat[wanted] = tensors[arena.prefix + name].reshape(-1)[wanted.start - first : wanted.stop - first]
        if not self.run:
            return None
        arrays = {name.removeprefix("run."): array.copy() for name, array in tensors.items() if name.startswith("run.")}
        return RunState(self.run.values, arrays)


def read(path):
    """A checkpoint's Content, all of it checked: the table, the digest, and that the tensors are the model's."""
    with _opened(path) as (metadata, start, table):
        expected = metadata.pop("sha256", None)
        data = np.memmap(path, np.uint8, "r", start) if os.path.getsize(path) > start else np.zeros(0, np.uint8)
        order = sorted(table, key=lambda name: table[name]["data_offsets"][0])
        if _digest(table, metadata, (data[slice(*table[name]["data_offsets"])] for name in order)) != expected:
            raise SerializationError(f"{path} is damaged: its SHA-256 is not the one it was saved with; use another checkpoint")
        tensors = {name: _view(data, **table[name]) for name in order}
        if metadata["family"] not in FAMILIES:
            raise SerializationError(
                f"{path} holds a model of family {metadata['family']!r}; this gpt2c has {', '.join(FAMILIES)}"
            )
        fields = json.loads(metadata["config"])
        if not isinstance(fields, dict):
            raise SerializationError(f"{path}: the config is no object")
        config = make_config(metadata["family"], fields)
        run = RunState(json.loads(metadata["run"])) if metadata["run"] else None
        if run and not isinstance(run.values, dict):
            raise SerializationError(f"{path}: the run is no object")
        _check_tensors(path, FAMILIES[metadata["family"]].params(config), tensors, run)
        tokenizer = Tokenizer.from_json(metadata["tokenizer"]) if metadata["tokenizer"] else None
        said = {name: json.loads(metadata[name]) for name in SAID if name in metadata}
        if any(type(value) is not SAID[name] for name, value in said.items()):
            raise SerializationError(f"{path}: {said} is not what a checkpoint says of itself")
        return Content(path, metadata["family"], config, tokenizer, tensors, run, said)


@contextmanager
def _opened(path):
    """(metadata, where the data begin, tensor table) of a checkpoint; whatever is wrong with it is an InputError."""
    import safetensors  # checks the tensor table: offsets without holes or overlaps, sizes, the file's length

    try:
        with open_input(path) as file:
            head = file.read(9)
            if head[8:] != b"{":
                raise SerializationError(f"{path} is neither a gpt2c checkpoint nor an llm.c model (it begins with {head[:8]!r})")
            with safetensors.safe_open(path, "np") as checked:
                metadata = checked.metadata() or {}
            form = metadata.get("format")
            if form != FORMAT:
                newer = re.fullmatch(r"gpt2c (\d+)", str(form)) and form > FORMAT
                raise (VersionError if newer else SerializationError)(
                    f"{path} is a safetensors file of format {form!r}, expected {FORMAT!r}"
                    + ("; a newer gpt2c wrote it, use that one" if newer else "")
                )
            length = struct.unpack("<Q", head[:8])[0]
            table = json.loads(b"{" + file.read(length - 1))
            table.pop("__metadata__")
            yield metadata, 8 + length, table
    except InputError:
        raise
    except (safetensors.SafetensorError, Gpt2cError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SerializationError(f"{path} is not a valid checkpoint ({error}): it is damaged or cut short; use another") from None


def _view(data, dtype, shape, data_offsets):
    if dtype not in DTYPES:
        raise ValueError(f"a tensor is of type {dtype}, expected one of {', '.join(DTYPES)}")
    return data[slice(*data_offsets)].view(DTYPES[dtype]).reshape(shape)


def _check_tensors(path, specs, tensors, run):
    """An error unless these are the tensors of such a model: parameters, of a run both moments or neither, and its own."""
    moments = [prefix for prefix in ("m.", "v.") if run and prefix + specs[0].name in tensors]
    left = dict(tensors)
    for prefix in ("", *moments):
        for spec in specs:
            array = left.pop(prefix + spec.name)
            if array.shape != spec.shape or array.dtype != np.float32:
                raise SerializationError(
                    f"{path}: {prefix}{spec.name} is {array.dtype} {array.shape}, expected float32 {spec.shape}"
                )
    strange = [name for name in left if not (run and name.startswith("run."))]
    if strange:
        raise SerializationError(f"{path} holds tensors that such a model has not: {', '.join(strange)}")


def save_model(model, path, version=3):
    """The weights alone: JSON for a name in .json, llm.c's format for a gpt2 model and a name in .bin, else a checkpoint."""
    if Path(path).suffix == ".json":
        from gpt2c.formats.json import write_json

        write_json(path, model)
    elif Path(path).suffix == ".bin" and model.family == "gpt2":
        llmc.write_model(path, model.config, model.params.flat, version)
    elif version != 3:
        raise UsageError(f"version {version} is llm.c's: it needs a gpt2 model and a name ending in .bin")
    else:
        save(path, model)
