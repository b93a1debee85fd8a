"""Finding data sets below a folder, and choosing one of them."""

import difflib
import glob
import os
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from gpt2c.data.shards import GPT2_VOCAB, expand
from gpt2c.errors import DataError, UsageError
from gpt2c.tokenizers.finding import find_gpt2_tokenizer

TRAIN = "_train.bin"
NUMBER = "[0-9]" * 6
FIRST = re.compile(r".+_train(_000001)?\.bin")


class Dataset(NamedTuple):
    name: str
    train: str
    val: str | None
    tokenizer: str | None


def find_datasets(root):
    """Every NAME_train.bin and NAME_train_000001.bin below the folder, by name, then path.

    A name used twice becomes FOLDER/NAME.
    """
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder already visited
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        paths = [os.path.join(folder, file) for file in files if FIRST.fullmatch(file)]
        found += [_dataset(path, root) for path in paths if os.path.isfile(path)]
    found.sort(key=lambda dataset: (dataset.name, dataset.train))
    uses = Counter(dataset.name for dataset in found)
    return [
        dataset
        if uses[dataset.name] == 1
        else dataset._replace(name=os.path.relpath(os.path.join(os.path.dirname(dataset.train), dataset.name), root))
        for dataset in found
    ]


def _stem(train):
    """The path of a training file without what makes it one; the path itself if it is none."""
    return re.sub(r"_train(_\d{6})?\.bin$", "", train)


def _dataset(first, root):
    """The data set of a training file, or of all shards if it is the first: what lies beside it, or for GPT-2 ids GPT-2's
    tokenizer near by."""
    stem = _stem(first)
    train = f"{stem}_train_{NUMBER}.bin" if first.endswith("_train_000001.bin") else first
    vals = (f"{stem}_val.bin", f"{stem}_val_{NUMBER}.bin") if stem != first else ()
    own = (f"{stem}_tokenizer.bin", f"{stem}_tokenizer.json")
    tokenizer = next(filter(os.path.isfile, own), None)
    if not tokenizer and _may_hold_gpt2_ids(first):
        tokenizer = find_gpt2_tokenizer(os.path.dirname(first), root, os.path.join(root, os.pardir))
    return Dataset(os.path.basename(stem), train, next(filter(_is_there, vals), None), tokenizer)


def _is_there(files):
    return os.path.isfile(files) or bool(glob.glob(files))


def dataset_of(files):
    """The data set of a training file, or of those that match a pattern."""
    first = _dataset(expand(files)[0], os.path.dirname(files))
    if os.path.isfile(files):
        return first
    val = files.removesuffix(TRAIN) + "_val.bin"
    return first._replace(train=files, val=val if files.endswith(TRAIN) and _is_there(val) else first.val)


def _may_hold_gpt2_ids(path):
    """By its first int32: a uint16 shard, or a headerless file that begins with a GPT-2 id."""
    try:
        first = np.fromfile(path, "<i4", 1)
    except OSError:  # listing data sets must not stop at an unreadable one
        return False
    return first.size == 1 and (first[0] == 20240520 or 0 <= first[0] < GPT2_VOCAB)


def choose_dataset(datasets, choice):
    """The data set with this name, this number in `list_datasets`, or this training file."""
    for dataset in datasets:
        if choice == dataset.name:
            return dataset
    if choice.isdecimal() and len(choice) < 10 and int(choice) < len(datasets):
        return datasets[int(choice)]
    if os.path.isfile(choice):
        return next((dataset for dataset in datasets if os.path.samefile(choice, dataset.train)), dataset_of(choice))
    names = [dataset.name for dataset in datasets]
    near = difflib.get_close_matches(choice, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names) or 'none'}"
    if os.path.basename(choice) != choice or os.path.splitext(choice)[1]:
        raise DataError(f"cannot read {choice}: there is no such file, nor a data set of that name; {hint}")
    raise UsageError(f"there is no data set {choice!r}; {hint}")


def list_datasets(datasets):
    """What was found, as text; the numbers are those that `choose_dataset` takes."""
    lines = ["Available datasets:"]
    for i, dataset in enumerate(datasets):
        lines += [f"  {i}: {dataset.name}", f"    Train: {dataset.train}", f"    Val:   {dataset.val or 'none'}"]
    return "\n".join(lines)
