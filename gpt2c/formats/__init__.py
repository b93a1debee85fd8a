"""Model file formats: one table of their readers and writers.

weights    what each reader gives and each writer takes
native     gpt2c's checkpoint
llmc       llm.c's files for GPT-2
json       JSON
randygpt   randyGPT's checkpoints
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2c.errors import UsageError
from gpt2c.formats import json, llmc, native, randygpt
from gpt2c.formats.weights import Weights
from gpt2c.support.files import open_input

HEAD = 8  # first bytes of a file, by which its format is recognised


@dataclass(frozen=True)
class Format:
    name: str  # its name in messages
    begins: Callable[[bytes], bool]  # whether a file that begins with these bytes is one
    read: Callable[[str], Weights]
    write: Callable | None = None  # (path, Weights), and a version where there are several
    ending: str = ""  # a file of this ending is written so
    families: tuple[str, ...] = ()  # of which it holds models; none: of any
    versions: tuple[int, ...] = ()  # that are written


NATIVE = Format("a checkpoint of gpt2c", lambda head: True, native.read, native.write, ".safetensors")
LLMC = Format("a model of llm.c", llmc.is_llmc, llmc.read, llmc.write, ".bin", ("gpt2",), llmc.VERSIONS)
JSON = Format("a model in JSON", lambda head: head[:1] == b"{", json.read, json.write, ".json")
RANDYGPT = Format("a checkpoint of randyGPT", randygpt.is_rgpt, randygpt.read)
# The first one that recognises a file reads it. The last one recognises any: its reader reports what is wrong with it.
FORMATS = (LLMC, JSON, RANDYGPT, NATIVE)


def format_of(path):
    """The Format of a file, by its content."""
    with open_input(path) as file:
        head = file.read(HEAD)
    return next(form for form in FORMATS if form.begins(head))


def read(path):
    """The Weights in a file of any Format."""
    return format_of(path).read(path)


def write(path, weights, version=3):
    """Writes Weights in the Format that the file's ending asks for and that holds such a model, else as a checkpoint."""
    fitting = (form for form in FORMATS if not form.families or weights.family in form.families)
    form = next((form for form in fitting if form.ending and form.ending == Path(path).suffix), NATIVE)
    if form.versions:
        form.write(path, weights, version)
    elif version != 3:
        raise UsageError(f"version {version} is llm.c's: it needs a gpt2 model and a name ending in .bin")
    else:
        form.write(path, weights)
