"""Which data these are: a checkpoint records it, so that a run goes on with those it had."""

import functools
import hashlib
import os

from gpt2c.data.shards import copied, map_shard
from gpt2c.errors import InputError

WHOLE = 1 << 28  # tokens of which all are hashed, which takes about a second; of more some blocks
BLOCKS, BLOCK = 64, 1 << 18  # how many, over all files but at least one in each; of how many tokens


class Identified:
    """A loader that knows its data again: by number and SHA-256 of the tokens that it serves of each file, whatever the file's
    name, time and format."""

    source: str = ""  # what messages call the data where the names of files do not say it
    pieces: list[tuple[str, int, int]]  # the tokens that are served: a file, the first one, the end

    @functools.cached_property
    def identity(self) -> list[list]:
        """[[tokens, SHA-256], ...]"""
        sampled = sum(last - first for _, first, last in self.pieces) > WHOLE
        blocks = -(-BLOCKS // len(self.pieces)) if sampled else 0
        return [[last - first, _digest(map_shard(path).tokens[first:last], blocks)] for path, first, last in self.pieces]

    @property
    def names(self) -> list[str]:
        """What messages call them."""
        return [self.source or os.path.basename(path) for path, _, _ in self.pieces]


def _digest(tokens, blocks):
    """Of all tokens, as int32, or of so many blocks, spread evenly from the first token to the last."""
    end = max(0, len(tokens) - BLOCK)
    starts = [n * end // max(1, blocks - 1) for n in range(blocks)] if blocks else range(0, len(tokens), BLOCK)
    digest = hashlib.sha256()
    for start in starts:
        digest.update(copied(tokens[start : start + BLOCK]).astype("<i4"))
    return digest.hexdigest()


def identities(loader, val_loader):
    """{split: identity}, as far as loaders have one."""
    splits = {"training": loader, "validation": val_loader}
    return {split: loader.identity for split, loader in splits.items() if hasattr(loader, "identity")}


def changes(before, loader, val_loader, carries):
    """(what has changed since these identities were recorded, or ""; whether a place in the training data still is one: if they
    are the same, or as many, where no state is carried (`carries`) from the tokens before it)"""
    if not isinstance(before, dict) or not all(map(_is_identity, before.values())):
        raise InputError("the run state in the checkpoint is damaged (what it says of its data): use another checkpoint")
    told, stays = [], True
    for split, now in identities(loader, val_loader).items():
        was, names = before.get(split, now), (loader if split == "training" else val_loader).names
        if was != now:
            told.append(f"the {split} data are not those of before: {_difference(was, now, names)}")
            as_many = [tokens for tokens, _ in was] == [tokens for tokens, _ in now]
            stays &= split == "validation" or as_many and not carries
    return ", and ".join(told), stays


def _is_identity(value):
    """Whether what was read is a list of [tokens, SHA-256]."""
    return isinstance(value, list) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [int, str] for entry in value
    )


def _difference(was, now, names):
    """The first one, in words."""
    if len(was) != len(now):
        return f"they are {len(now)} file{'s' * (len(now) > 1)}, and were {len(was)}"
    name, (before, _), (tokens, _) = next((name, a, b) for name, a, b in zip(names, was, now) if a != b)
    return f"{name} has other tokens" if tokens == before else f"{name} has {tokens:,} tokens, had {before:,}"
