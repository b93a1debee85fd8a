"""Models as JSON, for people and for programs that read nothing else: everything that a checkpoint of weights says, and
every number.

    {"format": "gpt2c 2 json", "family": ..., "config": {...}, "num_parameters": N, "saved_at": ..., "description": ...,
     "turns": ..., "sampling": {...}, "tokenizer": {tokenizer.json} or null, "chat": {what that does not say}, "sha256": ...,
     "params": {name: nested lists}}

Numbers are written as short as float32 allows and read back to the same bits. `sha256` is that of [everything else but params,
[[name, shape] of each tensor]] as Python's json.dumps(..., sort_keys=True) writes it, then of the float32 of all tensors in file
order. In version 1 it is that of [family, config] and the float32 alone.
"""

import hashlib
import json
import os
from datetime import UTC, datetime

import numpy as np

from gpt2c.errors import SerializationError, TokenizationError, UsageError, VersionError
from gpt2c.formats.weights import SAID, Weights, is_newer, loaded
from gpt2c.support.files import atomic_write, open_input
from gpt2c.support.machine import in_units, require_memory
from gpt2c.tokenizers.conventions import conventions, with_conventions
from gpt2c.tokenizers.tokenizer import Tokenizer

FORMAT = "gpt2c 2 json"
FIRST = "gpt2c 1 json"  # still read
MOST_PARAMETERS = 20_000_000  # as text they take some 250 MB, and ten times that while they are read
MOST_BYTES = 15 * MOST_PARAMETERS
NEEDED = {  # and what each is, in JSON's words
    "family": (str, "text"),
    "config": (dict, "an object"),
    "tokenizer": ((dict, type(None)), "an object or null"),
    "sha256": (str, "text"),
    "params": (dict, "an object"),
}


def write(path, weights):
    """Writes a small model as JSON."""
    count = sum(tensor.size for tensor in weights.tensors.values())
    if count > MOST_PARAMETERS:
        raise UsageError(
            f"a model of {count:,} parameters is too large for JSON, which takes up to "
            f"{MOST_PARAMETERS:,}: convert it to .safetensors"
        )
    tensors = {name: loaded(tensor) for name, tensor in weights.tensors.items()}
    if not all(np.isfinite(array).all() for array in tensors.values()):
        raise SerializationError("the model has parameters that are not finite, which JSON cannot hold")
    about = {
        "format": FORMAT,
        "family": weights.family,
        "config": weights.config,
        "num_parameters": count,
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: weights.said[name] for name in SAID if name in weights.said},
        "tokenizer": json.loads(weights.tokenizer.to_json()) if weights.tokenizer else None,
    }
    if weights.tokenizer:
        about["chat"] = conventions(weights.tokenizer)
    about["sha256"] = _digest(about, tensors)
    with atomic_write(path) as file:
        text = json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}")
        file.write(text.encode(errors="backslashreplace"))  # half a UTF-16 pair, which is JSON's way to write one too
        file.write(b',\n "params": {')
        for number, (name, array) in enumerate(tensors.items()):
            file.write(f'{"," * (number > 0)}\n  "{name}": {_text(array)}'.encode())
        file.write(b"\n }\n}\n")


def read(path):
    """The Weights in a JSON file."""
    found = _document(path)
    for name, (kind, noun) in NEEDED.items():
        if name not in found or not isinstance(found[name], kind):
            raise _not_whole(path, f"its {name} is {'not' if name in found else 'missing, expected'} {noun}")
    for name in found.keys() & SAID.keys():
        if not SAID[name](found[name]):
            raise _not_whole(path, f"{name} is {found[name]!r}")
    tensors = {name: _array(path, name, values) for name, values in found.pop("params").items()}
    expected = found.pop("sha256")
    try:
        tokenizer = Tokenizer.from_document(found["tokenizer"]) if found["tokenizer"] else None
        if tokenizer and "chat" in found:
            with_conventions(tokenizer, found["chat"])
        digest = _digest(found, tensors)
    except (TokenizationError, RecursionError) as error:  # it may be nested as deeply as can be read and no more
        raise _not_whole(path, error) from None
    if digest != expected:
        raise _not_whole(path, "its SHA-256 is not the one it was saved with")
    said = {name: found[name] for name in SAID if name in found}
    facts = {"sha256": f"that of {'all it holds' if found['format'] == FORMAT else 'its numbers'}, as it is"}
    return Weights(found["family"], found["config"], tensors, tokenizer, said, form=found["format"], facts=facts)


def _document(path):
    """The JSON object in a file that says that it is such a model."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise SerializationError(f"{path} has {in_units(size)}, more than the {in_units(MOST_BYTES)} of a model in JSON")
        require_memory(10 * size, f"reading {path}", "convert it on a larger machine")
        try:
            found = json.loads(file.read().decode())
        except (ValueError, RecursionError) as error:
            raise SerializationError(f"{path} is not JSON: {error}") from None
    form = found.get("format") if isinstance(found, dict) else None
    if form not in (FORMAT, FIRST):
        newer = is_newer(form, FORMAT)
        raise (VersionError if newer else SerializationError)(
            f"{path} is not a model in JSON of the format {FORMAT!r}"
            + (f" but of {form!r}" if form else "")
            + ("; a newer gpt2c wrote it, use that one" if newer else "")
        )
    return found


def _not_whole(path, why):
    return SerializationError(f"{path} is not a whole model: {why}")


def _array(path, name, values):
    try:
        return np.array(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:  # what NumPy raises for lists that are no numbers
        raise _not_whole(path, f"{name} is no array of numbers: {error}") from None


def _digest(about, tensors):
    """Of a model of which `about` is the document without its params and SHA-256."""
    first = about["format"] == FIRST
    covered = (about["family"], about["config"]) if first else (about, [(name, a.shape) for name, a in tensors.items()])
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for array in tensors.values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def _text(array):
    """Nested lists of the shortest decimals that give the same float32."""
    if array.ndim > 1:
        return f"[{', '.join(map(_text, array))}]"
    return f"[{', '.join(array.astype(str))}]"
