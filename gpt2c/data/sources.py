"""Data sources of a run: token files, text, or conversations, chosen by flags."""

import os
from dataclasses import dataclass

import numpy as np

from gpt2c.data.datasets import Dataset, choose_dataset, dataset_of, find_datasets, list_datasets
from gpt2c.data.documents import text_files, total_bytes
from gpt2c.data.items import Item, ItemLoader, are_conversations, read_items, turns_in, usable
from gpt2c.data.lanes import Lanes
from gpt2c.data.loader import DataLoader
from gpt2c.data.shards import expand, is_token_file, map_shard
from gpt2c.data.tasks import task_pairs
from gpt2c.data.texts import inline_file, text_dataset, tokenizer_for
from gpt2c.data.windows import DocumentWindows, RandomWindows
from gpt2c.errors import DataError, UsageError
from gpt2c.support.fields import flag
from gpt2c.support.streams import say
from gpt2c.tokenizers.finding import default_tokenizer
from gpt2c.tokenizers.tokenizer import KINDS, Tokenizer
from gpt2c.tokenizers.turns import has_own_template

ORDERS = ("random", "documents", "items", "lanes", "shuffled", "sequential")
HELD_OUT = 0.1
TASK = "task:"  # before the name of a task whose prompts and answers are the data


@dataclass
class DataConfig:
    """Training and validation data, and the order of batches."""

    data: str = flag(
        "",
        "training data: text, JSON or CSV, a folder of them, a token file, a glob pattern, or the name or "
        "number of a data set below data/; or task:NAME, prompts and answers of a task of rlvr",
        "-i",
        "--train-data",
        "--training-file",
        metavar="PATH|NAME",
        default_text="the first data set",
        group="data",
        main=True,
    )
    training_text: str = flag("", "training text itself, instead of a file", default_text="", replaces=("data",))
    val_data: str = flag(
        "",
        "validation data: text or token files",
        "-j",
        metavar="PATH",
        default_text="the *_val.bin beside the training data, else its --held-out part",
    )
    tokenizer: str = flag(
        "",
        f"tokenizer for text: {', '.join(KINDS)}, or a tokenizer file",
        "--bpe-load-path",
        "--vocab",
        metavar="KIND|PATH",
        default_text="the one beside token files; for text the family's own",
        main=True,
    )
    use_bpe: bool = flag(False, "train a BPE tokenizer on the text: the same as --tokenizer bpe, which has precedence")
    bpe_vocab_size: int = flag(512, "vocabulary size of a BPE tokenizer that is trained on the text")
    bpe_min_frequency: int = flag(2, "BPE: least number of occurrences for a pair to be merged into a token")
    order: str = flag(
        "",
        "how batches are drawn: random windows; documents (random windows inside one document); items (one "
        "record per row); lanes (contiguous text, each batch continues the last one, for recurrent families); "
        "shuffled or sequential windows as in llm.c",
        choices=("", *ORDERS),
        metavar="|".join(ORDERS),
        default_text="lanes for recurrent families, random for text, shuffled for token files",
    )
    max_chunks_per_epoch: int = flag(
        1000, "with --order lanes: batches per epoch, after which the lanes begin at new places with a hidden state of zeros"
    )
    context_length: int = flag(
        0, "with --order lanes: tokens per lane and epoch, instead of --max-chunks-per-epoch", default_text=""
    )
    held_out: float = flag(
        HELD_OUT,
        "validation split: fraction of the text that is held out for validation where there is no --val-data",
        metavar="X",
    )
    mask_prompt: bool = flag(
        False,
        "instruction tuning: train on conversations, one per row, with the loss masked to the answers",
        default_text="for conversations, if the model has a chat template and no --order is given",
    )
    list_datasets: bool = flag(False, "list the data sets below data/ and stop")


class TokenSource:
    """Token files, or text that was encoded into them."""

    def __init__(self, dataset, tokenizer, config, family, from_text, turns=0):
        self.name, self.tokenizer, self.turns = dataset.name, tokenizer, turns
        usual = "lanes" if family.state else "random" if from_text else "shuffled"
        self._dataset, self._order, self._from_text = dataset, config.order or usual, from_text
        self.lanes = self._order == "lanes"  # whether each batch continues the last one
        self._config = config
        held_out = from_text or dataset.val
        cut = 1 - config.held_out
        self._parts = ((0, 1), (0, 1)) if held_out or not config.held_out else ((0, cut), (cut, 1))
        self._val = dataset.val or (None if from_text or not config.held_out else dataset.train)

    @property
    def resolved(self):
        """The flags that name this source, whatever is found below data/ another time."""
        return {} if self._from_text else {"data": self._dataset.train, "val_data": self._dataset.val or ""}

    @property
    def summary(self):
        tokenizer = f", {self.tokenizer.vocab_size} tokens" if self.tokenizer else ""
        val = self._val if self._parts[1] == (0, 1) else f"the last {self._config.held_out:.0%} of it"
        return f"{self.name}, train {self._dataset.train}, val {val or 'none'}; {self._order} order{tokenizer}"

    def fit(self, B, T):
        """(B, T), smaller where a text is shorter than one window."""
        if not self._from_text:
            return B, T
        count = _smallest(self._dataset.train, self._parts[0])
        if count < 2:
            raise DataError(f"{self.name} has {count} tokens to train on, expected at least 2; give more text")
        short = min(T, count - 1)
        if short < T:
            if self._order == "random":  # else there would be one place to begin at
                short = max(1, count // 2)
            warn(f"{self.name} has {count} tokens to train on: a window has {short} tokens instead of {T}")
        if self._order in ("shuffled", "sequential") and B * short >= count:
            warn(f"{self.name} has {count} tokens to train on: a batch has {(count - 1) // short} windows instead of {B}")
            B = (count - 1) // short
        return B, short

    def loaders(self, B, T, vocab_size, seed, validate, world):
        """(the training loader, the validation loader or None). Lanes are a rank's own, other batches those of all ranks."""
        options = dict(vocab_size=vocab_size, part=self._parts[0])
        if self._order == "random":
            loader = RandomWindows(self._dataset.train, B, T, seed=seed, **options)
        elif self.lanes:
            chunks = -(-self._config.context_length // T) or self._config.max_chunks_per_epoch
            loader = Lanes(self._dataset.train, B, T, chunks, world.rank, world.size, seed=seed, **options)
        elif self._order == "documents":
            if not self.tokenizer or self.tokenizer.opens is None:
                raise UsageError(
                    "--order documents needs a tokenizer with an end-of-text token; choose another --tokenizer or --order"
                )
            loader = DocumentWindows(self._dataset.train, B, T, self.tokenizer.opens, seed=seed, **options)
        else:
            loader = DataLoader(self._dataset.train, B, T, shuffle=self._order == "shuffled", **options)
        return self._named(loader), self._named(self._val_loader(B, T, vocab_size, seed, world)) if validate else None

    def _named(self, loader):
        """With the name of a text, whose token files are only a cache."""
        if loader and self._from_text:
            loader.source = self.name
        return loader

    def _val_loader(self, B, T, vocab_size, seed, world):
        count = _smallest(self._val, self._parts[1]) if self._val else 0
        if count < 2:
            warn(f"{self.name} has no text for validation: there will be none")
            return None
        T = min(T, count - 1)
        most, options = (count - 1) // T, dict(vocab_size=vocab_size, part=self._parts[1])
        if not self.lanes:
            return DataLoader(self._val, min(B, most), T, **options)
        lanes = min(B * world.size, most)  # of all ranks together, or where there is not enough text of rank 0
        shared = (B, world.rank, world.size) if lanes == B * world.size else (lanes, 0, 1)
        B, rank, size = shared
        return Lanes(self._val, B, T, (count - 1) // (lanes * T), rank, size, seed=seed, **options)


class ItemSource:
    """Conversations or other short texts, one per row; without validation data, the last ones are the validation split."""

    def __init__(self, name, items, val_items, tokenizer, held_out, answers_only):
        self.name, self.tokenizer, self.turns = name, tokenizer, max((item.turns for item in items), default=0)
        self._what = "conversations" if self.turns or answers_only else "items"
        self._counted = "answers" if answers_only else "all tokens"
        if not val_items:
            held_out = int(len(items) * held_out)
            items, val_items = items[: len(items) - held_out], items[len(items) - held_out :]
        self._items, self._val_items = items, val_items
        self.resolved, self.lanes = {}, False

    @property
    def summary(self):
        return (
            f"{self.name}, {len(self._items)} {self._what} to train on, {len(self._val_items)} for validation; loss on "
            f"{self._counted}, {self.tokenizer.vocab_size} tokens"
        )

    def fit(self, B, T):
        """(B, T), shorter where no item is so long; shorter items are padded."""
        longest = max((len(item.ids) for item in (*self._items, *self._val_items)), default=0)
        return B, max(1, min(T, longest - 1))

    def loaders(self, B, T, vocab_size, seed, validate, world):
        """(the training loader, the validation loader or None)"""
        loader = ItemLoader(self._items, B, T, seed=seed, shuffle=True)
        if loader.cut:
            say(
                f"{loader.cut} of {len(self._items)} {self._what} are longer than {T} tokens and cut there; "
                f"{loader.dropped} of them have nothing left that counts and are not used"
            )
        if validate and not usable(self._val_items, T):
            warn(f"{self.name} has too few {self._what} for validation: there will be none")
            validate = False
        val_loader = ItemLoader(self._val_items, B, T) if validate else None
        for one in filter(None, (loader, val_loader)):
            one.source = self.name
        return loader, val_loader


def choose_source(config, reading, folder, model, family):
    """The source that the flags name, else the first data set below `folder` whose tokenizer fits the model."""
    if not 0 <= config.held_out < 1:
        raise UsageError(f"--held-out is {config.held_out}, expected at least 0 and less than 1")
    reading.split_on = reading.split_on.replace("\\n", "\n")
    if not (config.data or config.training_text) and os.path.isfile(family.data):
        config.data = family.data
    name = inline_file(config.training_text) if config.training_text and not config.data else config.data
    if name.startswith(TASK):
        return _task_source(config, reading, model)
    items = config.mask_prompt or config.order == "items"
    if items or name and _is_text(name, folder):
        files = text_files(name) if name else []
        if not files:
            raise UsageError("--mask-prompt and --order items need --data with a file of items")
        return _text_source(config, reading, files, os.path.basename(config.data) or "inline text", model, family)
    dataset = _token_dataset(config, folder, model)
    tokenizer = model.tokenizer if model else None
    if tokenizer is None and dataset.tokenizer:
        tokenizer = Tokenizer.load(dataset.tokenizer)
    if dataset.val and _is_text(dataset.val, folder):
        if tokenizer is None:
            raise UsageError("--val-data with text needs the tokenizer of the training data; name it with --tokenizer")
        dataset = dataset._replace(val=text_dataset(text_files(dataset.val), tokenizer, reading, 0).train)
    return TokenSource(dataset, tokenizer, config, family, from_text=False)


def _task_source(config, reading, model):
    """Prompts of a task with their answers, one pair per row, each with a line end."""
    pairs = task_pairs(config.data.removeprefix(TASK))
    tokenizer = model.tokenizer if model else None
    if tokenizer is None:
        text = inline_file("".join(f"{prompt}{answer}\n" for prompt, answer in pairs))
        spec = config.tokenizer or ("bpe" if config.use_bpe else "char")
        tokenizer = tokenizer_for(spec, [text], reading, **_options(config, spec))
    items = []
    for prompt, answer in pairs:
        ids = tokenizer.encode_array(prompt), tokenizer.encode_array(answer + "\n")
        items.append(Item(np.concatenate(ids), np.repeat([False, True], [len(part) for part in ids])))
    return ItemSource(config.data, items, [], tokenizer, config.held_out, answers_only=True)


def _is_text(name, folder):
    """Whether --data names text rather than tokens or a data set."""
    if os.path.isfile(name):
        return not is_token_file(name)
    if set("*?[") & set(name):
        return not is_token_file(expand(name)[0])
    return os.path.isdir(name) and all(dataset.name != name for dataset in find_datasets(folder))


def _text_source(config, reading, files, name, model, family):
    val_files = text_files(config.val_data) if config.val_data else []
    tokenizer = model.tokenizer if model else None
    spec = tokenizer or config.tokenizer or ("bpe" if config.use_bpe else default_tokenizer(family))
    options = _options(config, spec, family)
    by_template = not config.order and has_own_template(tokenizer) and are_conversations(files, reading)
    answers_only = config.mask_prompt or by_template
    if answers_only or config.order == "items":
        total_bytes([*files, *val_files], reading)
        tokenizer = tokenizer or tokenizer_for(spec, [*files, *val_files], reading, **options)
        items, val_items = (read_items(paths, reading, tokenizer, answers_only) for paths in (files, val_files))
        return ItemSource(name, items, val_items, tokenizer, config.held_out, answers_only)
    if val_files and not tokenizer:  # one vocabulary for both
        spec = tokenizer_for(spec, [*files, *val_files], reading, **options)
    dataset = text_dataset(files, spec, reading, 0 if val_files else config.held_out, **options)
    tokenizer = tokenizer or Tokenizer.load(dataset.tokenizer)
    if val_files:
        dataset = dataset._replace(val=text_dataset(val_files, tokenizer, reading, 0).train)
    return TokenSource(dataset._replace(name=name), tokenizer, config, family, from_text=True, turns=turns_in(files, reading))


def _options(config, spec, family=None):
    """How a tokenizer of this kind is made from a text."""
    options = {
        "bpe": {"vocab_size": config.bpe_vocab_size, "min_frequency": config.bpe_min_frequency},
        "char": {"specials": family.specials if family else ()},
    }
    return options.get(spec, {}) if isinstance(spec, str) else {}


def _token_dataset(config, folder, model) -> Dataset:
    if config.data and not (os.path.isfile(config.data) or set("*?[") & set(config.data)):
        dataset = choose_dataset(find_datasets(folder), config.data)
    elif config.data:
        dataset = dataset_of(config.data)
    else:
        found = find_datasets(folder)
        fitting = [
            d for d in found if not model or not d.tokenizer or Tokenizer.load(d.tokenizer).vocab_size == model.config.vocab_size
        ]
        if not fitting:
            raise DataError(
                f"no data set below {folder} fits the model's vocabulary of {model.config.vocab_size}; "
                "run downloaddataset.sh, or name the data with --data"
                if model and found
                else f"there is no *_train.bin below {folder}; run downloaddataset.sh, or name text or token files with --data"
            )
        if len(found) > 1:
            say(list_datasets(found))
        dataset = fitting[0]
    return dataset._replace(val=config.val_data or dataset.val, tokenizer=config.tokenizer or dataset.tokenizer)


def _smallest(files, part):
    """The tokens that the shard with the fewest serves."""
    counts = [len(map_shard(path).tokens) for path in expand(files)]
    return min(int(part[1] * count) - int(part[0] * count) for count in counts)


def warn(text):
    say(f"warning: {text}", "stderr")
