"""UTF-8 from files in bounded memory, whatever the locale; what is not UTF-8 is named by its byte."""

import codecs
from dataclasses import dataclass

from gpt2c.errors import DataError
from gpt2c.support.fields import flag
from gpt2c.support.files import open_input

BLOCK = 1 << 18  # bytes read at a time


@dataclass
class Reading:
    """How files of text are read."""

    split_on: str = flag(
        "",
        r"document separator in text files, e.g. '\n\n'; it stays at the end of each document",
        metavar="TEXT",
        default_text="a file is one document",
        group="reading text",
    )
    column: str = flag(
        "",
        "column of a CSV file that holds the text: its name, or its number from 1",
        metavar="NAME|N",
        default_text="text, else the first that holds text",
    )
    csv_header: bool = flag(True, "the first row of a CSV file holds the column names")
    errors: str = flag("strict", "invalid UTF-8: strict stops, replace puts U+FFFD in its place", choices=("strict", "replace"))
    max_file_size: float = flag(100.0, "refuse larger input files", metavar="GB")
    max_line: float = flag(16.0, "refuse longer lines, records, and runs of text without white space", metavar="MB")

    max_vocab: int = flag(65536, "char tokenizer: refuse a text with more distinct characters than this")

    @property
    def line_bytes(self):
        return int(self.max_line * 1e6)


def character_start(path, at):
    """`at`, or where the character begins that the byte there belongs to."""
    first = max(0, at - 3)
    with open_input(path) as file:
        file.seek(first)
        near = file.read(at - first + 1)
    starts = [first + n for n, byte in enumerate(near) if byte & 0xC0 != 0x80]
    return at if first + len(near) <= at or not starts else starts[-1]


def decoded_blocks(path, reading, begin=0, end=None):
    """(text, byte) of a file's blocks."""
    with open_input(path) as file:
        file.seek(begin)
        rest = b""
        while True:
            block = file.read(BLOCK if end is None else max(0, min(BLOCK, end - file.tell())))
            at = file.tell() - len(block) - len(rest)
            try:
                text, used = codecs.utf_8_decode(rest + block, reading.errors, not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: byte {at + error.start} is 0x{error.object[error.start]:02x}; "
                    "convert it, or go on with --errors replace"
                ) from None
            if text:
                yield (text.removeprefix("\ufeff") if at == 0 else text), at
            if not block:
                return
            rest = (rest + block)[used:]


def decoded_lines(path, reading):
    """(text, byte, row) of each line."""
    with open_input(path) as file:
        at = row = 0
        while line := file.readline(reading.line_bytes + 1):
            row += 1
            if len(line) > reading.line_bytes:
                raise DataError(f"row {row} of {path} is longer than {reading.max_line:g} MB; raise --max-line if that is right")
            try:
                text = line.decode("utf-8", reading.errors)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is not UTF-8: byte {at + error.start}, in row {row}, is "
                    f"0x{line[error.start]:02x}; convert it, or go on with --errors replace"
                ) from None
            yield (text.removeprefix("\ufeff") if row == 1 else text), at, row
            at += len(line)
