"""Text from files, folders, JSON, JSON Lines and CSV, read piece by piece in bounded memory.

Everything is UTF-8, whatever the locale. What cannot be read is named by file and byte, or by file and row.
"""

import glob
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

from gpt2c.data.conversations import conversation
from gpt2c.data.reading import BLOCK, character_start, decoded_blocks
from gpt2c.data.records import records
from gpt2c.errors import DataError
from gpt2c.support.files import open_input
from gpt2c.support.machine import in_units

RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (".txt", ".text", ".md", *RECORDS)  # what is taken from a folder


class Piece(NamedTuple):
    """A document, or a part of one that encodes to the same ids by itself."""

    part: str  # train or val
    text: str
    first: bool  # it begins a document
    at: int  # bytes of all files before it
    where: str  # for messages


def text_files(sources):
    """The files that these files, folders and patterns stand for, sorted within each."""
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    files = []
    for source in map(os.fspath, sources):
        if os.path.isdir(source):
            found = [
                os.path.join(folder, name)
                for folder, _, names in os.walk(source)
                for name in names
                if name.endswith(SUFFIXES) and not name.startswith(".")
            ]
            if not found:
                raise DataError(f"there is no text below {source}; files there must end in {', '.join(SUFFIXES)}")
        else:
            found = [source] if os.path.exists(source) else glob.glob(source)
            if not found:
                raise DataError(f"no file matches {source!r}; name a file, a folder or a pattern")
        files += sorted(found)
    return files


def total_bytes(files, reading):
    """The size of all files together; an error for one that is not a file or larger than allowed."""
    total = 0
    for path in files:
        with open_input(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > reading.max_file_size * 1e9:
            raise DataError(
                f"{path} has {in_units(size)}, more than the {reading.max_file_size:g} GB allowed; "
                "split it or raise --max-file-size"
            )
        total += size
    return total


def read_pieces(files, reading, val_from=math.inf) -> Iterator[Piece]:
    """All documents; those that begin at byte `val_from` of the files together, or later, are for validation.

    A file that is one document is cut there, to the character.
    """
    before = 0
    for path in files:
        size = os.path.getsize(path)
        cut = int(max(0, min(size, val_from - before)))
        if path.endswith(RECORDS) or reading.split_on:
            for text, at, where in whole_documents(path, reading):
                part = "train" if at < cut else "val"
                for n, piece in enumerate(_parts(text)):
                    yield Piece(part, piece, n == 0, before + at, where)
        else:
            cut = character_start(path, cut)
            for part, begin, end in (("train", 0, cut), ("val", cut, size)):
                for n, (text, at) in enumerate(_plain(path, reading, begin, end)):
                    yield Piece(part, text, n == 0, before + at, f"{path} from byte {at}")
        before += size


def whole_documents(path, reading):
    """(text, byte, where) of each document of a file of many."""
    if not path.endswith(RECORDS):
        yield from _sections(path, reading)
    else:
        for record, at, where in records(path, reading):
            yield text_of(record, where), at, where


def text_of(record, where):
    """The text of a record; the </s> that ends an item is what separates documents anyway."""
    if isinstance(record, str):
        return record.rstrip().removesuffix("</s>").rstrip() if record.rstrip().endswith("</s>") else record
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return record["text"]
    return "".join(text for text, _ in conversation(record, where))


def _plain(path, reading, begin, end):
    """(text, byte) of the bytes [begin, end) of a text file."""
    held, at = "", begin
    for text, _ in decoded_blocks(path, reading, begin, end):
        held += text
        if cut := _cut(held):
            yield held[:cut], at
            at += len(held[:cut].encode())
            held = held[cut:]
        elif len(held) > reading.line_bytes:
            raise DataError(
                f"{path} has no white space in the {reading.max_line:g} MB from byte {at}; raise --max-line if that is right"
            )
    if held:
        yield held, at


def _cut(text):
    """The last place before a line break, else a space, and behind something else: no token reaches over it. 0: none."""
    for space in "\n ":
        cut = text.rfind(space)
        while cut > 0 and text[cut - 1].isspace():
            cut = text.rfind(space, 0, cut)
        if cut > 0:
            return cut
    return 0


def _parts(text):
    """A long document in pieces."""
    while len(text) > 2 * BLOCK:
        cut = _cut(text[:BLOCK]) or _cut(text) or len(text)
        yield text[:cut]
        text = text[cut:]
    yield text


def _sections(path, reading):
    """Documents of a text file that end with `split_on`; the last one ends with the file."""
    mark, held, at = reading.split_on, "", 0
    for text, _ in decoded_blocks(path, reading):
        *whole, held = (held + text).split(mark)
        for section in whole:
            yield section + mark, at, f"{path} from byte {at}"
            at += len((section + mark).encode())
        if len(held) > reading.line_bytes:
            raise DataError(
                f"{path} has no {mark!r} in the {reading.max_line:g} MB from byte {at}; raise --max-line if that is right"
            )
    if held:
        yield held, at, f"{path} from byte {at}"
