"""Models as JSON, for people and for programs that read nothing else: everything that a checkpoint of weights says, and
every number.

    {"format": "gpt2c 1 json", "family": ..., "config": {...}, "num_parameters": N, "saved_at": ..., "description": ...,
     "turns": ..., "tokenizer": {tokenizer.json} or null, "sha256": ..., "params": {name: nested lists}}

Numbers are written as short as float32 allows and read back to the same bits. `sha256` is that of the family, the config,
and the float32 of all parameters in file order.
"""

import dataclasses
import hashlib
import json
import os
import re
from datetime import UTC, datetime

import numpy as np

from gpt2c.errors import SerializationError, UsageError, VersionError
from gpt2c.formats.native import SAID
from gpt2c.models.family import family_named, make_config
from gpt2c.models.model import Model
from gpt2c.support.files import atomic_write, open_input
from gpt2c.support.machine import in_units, require_memory
from gpt2c.tokenizers.tokenizer import Tokenizer

FORMAT = "gpt2c 1 json"
MOST_PARAMETERS = 20_000_000  # as text they take some 250 MB, and ten times that while they are read
MOST_BYTES = 15 * MOST_PARAMETERS


def write_json(path, model):
    """Writes a small model as JSON."""
    if model.num_parameters > MOST_PARAMETERS:
        raise UsageError(
            f"a model of {model.num_parameters:,} parameters is too large for JSON, which takes up to "
            f"{MOST_PARAMETERS:,}: convert it to .safetensors"
        )
    if not np.isfinite(model.params.flat).all():
        raise SerializationError("the model has parameters that are not finite, which JSON cannot hold")
    config = dataclasses.asdict(model.config)
    about = {
        "format": FORMAT,
        "family": model.family,
        "config": config,
        "num_parameters": model.num_parameters,
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: value for name in SAID if (value := getattr(model, name))},
        "tokenizer": json.loads(model.tokenizer.to_json()) if model.tokenizer else None,
        "sha256": _digest(model.family, config, model.params.flat),
    }
    with atomic_write(path) as file:
        file.write(json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}").encode())
        file.write(b',\n "params": {')
        for number, name in enumerate(model.params):
            file.write(f'{"," * (number > 0)}\n  "{name}": {_text(model.params[name])}'.encode())
        file.write(b"\n }\n}\n")


def read_json(path):
    """The Model in a JSON file."""
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
    if form != FORMAT:
        newer = re.fullmatch(r"gpt2c \d+ json", str(form)) and form > FORMAT
        raise (VersionError if newer else SerializationError)(
            f"{path} is not a model in JSON of the format {FORMAT!r}"
            + (f" but of {form!r}" if form else "")
            + ("; a newer gpt2c wrote it, use that one" if newer else "")
        )
    try:
        config = make_config(found["family"], found["config"])
        tokenizer = Tokenizer.from_json(json.dumps(found["tokenizer"])) if found["tokenizer"] else None
        count = sum(spec.size for spec in family_named(found["family"]).params(config))
        if count > size:  # each number takes a byte at least
            raise ValueError(f"its config has {count:,} parameters, more than the file has bytes")
        model = Model(found["family"], config, tokenizer)
        if list(found["params"]) != list(model.params):
            raise ValueError(f"it has the parameters {', '.join(found['params'])}, expected {', '.join(model.params)}")
        for name, values in found["params"].items():
            array = np.array(values, np.float32)
            if array.shape != model.params[name].shape:
                raise ValueError(f"{name} has the shape {array.shape}, expected {model.params[name].shape}")
            model.params[name][...] = array
        if _digest(model.family, found["config"], model.params.flat) != found["sha256"]:
            raise ValueError("its SHA-256 is not the one it was saved with")
        for name in found.keys() & SAID.keys():
            if type(found[name]) is not SAID[name]:
                raise ValueError(f"{name} is {found[name]!r}")
            setattr(model, name, found[name])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SerializationError(f"{path} is not a whole model: {error}") from None
    return model


def _digest(family, config, flat):
    digest = hashlib.sha256(json.dumps([family, config], sort_keys=True).encode())
    digest.update(flat.data.cast("B"))
    return digest.hexdigest()


def _text(array):
    """Nested lists of the shortest decimals that give the same float32."""
    if array.ndim > 1:
        return f"[{', '.join(map(_text, array))}]"
    return f"[{', '.join(array.astype(str))}]"
