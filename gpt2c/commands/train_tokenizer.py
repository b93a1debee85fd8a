"""Make a tokenizer from text: python -m gpt2c train-tokenizer FILE [flags], or gpt2c train-tokenizer.

Learns byte-level BPE merges, unless --kind asks for another vocabulary, and writes them as a tokenizer.json. Of several
sources the first of these counts: --bpe-training-file, --bpe-training-text, FILE, --training-text.
"""

import codecs
import os
import sys
import time
import warnings
from dataclasses import dataclass

from gpt2c.commands.command_line import parse
from gpt2c.errors import InputError, UsageError
from gpt2c.support.fields import flag
from gpt2c.support.files import open_input, require_place
from gpt2c.support.progress import Progress
from gpt2c.support.streams import say
from gpt2c.tokenizers.tokenizer import Tokenizer

KINDS = ("char", "byte", "word", "bpe")
LOSSLESS = ("char", "byte", "bpe")
BLOCK = 1 << 20  # bytes read at a time
SAMPLE = 1 << 22  # characters that the statistics are made from


@dataclass
class TrainTokenizerConfig:
    training_file: tuple[str, ...] = flag((), "text file (UTF-8) to train on", "--data", "-i", metavar="FILE")
    training_text: str = flag("", "text to train on, instead of a file")
    bpe_training_file: str = flag("", "text file to train on, with precedence over all other sources", metavar="FILE")
    bpe_training_text: str = flag("", "text to train on, with precedence over FILE")
    kind: str = flag("bpe", "kind of tokenizer: characters, bytes, words, or byte-pair encoding", choices=KINDS)
    vocab_size: int | None = flag(
        None,
        "vocabulary size (bpe and word): maximum number of tokens, special ones included",
        "--bpe-vocab-size",
        default_text="512 for bpe, 50,000 for word",
    )
    min_frequency: int | None = flag(
        None,
        "minimum frequency (bpe and word): rarer pairs or words do not become tokens",
        "--bpe-min-frequency",
        default_text="2 for bpe, 1 for word",
    )
    special: tuple[str, ...] = flag(
        (),
        "special token, which ordinary text is never encoded to",
        metavar="TOKEN",
        default_text="<|endoftext|> for bpe, </s> for word",
    )
    unk: bool = flag(False, "char: add an unknown token <unk> for characters that the text does not contain")
    save_path: str = flag(
        "./tokenizer.json", "output file for the tokenizer", "--bpe-save-path", "-o", "--output", metavar="FILE"
    )


def main(argv):
    (config,), given = parse(
        argv, [TrainTokenizerConfig], "gpt2c train-tokenizer", __doc__.partition("\n\n")[2], ["training_file"]
    )
    options = _options(config, given)
    source, chunks = _source(config)
    if source is None and config.kind != "byte":
        raise UsageError("name a text: gpt2c train-tokenizer FILE [flags]")
    require_place(config.save_path)
    started = time.perf_counter()
    sample = Sample(chunks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer = Tokenizer.make(config.kind, sample, **options)
        if config.kind == "byte":  # made without the text: reads it for the statistics
            list(sample)
    for warning in caught:
        say(f"gpt2c train-tokenizer: warning: {warning.message}", "stderr")
    seconds = time.perf_counter() - started
    say(
        f"{config.kind} tokenizer: {tokenizer.vocab_size:,} tokens"
        + (f" from {sample.seen:,} characters of {source} in {seconds:.1f} s" if sample.seen else "")
    )
    same = not sample.text or _statistics(tokenizer, sample.text)
    tokenizer.save(config.save_path)
    say(f"written: {config.save_path}")
    return 0 if same else 1


def _options(config, given):
    """The flags that were given, as arguments of Tokenizer.make; an error if the kind has no use for one."""
    names = {"vocab_size": ("bpe", "word"), "min_frequency": ("bpe", "word"), "special": KINDS, "unk": ("char",)}
    for name in names:
        if name in given and config.kind not in names[name]:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to a {config.kind} tokenizer; leave it out")
    options = {"specials" if name == "special" else name: getattr(config, name) for name in names if name in given}
    for name in ("vocab_size", "min_frequency"):
        if options.get(name, 1) < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {options[name]}; expected 1 or more")
    return options | ({"progress": sys.stderr.isatty()} if config.kind == "bpe" else {})


def _source(config):
    """(its name, its text in chunks); (None, nothing) where none is given."""
    if config.bpe_training_file:
        return config.bpe_training_file, read_files([config.bpe_training_file])
    if config.bpe_training_text:
        return "--bpe-training-text", [config.bpe_training_text]
    if config.training_file:
        return ", ".join(config.training_file), read_files(config.training_file)
    if config.training_text:
        return "--training-text", [config.training_text]
    return None, []


def read_files(paths):
    """The text of files, in chunks that do not divide a word."""
    from gpt2c.tokenizers.vocabularies import cut

    progress, done = Progress("reading", sum(os.path.getsize(path) for path in paths if os.path.isfile(path))), 0
    for path in paths:
        rest = ""
        for text in _decoded(path):
            *chunks, rest = cut(rest + text, BLOCK)
            yield from chunks
            done += len(text.encode())
            progress.update(done)
        yield rest
    progress.end()


def _decoded(path):
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    with open_input(path) as file:
        while block := file.read(BLOCK):
            yield _decode(decoder, block, at, path)
            at += len(block)
        yield _decode(decoder, b"", at, path)


def _decode(decoder, block, at, path):
    """The text of the block that begins at byte `at`; of a character that goes on behind it, the next call has all."""
    begun = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {at - begun + error.start} is 0x{error.object[error.start]:02x}; convert it to UTF-8"
        ) from None


class Sample:
    """Hands on chunks of text, counts their characters and keeps the first ones."""

    def __init__(self, chunks):
        self.chunks, self.seen, self.text = chunks, 0, ""

    def __iter__(self):
        for chunk in self.chunks:
            self.seen += len(chunk)
            self.text += chunk[: SAMPLE - len(self.text)]
            yield chunk


def _statistics(tokenizer, text):
    """Prints what the tokenizer does with the text; False if the text does not come back as it must."""
    ids = tokenizer.encode_array(text)
    size = len(text.encode())
    say(f"compression: {size:,} bytes are {len(ids):,} tokens, {size / max(len(ids), 1):.2f} bytes per token")
    longest = sorted(set(ids.tolist()), key=lambda i: (-len(tokenizer.tokens[i]), i))[:5]
    say("longest tokens: " + ", ".join(repr(tokenizer.decode([i])) for i in longest))
    if tokenizer.kind not in LOSSLESS:
        known = 1 - (ids == tokenizer.tokens.index(b"<unk>")).mean()
        say(f"words in the vocabulary: {known:.2%}; spaces and line ends are not kept")
        return True
    same = tokenizer.decode(ids) == text
    say(f"round trip: {'the same text' if same else 'NOT the same text; this is an error in gpt2c'}")
    return same
