"""Conversations and other short texts as batches: one per row; for conversations the loss may be masked to the answers.

A model with a chat template of its own reads conversations as that writes them.
"""

import functools
import hashlib
import itertools
from typing import NamedTuple

import numpy as np

from gpt2c.data.conversations import conversation, is_conversation, messages_of
from gpt2c.data.documents import RECORDS, text_of
from gpt2c.data.records import records
from gpt2c.data.windows import Positioned, random_words
from gpt2c.errors import DataError, InputError, UsageError
from gpt2c.tokenizers.turns import has_own_template

LOOKED_AT = 1000  # records, to see whether there are conversations


class Item(NamedTuple):
    ids: np.ndarray  # (n,) int32
    counts: np.ndarray  # (n,) bool: the loss counts this token
    turns: int = 0  # questions, if it is a conversation in the words of this program


def read_items(files, reading, tokenizer, mask_prompt=True):
    """The records of JSON, JSON Lines and CSV files, each encoded part by part. With `mask_prompt` they are conversations, of
    which the answers count, without also other texts, and all of them counts."""
    items = []
    for path in files:
        if not path.endswith(RECORDS):
            raise DataError(f"{path} is no file of items: --mask-prompt and --order items take {', '.join(RECORDS)} files")
        for record, _, where in records(path, reading):
            if has_own_template(tokenizer) and is_conversation(record):
                items += _by_template(record, where, tokenizer, mask_prompt)
                continue
            texts = conversation(record, where) if mask_prompt or is_conversation(record) else [(text_of(record, where), True)]
            parts = []
            for text, answer in texts:
                parts.append((tokenizer.encode_array(text), answer))
                if answer and tokenizer.eot is not None:
                    parts.append(([tokenizer.eot], answer))
            counts = np.concatenate([np.full(len(ids), answer or not mask_prompt) for ids, answer in parts])
            turns = sum(answer for _, answer in texts) if is_conversation(record) else 0
            items.append(Item(np.concatenate([ids for ids, _ in parts], dtype=np.int32), counts, turns))
    return items


def _by_template(record, where, tokenizer, mask_prompt):
    """The Items of a conversation, written by the model's own chat template."""
    from gpt2c.tokenizers.lessons import Lesson, lessons  # which imports jinja2

    tools = {"tools": record["tools"]} if isinstance(record, dict) and "tools" in record else {}
    try:
        messages = messages_of(record, where)
        if mask_prompt:
            found = lessons(tokenizer, messages, **tools)
        else:
            ids = tokenizer.chat(messages, add_generation_prompt=False, **tools)
            found = [Lesson(ids, [True] * len(ids))]
    except DataError:
        raise
    except (InputError, UsageError) as error:
        raise DataError(f"{where}: {error}") from None
    return [Item(np.array(ids, np.int32), np.array(counts, bool)) for ids, counts in found]


def are_conversations(files, reading):
    """Whether all records near the beginning of these files are conversations, and there are some."""
    found = [is_conversation(record) for record, _ in _first_records(files, reading)]
    return bool(found) and all(found) and all(path.endswith(RECORDS) for path in files)


def turns_in(files, reading):
    """The questions of the longest conversation near the beginning of these files; 0 where there is none."""
    turns = (conversation(record, where) for record, where in _first_records(files, reading) if is_conversation(record))
    return max((sum(answer for _, answer in parts) for parts in turns), default=0)


def _first_records(files, reading):
    """(record, where), up to a number of them."""
    every = itertools.chain.from_iterable(records(path, reading) for path in files if path.endswith(RECORDS))
    return ((record, where) for record, _, where in itertools.islice(every, LOOKED_AT))


def usable(items, T):
    """The items with a part of an answer within T + 1 tokens."""
    return [item for item in items if item.counts[1 : T + 1].any()]


class ItemLoader(Positioned):
    """Batches of B items, each cut to T + 1 tokens and padded to T positions: inputs 0, targets -1.

    With `shuffle` each epoch has an order of its own. The last batch of an epoch may have empty rows. `cut` and
    `dropped` count the items that were cut short, and those that lost all of their answer by that.
    """

    SETTINGS = (*Positioned.SETTINGS, "shuffle")

    def __init__(self, items, B, T, rank=0, world=1, seed=1337, shuffle=False):
        super().__init__(B, T, rank, world, seed)
        self.shuffle = bool(shuffle)
        self._all, self._items = items, usable(items, T)
        self.cut = sum(len(item.ids) > T + 1 for item in items)
        self.dropped = len(items) - len(self._items)
        if not self._items:
            raise DataError(
                f"none of the {len(items)} conversations has an answer within T + 1 = {T + 1} tokens; choose a larger T"
            )
        self.num_tokens = sum(min(len(item.ids), T + 1) for item in self._items)
        self._batches = -(-len(self._items) // B)  # of all ranks
        self.num_batches = -(-self._batches // world)
        self._order = None, None  # the last epoch that was asked for, and its order

    @functools.cached_property
    def identity(self):
        """Of all items as one file: their tokens, and which of them count."""
        digest = hashlib.sha256()
        for ids, counts, _ in self._all:
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i4").tobytes() + counts.tobytes())
        return [[sum(len(item.ids) for item in self._all), digest.hexdigest()]]

    @property
    def names(self):
        return [self.source or "the items"]

    def _make(self, number):
        epoch, batch = divmod(number, self._batches)
        if self._order[0] != epoch:
            count = len(self._items)
            self._order = epoch, np.argsort(random_words(self.seed, epoch, count)) if self.shuffle else np.arange(count)
        x = np.zeros((self.B, self.T), np.int32)
        y = np.full((self.B, self.T), -1, np.int32)
        for row, index in enumerate(self._order[1][batch * self.B : (batch + 1) * self.B]):
            ids, counts = (array[: self.T + 1] for array in self._items[index][:2])
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, : len(ids) - 1] = np.where(counts[1:], ids[1:], -1)
        return x, y
