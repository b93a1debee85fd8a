"""Evaluate a model on a file: python -m gpt2c eval CKPT --data FILE, or gpt2c eval.

Text and token files: loss per token, perplexity and bits per byte. Multiple-choice files (HellaSwag, MMLU): accuracy. With
--compare-weights: what each type of weights costs, in loss and in memory.
"""

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2c import settings
from gpt2c.commands.command_line import parse
from gpt2c.data import is_choice_file, is_token_file, read_choices, read_shard, text_dataset, text_files
from gpt2c.data.reading import Reading
from gpt2c.data.shards import copied, expand
from gpt2c.errors import InputError, UsageError
from gpt2c.generation.loss import DecodedLoss
from gpt2c.generation.slots import CacheConfig
from gpt2c.models.family import max_seq_len
from gpt2c.models.files import load
from gpt2c.models.frozen import CHOICES, weights_flag
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.streams import say
from gpt2c.tokenizers.finding import tokenizer_of_model
from gpt2c.tokenizers.tokenizer import Tokenizer


@dataclass
class EvalConfig:
    checkpoint: str = flag(
        "", "model to evaluate: a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT"
    )
    data: str = flag(
        "",
        "evaluation data: text, token files or a multiple-choice file (HellaSwag, MMLU)",
        "-i",
        "-j",
        "--val-data",
        metavar="PATH",
    )
    batch_size: int = flag(
        8,
        "batch size: sequences per batch; a recurrent model reads each file as one sequence, this many x "
        "--seq-len tokens at a time",
        "-b",
    )
    seq_len: int = flag(0, "sequence length: tokens per sequence", "-t", default_text="as many as the model takes, at most 1024")
    val_steps: int = flag(-1, "batches to evaluate (-1: all)", "-m", "--val-num-batches")
    decode: bool = flag(False, "read one token at a time, as generation does, with its kernels and its KV cache")
    limit: int = flag(0, "multiple-choice examples to evaluate (0: all)")
    tokenizer: str = flag(
        "",
        "tokenizer file, for checkpoints without a tokenizer",
        metavar="PATH",
        default_text="gpt2_tokenizer.bin here or in data/",
    )
    weights: str = weights_flag()
    compare_weights: bool = flag(
        False, "measure every type of --weights, one after the other: loss, perplexity, difference to float32, memory"
    )
    threads: int = flag(0, "CPU threads to use", default_text="one per core")

    def __post_init__(self):
        require_at_least(self, batch_size=1, seq_len=0, val_steps=-1, limit=0)
        if not self.val_steps:
            raise UsageError("val_steps is 0, so there would be nothing to evaluate; expected at least 1, or -1 for all")


def main(argv):
    classes = [EvalConfig, Reading, CacheConfig]
    (config, reading, cache), given = parse(argv, classes, "gpt2c eval", __doc__.partition("\n\n")[2], ["checkpoint"])
    if not config.checkpoint or not config.data:
        raise UsageError("name a checkpoint and a file: gpt2c eval CKPT --data FILE [flags]")
    if "kv" in given and not config.decode:
        raise UsageError("--kv is given without --decode, which it goes with; add --decode")
    if config.threads:
        settings.set_num_threads(config.threads)
    if config.compare_weights and "weights" in given:
        raise UsageError("--weights is given with --compare-weights, which measures all of them; leave one of them out")
    model = load(config.checkpoint, config.weights)
    T = sequence_length(model, config)
    if os.path.isfile(config.data) and is_choice_file(config.data):
        for name in ("decode", "compare_weights"):
            if getattr(config, name):
                raise UsageError(f"--{name.replace('_', '-')} is for the loss of a text; leave it out for a multiple-choice file")
        print(score_choices(model, read_choices(config.data), config, T))
        return
    paths, tokenizer = token_files(model, config, reading)
    if config.compare_weights:
        del model  # there is one at a time
        print("\n".join(compared(config, paths, T, cache.kv)))
    else:
        print(measure(model, paths, tokenizer, config, T, cache.kv))


def sequence_length(model, config):
    """Tokens per sequence."""
    longest = max_seq_len(model.config)
    if config.seq_len > longest:
        raise UsageError(f"--seq-len {config.seq_len} is more than the model's max_seq_len of {longest}")
    return config.seq_len or min(longest, 1024)


def token_files(model, config, reading):
    """(the token files of --data, the tokenizer if one is at hand)"""
    is_text = os.path.isdir(config.data) or not is_token_file(expand(config.data)[0])
    tokenizer = model.tokenizer
    if tokenizer is None and (config.tokenizer or is_text):
        tokenizer = tokenizer_of_model(model, config.tokenizer)
    if is_text:
        return [text_dataset(text_files(config.data), tokenizer, reading, 0).train], tokenizer
    return expand(config.data), tokenizer


class Measured(NamedTuple):
    loss: float  # the sum over the tokens
    tokens: int
    size: int  # bytes of their text; 0 if there is no tokenizer to tell

    @property
    def mean(self):
        return self.loss / self.tokens

    @property
    def perplexity(self):
        return math.exp(self.mean) if self.mean < 700 else math.inf


def measure(model, paths, tokenizer: Tokenizer | None, config, T, kv=""):
    """The line with loss and perplexity over every token but the first of each file, and bits per byte of its text."""
    found = summed(model, paths, tokenizer, config, T, kv)
    line = f"loss {found.mean:.6f} ppl {found.perplexity:.4f}"
    if found.size:
        line += f" bpb {found.loss / math.log(2) / found.size:.4f}"
    return f"{line} ({found.tokens:,} tokens)"


def summed(model, paths, tokenizer, config, T, kv):
    """Measured, of every token but the first of each file."""
    loss = tokens = size = 0
    carries = model.definition.state is not None
    B, T = (1, config.batch_size * T) if carries else (config.batch_size, T)
    evaluate = DecodedLoss(model, B, T, kv).evaluate if config.decode else model.evaluate
    for x, y, continues in take(batches(paths, B, T, model.known_ids), config.val_steps):
        counted = int((y >= 0).sum())
        loss += counted * evaluate(x, y, carries and continues)
        tokens += counted
        if tokenizer:
            marks = [id for id in (-1, tokenizer.eot, tokenizer.opens) if id is not None]
            targets = y[~np.isin(y, marks)]
            size += len(tokenizer.decode_bytes(targets))
    if not tokens:
        raise InputError(f"{config.data} has too few tokens, expected at least 2")
    return Measured(loss, tokens, size)


def compared(config, paths, T, kv):
    """The lines of a table with each type of weights. The difference is to the file's own numbers in float32."""
    found, nbytes = {}, {}
    for number, weights in enumerate(CHOICES, 1):
        say(f"{weights}, {number} of {len(CHOICES)}", "stderr")
        model = load(config.checkpoint, weights)
        found[weights] = summed(model, paths, None, config, T, kv)
        nbytes[weights] = sum(tensor.nbytes for tensor in model.base.values())
    exact = found["f32"].mean
    yield f"{'weights':<8} {'bytes':>15} {'loss':>10} {'ppl':>12} {'loss - f32':>11}  ({found['f32'].tokens:,} tokens)"
    for weights, one in found.items():
        more = one.mean - exact
        share = f" {more / exact:+.3%}" if exact else ""
        yield f"{weights:<8} {nbytes[weights]:>15,} {one.mean:>10.6f} {one.perplexity:>12.4f} {more:>+11.6f}{share}"


def batches(paths, B, T, vocab_size):
    """(x, y) that hold every token of the files as a target once, except each file's first; what is not there is -1. And
    whether they go on in the file of those before."""
    for path in paths:
        tokens = read_shard(path, vocab_size).tokens
        for start in range(0, len(tokens) - 1, B * T):
            piece = copied(tokens[start : start + B * T + 1])
            rows = -(-(len(piece) - 1) // T)
            x, y = np.zeros(rows * T, np.int32), np.full(rows * T, -1, np.int32)
            x[: len(piece) - 1], y[: len(piece) - 1] = piece[:-1], piece[1:]
            yield x.reshape(rows, T), y.reshape(rows, T), start > 0


def take(batches, count):
    for number, batch in enumerate(batches):
        if number == count:
            return
        yield batch


def score_choices(model, examples, config, T):
    """llm.c's line of how many examples have their right answer as the likeliest per token, and both accuracies."""
    name = "MMLU" if "mmlu" in os.path.basename(config.data).lower() else "HellaSwag"
    examples = examples[: config.limit or None]
    highest = max(max(ids) for e in examples for ids in (e.context, *e.answers))
    if highest >= model.known_ids:
        raise InputError(
            f"{config.data} has id {highest}, the model a vocabulary of {model.known_ids}; use the "
            "tokenizer the file was made with"
        )
    rows = [(e.context, answer) for e in examples for answer in e.answers]
    losses = [
        sums for n in range(0, len(rows), config.batch_size) for sums in answer_losses(model, rows[n : n + config.batch_size], T)
    ]
    right = right_norm = at = 0
    for example in examples:
        sums = np.array(losses[at : at + len(example.answers)])
        at += len(example.answers)
        right += int(sums.argmin()) == example.label
        right_norm += int((sums / [len(answer) for answer in example.answers]).argmin()) == example.label
    count = len(examples)
    return f"{name}: {right_norm}/{count} = {right_norm / count:f}\nacc {right / count:.4f} acc_norm {right_norm / count:.4f}"


def answer_losses(model, rows, T):
    """The summed loss of each answer behind its context, of which the end is kept where both are too long."""
    texts = []
    for context, answer in rows:
        if len(answer) >= T:
            raise InputError(f"an answer has {len(answer)} tokens, but --seq-len is {T}; choose a longer one")
        texts.append((context + answer)[-T - 1 :] if len(context) + len(answer) > T + 1 else context + answer)
    x = np.zeros((len(rows), max(map(len, texts)) - 1), np.int32)
    for row, ids in enumerate(texts):
        x[row, : len(ids) - 1] = ids[:-1]
    model.reset_state()
    model.forward(x)
    losses = []
    for row, (ids, (_, answer)) in enumerate(zip(texts, rows)):
        last = len(ids) - 1
        logits = model.logits[row, last - len(answer) : last, : model.config.vocab_size].astype(np.float64)
        top = logits.max(-1)
        chosen = logits[np.arange(len(answer)), answer]
        losses.append(float((top + np.log(np.exp(logits - top[:, None]).sum(-1)) - chosen).sum()))
    return losses
