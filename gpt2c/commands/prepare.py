"""Make token files from text: python -m gpt2c prepare FILE... [flags], or gpt2c prepare.

Takes text, JSON, JSON Lines and CSV files, folders and glob patterns. Each document begins with the end-of-text token;
the last 10 % is the validation split. Memory use does not grow with the input, and an interrupted run leaves nothing
behind.
"""

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gpt2c.commands.command_line import parse
from gpt2c.data import layouts
from gpt2c.data.choices import write_choices
from gpt2c.data.documents import read_pieces, text_files, total_bytes
from gpt2c.data.encoding import encode_pieces
from gpt2c.data.reading import Reading
from gpt2c.data.texts import tokenizer_for
from gpt2c.data.writer import SHARD_TOKENS, dataset_writer, save_tokenizer
from gpt2c.errors import UsageError
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.machine import in_units
from gpt2c.support.progress import Progress, duration
from gpt2c.support.streams import say
from gpt2c.tokenizers.finding import default_tokenizer
from gpt2c.tokenizers.tokenizer import KINDS

LAYOUTS = {"tinyshakespeare": "tiny_shakespeare", "tinystories": "TinyStories", "hellaswag": "hellaswag", "mmlu": "mmlu"}
CHOICES = {"hellaswag": layouts.hellaswag, "mmlu": layouts.mmlu}


@dataclass
class PrepareConfig:
    inputs: tuple[str, ...] = flag((), "input files, folders or glob patterns", metavar="FILE", group="what to make")
    name: str = flag("", "name of the data set", default_text="the first input's name")
    out_dir: str = flag("data", "output directory", "-o", "--output", metavar="DIR")
    tokenizer: str = flag(
        "",
        f"tokenizer: {', '.join(KINDS)}, or a tokenizer file",
        metavar="KIND|PATH",
        default_text="gpt2 where gpt2_tokenizer.bin is at hand, else char",
    )
    layout: str = flag("", "data set in the layout of the llm.c script of this name", choices=("", *LAYOUTS), default_text="")
    val_fraction: float = flag(0.1, "validation split: fraction of the text, at its end, that is held out", "--val-frac")
    shard_tokens: int = flag(SHARD_TOKENS, "maximum tokens per shard (file); further ones become NAME_train_000001.bin and so on")
    vocab_size: int = flag(0, "vocabulary size of a word or BPE tokenizer that is trained here", default_text="the kind's own")
    workers: int = flag(0, "worker processes that encode", "--threads", default_text="one per core, at most 8")

    def __post_init__(self):
        require_at_least(self, val_fraction=0, shard_tokens=1, vocab_size=0, workers=0)
        if self.val_fraction >= 1:
            raise UsageError(f"val_fraction is {self.val_fraction}, expected a fraction below 1")


def main(argv):
    (config, reading), _ = parse(argv, [PrepareConfig, Reading], "gpt2c prepare", __doc__.partition("\n\n")[2], ["inputs"])
    if not config.inputs:
        raise UsageError("name the text: gpt2c prepare FILE... [flags]")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up on the way out
    reading.split_on = reading.split_on.replace("\\n", "\n")
    files = text_files(config.inputs)
    total = total_bytes(files, reading)
    name = config.name or LAYOUTS.get(config.layout) or Path(config.inputs[0]).stem
    options = {"vocab_size": config.vocab_size} if config.vocab_size else {}
    tokenizer = tokenizer_for(config.tokenizer or default_tokenizer(None), files, reading, **options)
    began = time.monotonic()
    make = prepare_choices if config.layout in CHOICES else prepare_text
    say(make(config, reading, files, total, name, tokenizer))
    say(
        f"{in_units(total)} in {duration(time.monotonic() - began)} with a {tokenizer.kind} tokenizer of "
        f"{tokenizer.vocab_size} tokens"
    )


def prepare_text(config, reading, files, total, name, tokenizer):
    """Writes NAME_train.bin, NAME_val.bin and the tokenizer; returns what to say of them."""
    if config.layout == "tinyshakespeare":
        pieces = layouts.shakespeare(files, reading)
    elif config.layout == "tinystories":
        pieces = layouts.stories(files, reading)
    else:
        pieces = read_pieces(files, reading, (1 - config.val_fraction) * total if config.val_fraction else float("inf"))
    progress = Progress("encoding", total)
    with dataset_writer(config.out_dir, name, tokenizer, config.shard_tokens) as writer:
        encoded = encode_pieces(pieces, tokenizer, total, config.workers)
        if config.layout == "tinyshakespeare":
            encoded = layouts.first_to_val(encoded, layouts.SHAKESPEARE_VAL_TOKENS)
        for part, ids, at in encoded:
            writer.write(part, ids)
            progress.update(at)
        progress.end()
    return f"{name} in {config.out_dir}: {writer.counts['train']:,} training tokens, {writer.counts['val']:,} for validation" + (
        "" if writer.counts["val"] else " (none: a document is never cut, and the last one is most of the text)"
    )


def prepare_choices(config, reading, files, total, name, tokenizer):
    """Writes NAME_val.bin of multiple-choice examples; returns what to say of it."""
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    count = write_choices(folder / f"{name}_val.bin", CHOICES[config.layout](files, reading, tokenizer))
    save_tokenizer(tokenizer, folder / f"{name}_tokenizer")
    return f"{name} in {config.out_dir}: {count:,} examples"
