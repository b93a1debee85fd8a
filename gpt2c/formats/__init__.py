"""Model file formats: one table of their readers and writers.

weights       what each reader gives and each writer takes
blocks        how numbers are stored: float32, 16 bits, blocks of integers
parts         some rows of a parameter, from one storage type to another
native        gpt2c's checkpoint
llmc          llm.c's files for GPT-2
json          JSON
randygpt      randyGPT's checkpoints
gguf          the container of llama.cpp's files
gguf_models   which models are in it; gguf_gpt2: GPT-2, gguf_llama: the llama family
safetensors   the container of Hugging Face's files
huggingface   which models are in a folder of them; huggingface_folder: what else is there, huggingface_gpt2, huggingface_llama
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2c.errors import UsageError
from gpt2c.formats import blocks, gguf, gguf_models, huggingface, json, llmc, native, randygpt
from gpt2c.formats.weights import Weights
from gpt2c.support.files import open_input

HEAD = 8  # first bytes of a file, by which its format is recognised; a folder has none


@dataclass(frozen=True)
class Format:
    name: str  # its name in messages
    begins: Callable[[bytes], bool]  # whether a file that begins with these bytes is one
    read: Callable[[str], Weights]
    write: Callable | None = None  # (path, Weights, of version, dtype, overwrite those that there are) -> what to say, or None
    ending: str = ""  # a file of this ending is written so
    families: tuple[str, ...] = ()  # of which it holds models; none: of any
    versions: tuple[int, ...] = ()  # that are written
    dtypes: tuple[str, ...] = ()  # of which it may be written; none: of one
    exclusive: bool = False  # no other format has files of this ending
    overwrites: bool = True  # what has the name already is replaced; if not, only when that is asked for


NATIVE = Format("a checkpoint of gpt2c", lambda head: True, native.read, native.write, ".safetensors")
LLMC = Format("a model of llm.c", llmc.is_llmc, llmc.read, llmc.write, ".bin", ("gpt2",), llmc.VERSIONS)
JSON = Format("a model in JSON", lambda head: head[:1] == b"{", json.read, json.write, ".json")
GGUF = Format(
    "a GGUF file",
    gguf.is_gguf,
    gguf_models.read,
    gguf_models.write,
    ".gguf",
    tuple(gguf_models.FAMILIES),
    dtypes=blocks.WRITTEN,
    exclusive=True,
)
HUGGINGFACE = Format(
    "a folder of Hugging Face",
    lambda head: False,
    huggingface.read,
    huggingface.write,
    os.sep,
    tuple(huggingface.FAMILIES),
    dtypes=tuple(huggingface.TORCH_TYPES),
    exclusive=True,
    overwrites=False,
)
RANDYGPT = Format("a checkpoint of randyGPT", randygpt.is_rgpt, randygpt.read)
# The first one that recognises a file reads it, and the folder's a folder. The last one recognises any file: its reader reports
# what is wrong with it.
FORMATS = (LLMC, JSON, GGUF, RANDYGPT, HUGGINGFACE, NATIVE)


def format_of(path):
    """The Format of a file or folder, by its content."""
    if os.path.isdir(path):
        return HUGGINGFACE
    with open_input(path) as file:
        head = file.read(HEAD)
    return next(form for form in FORMATS if form.begins(head))


def read(path):
    """The Weights in a file or folder of any Format."""
    return format_of(path).read(path)


def write(path, weights, version=3, dtype="", overwrite=False):
    """Writes Weights in the Format that the ending of the name asks for, or a folder that is there, and that holds such a model,
    else as a checkpoint. A list of what there is to say of it. With `overwrite` a folder that is not empty is replaced."""
    ending = os.sep if str(path).endswith(os.sep) or os.path.isdir(path) else Path(path).suffix
    form = next((form for form in FORMATS if form.ending and form.ending == ending), NATIVE)
    if form.families and weights.family not in form.families:
        if form.exclusive:
            known = ", ".join(form.families)
            raise UsageError(f"{form.name} holds models of {known}, not of {weights.family}: choose another ending")
        form = NATIVE
    if version != 3 and not form.versions:
        raise UsageError(f"version {version} is llm.c's: it needs a gpt2 model and a name ending in .bin")
    if dtype and dtype not in form.dtypes:
        kinds = "; ".join(f"{other.name}: {', '.join(other.dtypes)}" for other in FORMATS if other.dtypes)
        raise UsageError(f"dtype {dtype!r} is none of {form.name}; there are, by the form that a name asks for: {kinds}")
    choice = [version] * bool(form.versions) + [dtype] * bool(form.dtypes) + [overwrite] * (not form.overwrites)
    return form.write(path, weights, *choice) or []
