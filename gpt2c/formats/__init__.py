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
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2c.errors import UsageError
from gpt2c.formats import blocks, gguf, gguf_models, json, llmc, native, randygpt
from gpt2c.formats.weights import Weights
from gpt2c.support.files import open_input

HEAD = 8  # first bytes of a file, by which its format is recognised


@dataclass(frozen=True)
class Format:
    name: str  # its name in messages
    begins: Callable[[bytes], bool]  # whether a file that begins with these bytes is one
    read: Callable[[str], Weights]
    write: Callable | None = None  # (path, Weights), a version or dtype where there are several -> what to say, or None
    ending: str = ""  # a file of this ending is written so
    families: tuple[str, ...] = ()  # of which it holds models; none: of any
    versions: tuple[int, ...] = ()  # that are written
    dtypes: tuple[str, ...] = ()  # of which it may be written; none: of one
    exclusive: bool = False  # no other format has files of this ending


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
RANDYGPT = Format("a checkpoint of randyGPT", randygpt.is_rgpt, randygpt.read)
# The first one that recognises a file reads it. The last one recognises any: its reader reports what is wrong with it.
FORMATS = (LLMC, JSON, GGUF, RANDYGPT, NATIVE)


def format_of(path):
    """The Format of a file, by its content."""
    with open_input(path) as file:
        head = file.read(HEAD)
    return next(form for form in FORMATS if form.begins(head))


def read(path):
    """The Weights in a file of any Format."""
    return format_of(path).read(path)


def write(path, weights, version=3, dtype=""):
    """Writes Weights in the Format that the file's ending asks for and that holds such a model, else as a checkpoint. A list of
    what there is to say of it."""
    form = next((form for form in FORMATS if form.ending and form.ending == Path(path).suffix), NATIVE)
    if form.families and weights.family not in form.families:
        if form.exclusive:
            known = ", ".join(form.families)
            raise UsageError(f"{form.name} holds models of {known}, not of {weights.family}: choose another ending")
        form = NATIVE
    if version != 3 and not form.versions:
        raise UsageError(f"version {version} is llm.c's: it needs a gpt2 model and a name ending in .bin")
    if dtype and dtype not in form.dtypes:
        kinds = ", ".join(blocks.WRITTEN)
        raise UsageError(f"dtype {dtype!r} is none of {form.name}: it is one of {kinds}, of a name that ends in .gguf")
    choice = [version] * bool(form.versions) + [dtype] * bool(form.dtypes)
    return form.write(path, weights, *choice) or []
