"""The models that folders of Hugging Face hold, under its names: Weights of a folder, and a folder of Weights.

A folder has config.json, model.safetensors (or several of them with an index) and the files of a tokenizer. What gpt2c says
of a model besides is in config.json as "gpt2c", and how its tokens are best chosen in generation_config.json.
"""

import json
import re
from collections import Counter
from types import ModuleType
from typing import NamedTuple

from gpt2c.errors import SerializationError, TokenizationError
from gpt2c.formats import huggingface_gpt2, huggingface_llama, parts, safetensors
from gpt2c.formats.huggingface_folder import CONFIG, GENERATION, invalid, quoted
from gpt2c.formats.huggingface_folder import read as read_folder
from gpt2c.formats.weights import SAID, Weights
from gpt2c.support.choice import CHOICE
from gpt2c.support.files import atomic_folder, atomic_write

HEAD = "lm_head.weight"
TORCH_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # what PyTorch calls the storage types of a folder
PARTS = re.compile(  # names of files that make up a model, and may be overwritten
    r"(model.*|pytorch_model.*|config|generation_config|tokenizer.*|special_tokens_map|added_tokens|vocab|merges|chat_template)"
    r"\.(json|safetensors|bin|txt|jinja|model)"
)


class Family(NamedTuple):
    name: str
    names: ModuleType  # the module of its names and of its config.json


GPT2, LLAMA = Family("gpt2", huggingface_gpt2), Family("llama", huggingface_llama)
MODEL_TYPES = {"gpt2": GPT2, **dict.fromkeys(huggingface_llama.CLASSES, LLAMA)}
FAMILIES = {family.name: family for family in (GPT2, LLAMA)}


def read(path):
    """The Weights in a folder; its tensors are read when they are asked for."""
    from gpt2c.tokenizers import huggingface as tokenizers  # which imports the tokenizers library

    folder = read_folder(path, tokenizers.FILES)
    kind = folder.config.said("model_type", str)
    if kind not in MODEL_TYPES:
        raise SerializationError(f"{path} holds a model of type {quoted(kind)}; gpt2c reads {', '.join(MODEL_TYPES)}")
    family, names = MODEL_TYPES[kind]
    folder.config.only(family, quantization_config=None)
    folder = folder._replace(tensors=_without_prefix(folder, names))
    config = names.config(folder)
    layout = names.tensors(config)
    _check_others(folder, names, {row.name for *_, rows in layout for row in rows})
    tensors = {parameter: _unread(folder, shape, rows) for parameter, shape, rows in layout}
    try:
        tokenizer, why = tokenizers.read(folder.documents, config["vocab_size"])
    except TokenizationError as error:
        raise invalid(path, f"its tokenizer cannot be used: {error}") from None
    kinds = Counter(part.kind for tensor in tensors.values() for part in tensor.parts)
    facts = {"tensors": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())}
    if why:
        facts["tokenizer in the folder"] = why
    return Weights(family, config, tensors, tokenizer, _said(folder), form=f"Hugging Face, model type {kind}", facts=facts)


def write(path, weights, dtype="", overwrite=False):
    """Writes a folder, and says what in it is not as one might expect, a sentence each. Without a dtype what comes from a file
    of 32 or 16 bits keeps them, and all else is f32."""
    from gpt2c.tokenizers import huggingface as tokenizers

    names = FAMILIES[weights.family].names
    config = names.document(weights.config)
    files, why = tokenizers.write(weights.tokenizer, weights.config["vocab_size"])
    tensors, notes, source = {}, Counter(), parts.Source(weights.tensors)
    for parameter, _, rows in names.tensors(weights.config):
        for row, part in zip(rows, source.parts(parameter, [row.shape for row in rows])):
            kind = dtype or (part.kind if part.kind in TORCH_TYPES else "f32")
            notes.update([f"{kind}: tensors that were {part.kind}, which such a folder has not"] * (part.kind not in TORCH_TYPES))
            part = parts.converted(row.name, part, kind)
            tensors[names.PREFIX * (row.name != HEAD) + row.name] = parts.transposed(part) if row.transposed else part
    ids = dict.fromkeys(("bos_token_id", "eos_token_id")) | files.get(GENERATION, {})  # unsaid, they have defaults
    files[CONFIG] = config | ids | _about(weights, TORCH_TYPES[parts.commonest(tensors.values())])
    if sampling := weights.said.get("sampling"):
        files[GENERATION] = files.get(GENERATION, {}) | {"do_sample": True, **sampling}
    with atomic_folder(path, PARTS.fullmatch if overwrite else None) as folder:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            with atomic_write(folder / name) as file:
                file.write(text.encode(errors="backslashreplace"))  # half a UTF-16 pair, which is JSON's way to write one too
        safetensors.write_folder(folder, tensors)
    return [f"{note} ({count})" for note, count in notes.items()] + [f"written without a tokenizer: {why}"] * bool(why)


def _without_prefix(folder, names):
    """The tensors of a folder by the names that they have in a model's body, without the buffers of old files."""
    wanted = [name for name in folder.tensors if not name.endswith(names.BUFFERS)]
    found = {name.removeprefix(names.PREFIX): folder.tensors[name] for name in wanted}
    if len(found) < len(wanted):
        raise invalid(folder.path, f"it has a tensor both with and without {names.PREFIX!r} before its name")
    return found


def _unread(folder, shape, rows):
    """A parameter of this shape, of which these Rows are the first and the rest is 0."""
    found = []
    for name, expected, transposed in rows:
        part = folder.part(name, expected[::-1] if transposed else expected)
        found.append(parts.transposed(part) if transposed else part)
    return parts.unread(shape, found)


def _check_others(folder, names, known):
    """An error if a folder has tensors that such a model has not. A head of its own may be there if it is the token table."""
    others = folder.tensors.keys() - known
    if HEAD in others:
        others.remove(HEAD)
        table = folder.part(names.TABLE, folder.shape(names.TABLE, 2))
        if not parts.same(folder.part(HEAD, folder.shape(HEAD, 2)), table):
            raise SerializationError(f"{folder.path}: {HEAD} is not {names.TABLE}, and the model has one matrix for both")
    if others:
        found = ", ".join(map(quoted, sorted(others)[:5]))
        raise SerializationError(f"{folder.path} holds tensors that such a model has not: {found}")


def _said(folder):
    """What a folder says of its model, of SAID."""
    ours = folder.config.said("gpt2c", dict, {})
    said = {name: ours[name] for name in SAID if name in ours}
    generation = folder.document(GENERATION)
    if generation.said("do_sample", bool, False):
        choice = {name: value for name in CHOICE if (value := generation.values.get(name)) is not None}
        said |= {"sampling": choice} if choice else {}
    for name, value in said.items():
        if not SAID[name](value):
            raise invalid(folder.path, f"it says that its {name} is {quoted(value)}")
    return said


def _about(weights, torch_type):
    """What config.json says besides the fields of the model."""
    said = {name: weights.said[name] for name in SAID if name in weights.said and name != "sampling"}
    return {"dtype": torch_type, "torch_dtype": torch_type, **({"gpt2c": said} if said else {})}
