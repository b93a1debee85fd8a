"""Multiple choice: files of questions with four answers (HellaSwag, MMLU), as llm.c writes and reads them."""

import os
from typing import NamedTuple

import numpy as np

from gpt2c.errors import DataError, UsageError
from gpt2c.support.files import atomic_write, open_input

MAGIC, VERSION = 20240522, 1
HEADER_BYTES = 1024
BEGIN = 65535  # the first number of an example
LIMIT = 65536  # of numbers stored in 16 bits, and of examples


class Example(NamedTuple):
    context: list  # ids
    answers: list  # of lists of ids
    label: int


def is_choice_file(path):
    with open_input(path) as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def write_choices(path, examples):
    """Writes the Examples of an iterable; returns how many there were."""
    count = longest = 0
    with atomic_write(path) as file:
        file.write(bytes(HEADER_BYTES))
        for context, answers, label in examples:
            row = [label, len(answers), len(context), *context]
            for answer in answers:
                row += [len(answer), *answer]
            size = 2 * (len(row) + 3)
            if count + 1 >= LIMIT or size >= LIMIT or max(row) >= BEGIN:
                raise UsageError(
                    f"example {count} takes {size} bytes, with ids up to {max(row)}; {path} holds less than "
                    f"{LIMIT} examples of less than {LIMIT} bytes, and ids below {BEGIN}"
                )
            file.write(np.array([BEGIN, size, count, *row], "<u2"))
            count, longest = count + 1, max(longest, size)
        if not count:
            raise DataError(f"there is no example to write to {path}")
        file.seek(0)
        file.write(np.array([MAGIC, VERSION, count, longest], "<i4"))
    return count


def read_choices(path):
    """All Examples of a file, every number of it checked."""
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic, version, count, longest = np.frombuffer(file.read(16).ljust(16, b"\0"), "<i4").tolist()
        if magic != MAGIC or version != VERSION or not 0 < count < LIMIT or size < HEADER_BYTES or size % 2:
            raise DataError(
                f"{path} is not a multiple-choice file: magic {magic}, version {version}, {count} examples, {size} "
                f"bytes; expected {MAGIC}, {VERSION}, 1 to {LIMIT - 1}, and an even number from {HEADER_BYTES}"
            )
        file.seek(HEADER_BYTES)
        words = np.frombuffer(file.read(), "<u2")
    examples, at = [], 0
    for index in range(count):
        example, end = _example(words[at : at + (int(words[at + 1]) // 2 if at + 1 < len(words) else 0)], index)
        if example is None:
            raise DataError(f"{path} is damaged in example {index} of {count}, at byte {HEADER_BYTES + 2 * at}; make it again")
        examples.append(example)
        at += end
    if at != len(words) or max(2 * len(e.context) for e in examples) > longest:
        raise DataError(f"{path} has {len(words) - at} numbers after its last example, expected none; make it again")
    return examples


def _example(words, index):
    """(Example, its length) if `words` are exactly one with this index; else (None, 0)."""
    row = words.tolist()
    if len(row) < 6 or row[:3] != [BEGIN, 2 * len(row), index] or not 0 <= row[3] < row[4]:
        return None, 0
    lists, at = [], 5
    for _ in range(1 + row[4]):
        if at >= len(row) or at + 1 + row[at] > len(row) or not row[at]:
            return None, 0
        lists.append(row[at + 1 : at + 1 + row[at]])
        at += 1 + len(lists[-1])
    return (Example(lists[0], lists[1:], row[3]), at) if at == len(row) else (None, 0)
