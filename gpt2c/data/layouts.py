"""Data sets laid out as llm.c's scripts lay them out, from local files: the same tokens in the same order."""

import csv
import dataclasses
import random

from gpt2c.data.choices import Example
from gpt2c.data.documents import Piece, read_pieces
from gpt2c.data.reading import decoded_lines
from gpt2c.data.records import json_records
from gpt2c.errors import DataError

SHAKESPEARE_VAL_TOKENS = 32768
STORIES_SEED = 1337


def shakespeare(files, reading):
    """Sections that end with an empty line; the first tokens are for validation (`first_to_val`)."""
    return read_pieces(files, dataclasses.replace(reading, split_on="\n\n"))


def first_to_val(encoded, count):
    """Turns the first `count` ids of the training part into the validation part."""
    for _, ids, at in encoded:
        yield "val", ids[:count], at
        yield "train", ids[count:], at
        count = max(0, count - len(ids))


def stories(files, reading):
    """TinyStories: files of {"story"}, the first for validation, each in an order of its own."""
    before = 0
    for number, path in enumerate(files):
        records = list(json_records(path, reading))
        end = before + (records[-1][1] if records else 0)
        random.Random(STORIES_SEED + number).shuffle(records)
        for record, _, where in records:
            if not isinstance(record, dict) or not isinstance(record.get("story"), str):
                raise DataError(f"{where} has no story; expected objects with a string of that name")
            yield Piece("train" if number else "val", record["story"].strip(), True, before, where)
        before = end


def hellaswag(files, reading, tokenizer):
    """Examples from lines of {"ctx", "endings", "label"}."""
    for path in files:
        for record, _, where in json_records(path, reading):
            match record:
                case {"ctx": str(context), "endings": [*endings], "label": int(label)} if all(
                    isinstance(ending, str) for ending in endings
                ) and 0 <= label < len(endings):
                    yield _example(tokenizer, context, endings, label)
                case _:
                    raise DataError(f"{where} is no example of HellaSwag; expected ctx, endings and label")


def mmlu(files, reading, tokenizer):
    """Examples from rows of a question, four answers and the letter of the right one."""
    csv.field_size_limit(reading.line_bytes)
    for path in files:
        rows = csv.reader((line for line, _, _ in decoded_lines(path, reading)), strict=True)
        try:
            for row in rows:
                if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
                    raise DataError(
                        f"the row at line {rows.line_num} of {path} is no example of MMLU; expected a question, "
                        "four answers and a letter from A to D"
                    )
                yield _example(tokenizer, f"Question: {row[0]}\n\nAnswer:", row[1:5], "ABCD".index(row[5]))
        except csv.Error as error:
            raise DataError(f"line {rows.line_num} of {path} is not CSV: {error}") from None


def _example(tokenizer, context, answers, label):
    return Example(tokenizer.encode(context), [tokenizer.encode(f" {answer}") for answer in answers], label)
