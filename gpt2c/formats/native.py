"""gpt2c's checkpoint: a model of any family, and the run that it is from.

It is one safetensors file. Its tensors are the parameters by name and, of a run, the optimizer's moments ("m." and "v."
before the name, as far as there are any yet) and whatever else the run carries ("run." before). Its metadata are text:

    format     "gpt2c 2"; in "gpt2c 1" a run that backpropagates through several chunks carried the engine's memory
    family, config (JSON), tokenizer (tokenizer.json, or "")
    chat       JSON, where there is a tokenizer: what a tokenizer.json does not say (tokenizers/conventions.py)
    step, best_val_loss   of the run that the weights are from, where there was one
    description, turns    free text; turns of conversations it was trained on, if any (Model)
    sampling   how tokens of it are best chosen, by setting (support/choice.py)
    run        JSON: the state of a run, besides its arrays: an object with the step, its flags (config) and, of a run on data,
               the position in them (loader); "" for weights alone
    sha256     of the tensor table, the metadata above and the data
"""

import hashlib
import json
import os
import struct

import numpy as np

from gpt2c.errors import SerializationError, TokenizationError, VersionError
from gpt2c.formats.weights import SAID, RunState, Weights, is_newer, loaded
from gpt2c.support.files import atomic_write, open_input
from gpt2c.tokenizers.conventions import conventions, with_conventions
from gpt2c.tokenizers.tokenizer import Tokenizer

FORMAT, READ = "gpt2c 2", ("gpt2c 1", "gpt2c 2")
DTYPES = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
NEEDED = ("family", "config", "tokenizer", "run")
OF_A_RUN = {"step": lambda value: type(value) is int, "best_val_loss": lambda value: type(value) in (int, float)}


def write(path, weights):
    """Writes a checkpoint; a run and its moments go with the weights where there are any."""
    tensors = weights.tensors | weights.moments
    if weights.run:
        tensors |= {f"run.{name}": np.ascontiguousarray(array) for name, array in weights.run.arrays.items()}
    table, end = {}, 0
    for name, tensor in tensors.items():
        entry = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        table[name] = entry
        end += tensor.nbytes
    metadata = {
        "format": FORMAT,
        "family": weights.family,
        "config": json.dumps(weights.config),
        "tokenizer": weights.tokenizer.to_json() if weights.tokenizer else "",
        "run": json.dumps(weights.run.values) if weights.run else "",
    }
    if weights.tokenizer:
        metadata["chat"] = json.dumps(conventions(weights.tokenizer))
    metadata |= {name: json.dumps(weights.said[name]) for name in (*OF_A_RUN, *SAID) if name in weights.said}
    metadata["sha256"] = _digest(table, metadata, (loaded(t).data.cast("B") for t in tensors.values() if t.size))
    header = json.dumps({"__metadata__": metadata, **table}).encode()
    header += b" " * (-len(header) % 64 + 56)  # the data begin at a multiple of 64 bytes
    with atomic_write(path, 8 + len(header) + end) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for tensor in tensors.values():
            file.write(loaded(tensor).data)


def read(path):
    """The Weights in a checkpoint, its digest checked; the arrays are views of the file."""
    metadata, start, table = _opened(path)
    expected = metadata.pop("sha256", None)
    data = np.memmap(path, np.uint8, "r", start) if os.path.getsize(path) > start else np.zeros(0, np.uint8)
    order = sorted(table, key=lambda name: table[name]["data_offsets"][0])
    if _digest(table, metadata, (data[slice(*table[name]["data_offsets"])] for name in order)) != expected:
        raise SerializationError(f"{path} is damaged: its SHA-256 is not the one it was saved with; use another checkpoint")
    if missing := [name for name in NEEDED if name not in metadata]:
        raise invalid(path, f"it does not say its {', '.join(missing)}")
    tensors = {name: _view(path, data, table[name]) for name in order}
    values = _parsed(path, metadata)
    if not isinstance(values.get("config"), dict):
        raise SerializationError(f"{path}: the config is no object")
    if metadata["run"] and not _is_run(values["run"]):
        raise invalid(path, "its run is none")
    said = {name: values[name] for name in (*SAID, *OF_A_RUN) if name in values}
    if not all((OF_A_RUN | SAID)[name](value) for name, value in said.items()):
        raise SerializationError(f"{path}: {said} is not what a checkpoint says of itself")
    run, moments = None, {}
    if metadata["run"]:
        run = RunState(values["run"], _taken(tensors, "run."))
        moments = {prefix + name: array for prefix in ("m.", "v.") for name, array in _taken(tensors, prefix).items()}
    try:
        tokenizer = Tokenizer.from_json(metadata["tokenizer"]) if metadata["tokenizer"] else None
        if tokenizer and "chat" in values:
            with_conventions(tokenizer, values["chat"])
    except TokenizationError as error:
        raise invalid(path, error) from None
    facts = {"sha256": f"{expected}, as it is"}
    return Weights(metadata["family"], values["config"], tensors, tokenizer, said, run, moments, metadata["format"], facts)


def metadata(path):
    """The metadata of a checkpoint, without reading or checking its data: {name: value}, and "tensors": the table."""
    metadata, _, table = _opened(path)
    return metadata | _parsed(path, metadata) | {"tensors": table}


def invalid(path, why):
    """The error that says so of a checkpoint."""
    why = " ".join(str(why).split())  # in a line, whatever it quotes
    return SerializationError(f"{path} is not a valid checkpoint ({why}): it is damaged or cut short; use another")


def _opened(path):
    """(metadata, where the data begin, tensor table) of a checkpoint."""
    import safetensors  # checks the tensor table: offsets without holes or overlaps, sizes, the file's length

    with open_input(path) as file:
        head = file.read(9)
        if head[8:] != b"{":
            raise SerializationError(f"{path} is neither a gpt2c checkpoint nor an llm.c model (it begins with {head[:8]!r})")
        try:
            with safetensors.safe_open(path, "np") as checked:
                metadata = checked.metadata() or {}
        except safetensors.SafetensorError as error:
            raise invalid(path, error) from None
        form = metadata.get("format")
        if form not in READ:
            newer = is_newer(form, FORMAT)
            raise (VersionError if newer else SerializationError)(
                f"{path} is a safetensors file of format {form!r}, expected {FORMAT!r}"
                + ("; a newer gpt2c wrote it, use that one" if newer else "; of a Hugging Face model, name the folder")
            )
        length = struct.unpack("<Q", head[:8])[0]
        table = _from_json(path, b"{" + file.read(length - 1))
    del table["__metadata__"]
    if not all(isinstance(entry, dict) for entry in table.values()):  # which safetensors takes as lists too
        raise invalid(path, "an entry of its tensor table is no object")
    return metadata, 8 + length, table


def _is_run(run):
    """Whether the state of a run has what every program that resumes one asks for first; each checks the rest of its own."""
    return (
        isinstance(run, dict)
        and type(run.get("step")) is int
        and all(isinstance(run.get(n, {}), dict) for n in ("config", "loader"))
    )


def _parsed(path, metadata):
    """{name: value} of the metadata that are JSON."""
    names = ("config", "run", "chat", *OF_A_RUN, *SAID)
    return {name: _from_json(path, metadata[name]) for name in names if metadata.get(name)}


def _from_json(path, text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(path, error) from None


def _view(path, data, entry):
    if entry["dtype"] not in DTYPES:
        raise invalid(path, f"a tensor is of type {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    array = data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]])
    try:
        return array.reshape(entry["shape"])
    except ValueError as error:  # NumPy has less room for dimensions than the table
        raise invalid(path, error) from None


def _taken(tensors, prefix):
    """Takes the tensors whose names begin so out of `tensors`; {name without it: array}."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _digest(table, metadata, blocks):
    text = json.dumps([{name: table[name] for name in sorted(table)}, {k: metadata[k] for k in sorted(metadata)}])
    digest = hashlib.sha256(text.encode())
    for _ in map(digest.update, blocks):  # no name keeps a block while the next one is read
        pass
    return digest.hexdigest()
