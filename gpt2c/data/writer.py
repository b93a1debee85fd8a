"""Writing a data set: NAME_train.bin, NAME_val.bin and the tokenizer beside them, all of them or none."""

import glob
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from gpt2c.data.shards import ShardWriter
from gpt2c.errors import DataError, ResourceError, UsageError

SHARD_TOKENS = 100_000_000


class DatasetWriter:
    """Takes ids for the parts train and val. The files become visible together, when all of them are on the disk."""

    def __init__(self, staging, name, vocab_size, shard_tokens):
        self.name, self.counts = name, {"train": 0, "val": 0}
        self._staging, self._vocab_size, self._shard_tokens = staging, vocab_size, shard_tokens
        self._shards = {"train": [], "val": []}

    def write(self, part, ids):
        while len(ids):
            shards = self._shards[part]
            if not shards or shards[-1].count == self._shard_tokens:
                if shards:
                    shards[-1].finish()
                shards.append(ShardWriter(self._staging / f"{part}_{len(shards)}", self._vocab_size))
            room = self._shard_tokens - shards[-1].count
            shards[-1].write(ids[:room])
            self.counts[part] += len(ids[:room])
            ids = ids[room:]

    def finish(self):
        """Gives the shards their names."""
        for part, shards in self._shards.items():
            if shards:
                shards[-1].finish()
            for number, shard in enumerate(shards, 1):
                suffix = f"_{number:06d}" if len(shards) > 1 else ""
                os.rename(shard.path, self._staging / f"{self.name}_{part}{suffix}.bin")

    def close(self):
        for shards in self._shards.values():
            for shard in shards:
                shard.close()


@contextmanager
def dataset_writer(folder, name, tokenizer, shard_tokens=SHARD_TOKENS):
    """Yields a DatasetWriter; what it wrote takes the place of the data set `name` in `folder` if nothing goes wrong."""
    if not name or os.sep in name or name.startswith("."):
        raise UsageError(f"a data set cannot be called {name!r}; choose a plain --name")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder, name)
        staging = folder / f".{name}.{os.getpid()}.tmp"
        staging.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}; choose another --out-dir") from None
    writer = DatasetWriter(staging, name, tokenizer.vocab_size, shard_tokens)
    try:
        yield writer
        if not writer.counts["train"]:
            raise DataError("there is no text to train on; give more")
        writer.finish()
        save_tokenizer(tokenizer, staging / f"{name}_tokenizer")
        _publish(staging, folder, name)
    except OSError as error:
        raise ResourceError(f"cannot write the data set {name} in {folder}: {error.strerror}") from error
    finally:
        writer.close()
        shutil.rmtree(staging, ignore_errors=True)


def save_tokenizer(tokenizer, stem):
    """GPT-2's as llm.c's file, all others as tokenizer.json."""
    if tokenizer.kind == "gpt2":
        tokenizer.save_bin(f"{stem}.bin")
    else:
        tokenizer.save(f"{stem}.json")


def _publish(staging, folder, name):
    """Moves the files into place, the training data last; what an older, larger data set has beside them goes."""
    new = sorted(os.listdir(staging), key=lambda file: "_train" in file)
    number = "[0-9]" * 6
    for pattern in ("_train.bin", f"_train_{number}.bin", "_val.bin", f"_val_{number}.bin", "_tokenizer.bin", "_tokenizer.json"):
        for old in glob.glob(glob.escape(f"{folder / name}") + pattern):
            if os.path.basename(old) not in new:
                os.unlink(old)
    for file in new:
        os.replace(staging / file, folder / file)


def _remove_leftovers(folder, name):
    """Temporary files that a killed run has left."""
    import psutil

    for path in folder.glob(f".{name}.*.tmp"):
        process = path.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)
