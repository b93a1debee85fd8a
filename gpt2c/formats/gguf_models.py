"""The models that GGUF files hold, under its names: Weights of a file, and a file of Weights.

Tensors have the rows of the model's own, so that blocks go from file to file as they are. A parameter consists of one tensor,
or of one for each layer; rows that only pad a vocabulary are in no file.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt2c.errors import SerializationError, TokenizationError
from gpt2c.formats import blocks, gguf, gguf_gpt2, gguf_llama, parts
from gpt2c.formats.weights import Weights
from gpt2c.support.choice import is_choice

FILE_TYPES = {  # what llama.cpp calls a file most of whose numbers are stored so
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q4_K": 15,
    "q5_K": 17,
    "q6_K": 18,
    "bf16": 32,
}
SAID = {"description": "general.name", "turns": "gpt2c.turns"}  # facts about a model -> their keys
SAMPLING = {  # settings of sampling -> their keys
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


class Architecture(NamedTuple):
    """What GGUF calls so."""

    family: str
    config: Callable  # Content -> the fields of the family's Config
    metadata: Callable  # those fields -> what GGUF says
    tensors: Callable  # those fields -> [(parameter, its shape, the Rows that it begins with)]
    others: Callable = lambda config: {}  # those fields -> {name: float32 array} of what else is in a file


def read(path):
    """The Weights in a file; its tensors are read when they are asked for."""
    from gpt2c.tokenizers import gguf as gguf_tokenizers  # which imports the tokenizers library

    content = gguf.read(path)
    name = content.said("general.architecture", str)
    if (kind := content.said("general.type", str, "model")) != "model":
        raise SerializationError(f"{path} holds no model: its general.type is {gguf.quoted(kind)}")
    if (files := content.said("split.count", int, 1)) > 1:
        raise SerializationError(f"{path} is one of {files:,} files of a model: join them with llama-gguf-split --merge")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SerializationError(f"{path} holds a model of architecture {gguf.quoted(name)}; gpt2c reads {known}")
    architecture = ARCHITECTURES[name]
    config = architecture.config(content)
    tensors = {p: _unread(content, shape, rows) for p, shape, rows in architecture.tensors(config)}
    known = {row.name for *_, rows in architecture.tensors(config) for row in rows} | architecture.others(config).keys()
    _check_others(content, known)
    try:
        tokenizer, why = gguf_tokenizers.read(content.metadata, config["vocab_size"])
    except TokenizationError as error:
        raise gguf.invalid(path, f"its tokenizer cannot be used: {error}") from None
    kinds = Counter(tensor.kind for tensor in content.tensors.values())
    facts = {"tensors": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())}
    if why:
        facts["tokenizer in the file"] = why
    form = f"GGUF, version {content.version}, architecture {name}"
    return Weights(architecture.family, config, tensors, tokenizer, _said(content), form=form, facts=facts)


def write(path, weights, dtype=""):
    """Writes a file, and says what in it is not as one might expect, a sentence each. Without a dtype what comes from a file of
    storage types keeps them, and all else is f32."""
    from gpt2c.tokenizers import gguf as gguf_tokenizers

    name = FAMILIES[weights.family](weights.config)
    architecture = ARCHITECTURES[name]
    tokenizer, why = gguf_tokenizers.metadata(weights.tokenizer, weights.config["vocab_size"])
    tensors, notes = {}, Counter()
    source = parts.Source(weights.tensors)
    for parameter, _, rows in architecture.tensors(weights.config):
        stored = source.parts(parameter, [shape for _, shape, _ in rows])
        for (there, shape, heads), part in zip(rows, stored):
            kind, note = _kind(there, shape, dtype) if dtype else (part.kind, "")
            notes.update([f"{kind}: {note}"] * bool(note))
            tensors[there] = _apart(parts.converted(there, part, kind), heads)
    for there, array in architecture.others(weights.config).items():
        tensors[there] = parts.of_array(array)
    metadata = {
        "general.architecture": name,
        "general.type": "model",
        "general.quantization_version": 2,
        "general.file_type": FILE_TYPES[parts.commonest(tensors.values())],
        **{key: weights.said[name] for name, key in SAID.items() if weights.said.get(name)},
        **{SAMPLING[name]: _setting(name, value) for name, value in weights.said.get("sampling", {}).items()},
        **architecture.metadata(weights.config),
        **tokenizer,
    }
    gguf.write(path, metadata, tensors)
    return [f"{note} ({count})" for note, count in notes.items()] + [f"written without a tokenizer: {why}"] * bool(why)


def _said(content):
    """What else a file says of its model, by the names that Weights have for it."""
    said = {name: content.said(key, type(usual), usual) for (name, key), usual in zip(SAID.items(), ("", 0))}
    sampling = {name: content.metadata[key] for name, key in SAMPLING.items() if key in content.metadata}
    said["sampling"] = {name: gguf.short(value) if type(value) is float else value for name, value in sampling.items()}
    if not is_choice(said["sampling"]):
        found = ", ".join(f"{SAMPLING[name]} {gguf.quoted(str(value))}" for name, value in sampling.items())
        raise gguf.invalid(content.path, f"it says that tokens are chosen by {found}, which cannot be")
    return {name: value for name, value in said.items() if value}


def _setting(name, value):
    """A setting of sampling as a file has it; one that float32 would round to 0 is not 0."""
    return int(value) if name == "top_k" else float(value and max(value, 1e-6))


def _unread(content, shape, rows):
    """A parameter of this shape, of which these Rows are the first and the rest is 0."""
    for name, expected, _ in rows:
        if content.shape(name, len(expected)) != expected:
            raise gguf.invalid(content.path, f"{name} has shape {content.tensors[name].shape}, expected {expected}")
    return parts.unread(shape, [_together(content.part(name), heads) for name, _, heads in rows])


def _check_others(content, known):
    """An error if a file has tensors that such a model has not. A head of its own may be there if it is the token table."""
    others = content.tensors.keys() - known
    head, table = "output.weight", "token_embd.weight"
    if head in others:
        others.remove(head)
        if not parts.same(content.part(head), content.part(table)):
            raise SerializationError(f"{content.path}: {head} is not {table}; gpt2c's gpt2 has one matrix for both")
    if others:
        names = ", ".join(map(gguf.quoted, sorted(others)[:5]))
        raise SerializationError(f"{content.path} holds tensors that such a model has not: {names}")


def _together(part, heads):
    """A file's Part with its rows in the order of the parameter."""
    return _ordered(part, np.arange(part.shape[0]).reshape(heads, -1, 2)) if heads else part


def _apart(part, heads):
    """The inverse."""
    return _ordered(part, np.arange(part.shape[0]).reshape(heads, 2, -1)) if heads else part


def _ordered(part, numbers):
    """A Part with its rows in the order of these numbers, the last two dimensions exchanged."""
    return parts.reordered(part, numbers.swapaxes(1, 2).reshape(-1))


def _kind(there, shape, dtype):
    """(the storage type of a tensor in a file of this dtype, why it is another one)."""
    if len(shape) == 1:
        return "f32", "tensors of one dimension" * (dtype != "f32")
    if there == "position_embd.weight":
        return "f32", f"{there}, which llama.cpp adds as it is" * (dtype != "f32")
    if dtype.startswith("q4") and there in ("token_embd.weight", "output.weight"):
        dtype, note = "q8_0", "token table and head"
    else:
        note = ""
    if shape[-1] % blocks.KINDS[dtype].elements:
        return "f16", f"tensors whose rows are no multiple of {blocks.KINDS[dtype].elements} numbers"
    return dtype, note


def _llama(name):
    functions = (functools.partial(function, name) for function in (gguf_llama.config, gguf_llama.metadata, gguf_llama.tensors))
    return Architecture("llama", *functions, gguf_llama.others)


ARCHITECTURES = {
    "gpt2": Architecture("gpt2", gguf_gpt2.config, gguf_gpt2.metadata, gguf_gpt2.tensors),
    **{name: _llama(name) for name in ("llama", "qwen2", "qwen3")},
}
FAMILIES = {"gpt2": lambda config: "gpt2", "llama": gguf_llama.architecture}  # config -> the name of an architecture
