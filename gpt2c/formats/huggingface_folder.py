"""A folder of Hugging Face: the documents and the tensors in it, and the questions that readers of models ask of them."""

import math
import os
from pathlib import Path
from typing import NamedTuple

from gpt2c.errors import InputError, SerializationError
from gpt2c.formats import safetensors
from gpt2c.formats.safetensors import invalid, parsed, quoted
from gpt2c.support.files import open_input

CONFIG, GENERATION = "config.json", "generation_config.json"
MOST_BYTES = 2**26  # of a document: the largest vocabularies take half of it
NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "an object", list: "a list"}


class Rows(NamedTuple):
    """A tensor of a folder that has some rows of a parameter, of this shape there. Transposed: its own is (columns, rows)."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


class Document(NamedTuple):
    """An object of JSON. What is null is as good as missing."""

    path: object
    values: dict

    def said(self, key, kind, default=None):
        """A value of this type. What is missing is `default`, an error where there is none. A whole number is a number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind or kind is float and not math.isfinite(value):
            found = "missing" if value is None else quoted(value)
            raise invalid(self.path, f"its {key} is {found}, expected {NOUNS[kind]}")
        return value

    def only(self, family, **expected):
        """An error if it says of any of these anything but what is expected, all that such a family of gpt2c has."""
        for key, value in expected.items():
            found = self.values.get(key)
            if found is not None and found != value:
                has = "has none" if value in (0, None) and value is not False else f"knows {quoted(value)} only"
                raise SerializationError(f"{self.path}: its {key} is {quoted(found)}; gpt2c's {family} {has}")

    def agrees(self, **sizes):
        """An error if it says of any of these that it is not the size that the tensors have."""
        for key, size in sizes.items():
            if (found := self.said(key, int, size)) != size:
                raise invalid(self.path, f"its {key} is {quoted(found)}, and {size:,} by its tensors")


class Folder(NamedTuple):
    path: Path
    documents: dict  # {file name: an object of JSON, or text} of those that were asked for
    tensors: dict  # {name: safetensors.Tensor}

    def document(self, name):
        """One of its documents; an empty one where there is none."""
        return Document(self.path / name, self.documents.get(name, {}))

    @property
    def config(self):
        return self.document(CONFIG)

    def shape(self, name, dimensions):
        """The shape of a tensor that must be there and have so many dimensions, none of them 0."""
        if name not in self.tensors:
            raise invalid(self.path, f"it has no tensor {name}")
        shape = self.tensors[name].shape
        if len(shape) != dimensions or not all(shape):
            raise invalid(self.path, f"{name} has shape {quoted(shape)}, expected {dimensions} dimensions")
        return shape

    def layers(self, key):
        """The number of layers that it says it has, which is no more than it has tensors."""
        layers = self.config.said(key, int)
        if not 0 < layers <= len(self.tensors):
            raise invalid(self.path, f"it says that it has {quoted(layers)} layers, and has {len(self.tensors)} tensors")
        return layers

    def part(self, name, shape):
        """A tensor that must be there and have this shape, as a Part."""
        if self.shape(name, len(shape)) != shape:
            raise invalid(self.path, f"{name} has shape {quoted(self.tensors[name].shape)}, expected {quoted(shape)}")
        if (dtype := self.tensors[name].dtype) not in safetensors.KINDS:
            known = ", ".join(safetensors.KINDS)
            raise SerializationError(f"{self.path}: {name} is stored as {quoted(dtype)}; gpt2c reads {known}")
        return self.tensors[name].part()


def is_model(path):
    """Whether a folder says that it holds a model."""
    return os.path.isfile(Path(path) / CONFIG)


def read(path, names):
    """The Folder at this path, with the documents of these names that it has."""
    path = Path(path)
    if not is_model(path):
        raise InputError(f"{path} is a folder without a {CONFIG}: it holds no model; name a model's folder, or a file")
    documents = {name: _document(path / name) for name in names if os.path.isfile(path / name)}
    if not any((path / name).exists() for name in (safetensors.FILE, safetensors.INDEX)):
        other = " (what it has in .bin files is Python's pickle)" if any(path.glob("*.bin")) else ""
        raise SerializationError(f"{path} has no {safetensors.FILE}{other}: save it with transformers' save_pretrained")
    return Folder(path, documents, safetensors.read_folder(path))


def _document(path):
    with open_input(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise invalid(path, f"it has more than {MOST_BYTES:,} bytes")
        data = file.read()
    if path.suffix == ".json":
        return parsed(path, data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise invalid(path, "it is not UTF-8") from None
