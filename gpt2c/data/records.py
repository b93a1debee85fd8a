"""The records of JSON, JSON Lines and CSV files, one at a time; a bad one is named by its row."""

import csv
import functools
import json
import re

from gpt2c.data.reading import decoded_blocks, decoded_lines
from gpt2c.errors import DataError, UsageError
from gpt2c.support.files import open_input
from gpt2c.support.streams import say

SHOWN = 40  # characters of a column's name in a note
SPACE = re.compile(r"[ \t\r\n]*")


def records(path, reading):
    """(value, byte, where) of each record of a file, of the kind that its name says."""
    return (csv_cells if path.endswith((".csv", ".tsv")) else json_records)(path, reading)


def json_records(path, reading):
    """(value, byte, where) of each item of a JSON array, or of each line of JSON."""
    with open_input(path) as file:
        array = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
    yield from (_array_items if array and path.endswith(".json") else _lines)(path, reading)


def _lines(path, reading):
    for line, at, row in decoded_lines(path, reading):
        where = f"row {row} of {path}"
        if line.strip():
            try:
                yield json.loads(line), at, where
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON: {error}; expected one object or string per line") from None


def _array_items(path, reading):
    text, row = _JsonText(path, reading), 0
    text.expect("[", "at its beginning")
    while not (row == 0 and text.peek() == "]"):
        row += 1
        yield *text.value(f"item {row} of {path}"), f"item {row} of {path}"
        if text.peek() == "]":
            break
        text.expect(",", f"after item {row}")
    text.expect("]", f"after item {row}")
    if text.peek():
        raise DataError(f"{path} goes on after its array of {row} items; expected one JSON array")


class _JsonText:
    """A JSON file of which only a block or one long value is held."""

    def __init__(self, path, reading):
        self._path, self._reading = path, reading
        self._blocks = decoded_blocks(path, reading)
        self._held, self._position, self._byte = "", 0, 0  # the byte of held[position]

    def peek(self):
        """The next character that is not white space; "" at the end."""
        while True:
            self._go_to(SPACE.match(self._held, self._position).end())
            if self._position < len(self._held) or not self._read():
                return self._held[self._position : self._position + 1]

    def expect(self, character, place):
        if (found := self.peek()) != character:
            raise DataError(
                f"{self._path} has {repr(found) if found else 'its end'} {place}, expected {character!r}; it "
                "should be one JSON array"
            )
        self._go_to(self._position + 1)

    def value(self, where):
        """(the next value, its byte)"""
        self.peek()
        byte = self._byte
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._held, self._position)
                self._go_to(end)
                return value, byte
            except (ValueError, RecursionError) as error:
                if len(self._held) - self._position > self._reading.line_bytes:
                    raise DataError(
                        f"{where} is longer than {self._reading.max_line:g} MB, or is not JSON: {error}; raise "
                        "--max-line if it is right"
                    ) from None
                if isinstance(error, RecursionError) or not self._read():
                    raise DataError(f"{where} is not JSON: {error}") from None

    def _go_to(self, position):
        self._byte += len(self._held[self._position : position].encode())
        self._position = position

    def _read(self):
        """Takes in the next block and lets go of what is behind; False at the end of the file."""
        block, _ = next(self._blocks, (None, 0))
        if block:
            self._held, self._position = self._held[self._position :] + block, 0
        return bool(block)


def csv_cells(path, reading):
    delimiter = "\t" if path.endswith(".tsv") else ","
    starts = [0]

    def lines():
        for line, at, _ in decoded_lines(path, reading):
            starts[0] = at + len(line.encode())
            yield line

    csv.field_size_limit(reading.line_bytes)
    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    names = column = width = None
    while True:
        begin = starts[0]
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"line {rows.line_num} of {path} is not CSV: {error}") from None
        if row is None:
            return
        if not row:
            continue
        if names is None:
            names = row if reading.csv_header else []
            width = len(row)
            if reading.csv_header:
                continue
        if len(row) != width:
            raise DataError(f"the row at line {rows.line_num} of {path} has {len(row)} columns, expected {width} as in the first")
        if column is None:
            column = _column(path, reading.column, names, row)
        yield row[column], begin, f"the row at line {rows.line_num} of {path}"


def _column(path, wanted, names, row):
    """The index of the column with the text; `row` is the first of the data."""
    if wanted in names and wanted:
        return names.index(wanted)
    if wanted in (numbers := [str(number) for number in range(1, len(row) + 1)]):
        return numbers.index(wanted)
    if wanted:
        raise UsageError(f"{path} has no column {wanted!r}; it has {', '.join(names) or f'1 to {len(row)}'}")
    if "text" in names:
        return names.index("text")
    texts = [i for i, cell in enumerate(row) if not re.fullmatch(r"[-+0-9.eE ]*", cell)]
    if not texts:
        raise DataError(f"no column of {path} holds text in its first row; name one with --column")
    _tell_choice(path, texts[0], len(texts), tuple(names))
    return texts[0]


@functools.cache  # once for each file, however often it is read
def _tell_choice(path, column, texts, names):
    """Says what is taken of a file that does not say itself where its text is."""
    shown = repr(names[column][:SHOWN]) if names else str(column + 1)
    others = f", the first of {texts} with text (choose another with --column)" if texts > 1 else ""
    header = "; its first row is taken for the names of columns (--no-csv-header if it is data)" if names else ""
    say(f"note: of {path} the column {shown} is read{others}{header}", "stderr")
