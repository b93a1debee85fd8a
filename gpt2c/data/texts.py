"""Training on text files: they are encoded once and cached, under the digest of everything that the ids depend on."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gpt2c.data.datasets import Dataset
from gpt2c.data.documents import read_pieces, total_bytes
from gpt2c.data.encoding import encode_pieces
from gpt2c.data.shards import MAX_IDS
from gpt2c.data.writer import dataset_writer
from gpt2c.errors import DataError, InputError
from gpt2c.support.fields import flag
from gpt2c.support.files import atomic_write, open_input
from gpt2c.support.progress import Progress
from gpt2c.support.streams import say
from gpt2c.tokenizers.finding import find_gpt2_tokenizer
from gpt2c.tokenizers.tokenizer import KINDS, Tokenizer

CACHE_FORMAT = "gpt2c text 2"  # changes when the same text would give other ids
NAME = "text"


def tokenizer_for(spec, files, reading, **options):
    """The tokenizer that `spec` says: a kind, made from these files where that takes a text, or a file to load."""
    if spec not in KINDS:
        return Tokenizer.load(_tokenizer_file(spec))
    if spec in ("byte", "gpt2"):
        return Tokenizer.make(spec)
    if spec == "char":
        return Tokenizer.make("char", alphabet(files, reading), **options)
    return Tokenizer.make(spec, (piece.text for piece in read_pieces(files, reading)), **options)


def _tokenizer_file(spec):
    """The file that `spec` names, as it is none of KINDS."""
    if not os.path.exists(spec):
        raise InputError(f"cannot read the tokenizer {spec}: expected a file, or one of {', '.join(KINDS)}")
    return spec


def alphabet(files, reading):
    """The different characters of these files, in order."""
    characters = set()
    for piece in read_pieces(files, reading):
        characters.update(piece.text)
        if len(characters) > reading.max_vocab:
            raise DataError(
                f"{piece.where} brings the different characters to {len(characters)}, more than the "
                f"{reading.max_vocab} allowed; use --tokenizer byte or raise --max-vocab"
            )
    return "".join(sorted(characters))


def text_dataset(files, spec, reading, val_fraction=0.1, **options):
    """The Dataset of text files: the last `val_fraction` of their bytes is for validation and is never trained on.

    `spec` is a Tokenizer, or what `tokenizer_for` takes with these options.
    """
    total = total_bytes(files, reading)
    if not total:
        raise DataError(f"{', '.join(files)}: there is no text; give more")
    key = _key(files, spec, reading, val_fraction, options)
    folder = cache_folder() / key
    if not _is_whole(folder):
        tokenizer = spec if isinstance(spec, Tokenizer) else tokenizer_for(spec, files, reading, **options)
        with dataset_writer(folder, NAME, tokenizer, MAX_IDS - 1) as writer:
            write_pieces(writer, read_pieces(files, reading, (1 - val_fraction) * total), tokenizer, total)
        _seal(folder)
    val, tokenizer = folder / f"{NAME}_val.bin", folder / f"{NAME}_tokenizer.bin"
    return Dataset(
        os.path.basename(files[0]),
        str(folder / f"{NAME}_train.bin"),
        str(val) if val.exists() else None,
        str(tokenizer if tokenizer.exists() else tokenizer.with_suffix(".json")),
    )


def write_pieces(writer, pieces, tokenizer, total, workers=0):
    """Encodes pieces of text into a DatasetWriter, showing how far it has come."""
    progress = Progress("encoding", total)
    try:
        for part, ids, at in encode_pieces(pieces, tokenizer, total, workers):
            writer.write(part, ids)
            progress.update(at)
    finally:
        progress.end()


def inline_file(text):
    """A file with a text that was given on the command line."""
    content = text.encode("utf-8", "surrogateescape")
    path = cache_folder() / "inline" / f"{hashlib.sha256(content).hexdigest()[:32]}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(content)
    return str(path)


def cache_folder():
    """GPT2C_CACHE, or gpt2c/ in the user's cache folder."""
    if chosen := os.environ.get("GPT2C_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt2c"


def _key(files, spec, reading, val_fraction, options):
    """The digest of the format, the settings, the tokenizer and the text."""
    digest = hashlib.sha256()
    if isinstance(spec, Tokenizer):
        identity = f"{spec.to_json()} {spec.opens}"
    else:
        identity = spec if spec in KINDS else _digest(_tokenizer_file(spec))
    if spec == "gpt2" and (path := find_gpt2_tokenizer()):
        identity = _digest(path)
    settings = (
        CACHE_FORMAT,
        identity,
        sorted(options.items()),
        val_fraction,
        reading.split_on,
        reading.column,
        reading.csv_header,
        reading.errors,
    )
    digest.update(repr(settings).encode())
    for path in files:
        digest.update(f"{os.path.splitext(path)[1]} {_digest(path)}".encode())
    return digest.hexdigest()[:32]


def _digest(path):
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(folder):
    return "".join(f"{_digest(path)}  {path.name}\n" for path in sorted(folder.glob(f"{NAME}_*")))


def _seal(folder):
    """Writes, last of all, the digests of the files."""
    with atomic_write(folder / "SHA256SUMS") as file:
        file.write(_sums(folder).encode())


def _is_whole(folder):
    try:
        sealed = (folder / "SHA256SUMS").read_text(encoding="utf-8")
        whole = sealed == _sums(folder)
    except (OSError, UnicodeDecodeError, InputError):
        return False
    if not whole:
        say(f"the cached tokens in {folder} are damaged: encoding again", "stderr")
    return whole


@dataclass
class VocabularySource:
    """Flags that say what a vocabulary was made from. A checkpoint has its own, so they change nothing."""

    training_text: str = flag("", "", "--training-file", hidden=True)
    use_bpe: bool = flag(False, "", hidden=True)
