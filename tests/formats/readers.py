"""Every reader of a file, with the sound files of tests/corpus that it is tried on: what tests/formats/fuzz.py damages."""

import io
import json
import shutil
import struct
from contextlib import redirect_stderr
from unittest import mock

import hand_gguf
import hand_safetensors
import numpy as np
from fuzz import JSON, LINES, Form, Reader
from make_corpus import CONFIG, CORPUS, LIBRARY, TINY_RANDYGPT

from gpt2c import formats
from gpt2c.bench.tables import load_kernels
from gpt2c.commands.command_line import parse
from gpt2c.data import DataLoader
from gpt2c.data.choices import read_choices
from gpt2c.data.conversations import is_conversation, prompts_and_answers
from gpt2c.data.documents import read_pieces, text_of
from gpt2c.data.items import read_items
from gpt2c.data.layouts import hellaswag, mmlu, stories
from gpt2c.data.reading import Reading
from gpt2c.data.records import records
from gpt2c.errors import Gpt2cError, InputError
from gpt2c.formats import json as json_format
from gpt2c.formats import native, randygpt
from gpt2c.formats.llmc import load_debug_state
from gpt2c.formats.weights import loaded
from gpt2c.models.files import load, load_run
from gpt2c.models.registry import make_config
from gpt2c.runs import folder as runs
from gpt2c.runs.logs import read_metrics
from gpt2c.tokenizers import huggingface, sandbox
from gpt2c.tokenizers.lessons import lessons
from gpt2c.tokenizers.templates import _compiled
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

BYTES = Tokenizer.make("byte", specials=("</s>",))
READING = Reading(max_line=0.01)


def read_run(path):
    """A checkpoint, and a run resumed from it."""
    model, run = load_run(path)
    if run and model.config.vocab_size == 5 and model.config.max_seq_len >= 4:
        Trainer(model, DataLoader(CORPUS / "gpt2_shard.bin", B=1, T=4, shuffle=True), None, TrainConfig()).restore(run)


def read_randygpt(path):
    with mock.patch.dict(randygpt.SHAPES, {"default": TINY_RANDYGPT}):
        load(path)


def read_weights(path):
    """A file of whatever family, every tensor of it."""
    for tensor in formats.read(path).tensors.values():
        loaded(tensor)


def read_chat(path):
    """A GGUF file of a model for conversations, what its tokenizer does, and a file that is written of it and read again."""
    weights = formats.read(path)
    if weights.tokenizer:
        use_tokenizer(weights.tokenizer)
    formats.write(path.with_suffix(".again.gguf"), weights)
    formats.read(path.with_suffix(".again.gguf"))


def in_folder(family, member, index=""):
    """A reader of a folder of Hugging Face, one file of which is the damaged one; with an index its tensors have another name."""

    def read(path):
        folder = path.parent / "folder"
        folder.mkdir(exist_ok=True)
        for name in FOLDER:
            shutil.copyfile(CORPUS / f"{family}_{name}", folder / (index if name == TENSORS and index else name))
        shutil.copyfile(path, folder / member)
        try:
            load(folder)
        except Gpt2cError as error:
            assert error.exit_code == 4, error
            raise

    return read


def read_tokenizer(path):
    use_tokenizer(Tokenizer.load(path))


def use_tokenizer(made):
    """What a tokenizer does with some text, with a conversation and with all of its ids."""
    stream = made.stream()
    uses = [lambda text=text, special=s: made.encode(text, special) for text in ("", "ab é日 <unk> \n", "a" * 40) for s in (0, 1)]
    uses += [
        lambda: made.decode(range(min(made.vocab_size, 300))),
        lambda: stream.push(0),
        lambda: made.prompt("a"),
        lambda: made.chat([{"role": "user", "content": "a <|im_end|>"}]),
        lambda: Tokenizer.from_json(made.to_json()),
    ]
    repr(made)
    try_all(uses)


def try_all(uses):
    """Does all of it; each may be refused in one sentence."""
    for use in uses:
        try:
            use()
        except Gpt2cError as error:
            assert "\n" not in str(error)


def read_folder_tokenizer(path):
    """A tokenizer of a folder, whose files are one here, by name; and a conversation by its chat template."""
    try:
        files = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError("no files") from None
    if not isinstance(files, dict):
        raise InputError("no files")
    small = dict(SECONDS=1.0, CHARACTERS=1 << 14)  # for a template: less than all that one may take
    with mock.patch.multiple(sandbox, **small):
        made, _ = huggingface.read(files, 1000)
        if not made:
            return
        talk = [{"role": role, "content": "ab <s>"} for role in ("user", "assistant", "user", "assistant")]
        uses = [lambda: made.encode("ab é<|im_end|>", bos=made.adds_bos), lambda: made.chat(talk), lambda: lessons(made, talk)]
        uses += [lambda: huggingface.read(huggingface.write(made, 1000)[0], 1000), lambda: made.stream().push(made.ends[0])]
        try_all(uses if made.ends else uses[:-1])
    _compiled.cache_clear()


def read_config(path):
    parse(["--config", str(path)], [TrainConfig, Reading], "fuzz")


def read_log(path):
    """A log of a run, by itself in its folder: it is read, and what is later than step 2 is cut off."""
    run = runs.Run(path.parent)
    run.has_validation(2), run.has_sample(2)
    run.forget(2)
    if path.exists() and path.name == "metrics.jsonl":
        read_metrics(path.parent)


def read_records(path):
    for record, _, where in records(str(path), READING):
        text_of(record, where)


def read_messages(path):
    for record, _, where in records(str(path), READING):
        if is_conversation(record):
            prompts_and_answers(record, where)
    read_items([str(path)], READING, BYTES, mask_prompt=False)


def laid_out(layout, *more):
    return lambda path: list(layout([str(path)], READING, *more))


def read_tokens(path):
    DataLoader(path, B=1, T=4, vocab_size=5).next_batch()


def read_text(path):
    """Whole documents, and one that is cut in two."""
    for split_on in "\n", "":
        for _ in read_pieces([str(path)], Reading(split_on=split_on, max_line=0.01), 50):
            pass


def sealed(document):
    """A model in JSON whose digest fits: damage that was meant."""
    about = {name: value for name, value in document.items() if name not in ("params", "sha256")}
    arrays = {name: np.array(values, np.float32) for name, values in document["params"].items()}
    return json.dumps(about | {"sha256": json_format._digest(about, arrays), "params": document["params"]}).encode()


def checkpoint_apart(data):
    """[metadata, tensor table, the data in hexadecimal] of a checkpoint."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    table = json.loads(data[8:start])
    return [table.pop("__metadata__"), table, data[start:].hex()]


def checkpoint_together(parts):
    """The checkpoint of these parts, its digest made to fit."""
    metadata, table, data = parts[0] | {}, parts[1], bytes.fromhex(parts[2])
    metadata.pop("sha256", None)
    blocks = [data[slice(*entry["data_offsets"])] for entry in sorted(table.values(), key=lambda entry: entry["data_offsets"])]
    text = json.dumps({"__metadata__": metadata | {"sha256": native._digest(table, metadata, blocks)}, **table}).encode()
    text += b" " * (-len(text) % 64 + 56)
    return struct.pack("<Q", len(text)) + text + data


def silent(read):
    """The reader without what it says to a person."""

    def quietly(path):
        with redirect_stderr(io.StringIO()):
            return read(path)

    return quietly


def pairs_apart(data):
    """The metadata of a GGUF file, each [key, type, value], and the rest of it."""
    version, pairs, tensors, data = hand_gguf.apart(data)
    return [*pairs, [version, tensors, data]]


def pairs_together(parts):
    """The file of these parts. A value that is not of its type any more has one that it is of."""
    *pairs, (version, tensors, data) = parts
    return hand_gguf.together([version, [typed(*pair) for pair in pairs], tensors, data])


def typed(key, kind, value):
    try:
        hand_gguf.packed(kind, value)
        return key, kind, value
    except Exception:  # whatever a changed value does to it
        kinds = {bool: 7, float: 12, str: 8, int: 11}
        if isinstance(value, list):
            return key, 9, (kinds[type(value[0])] if value else 5, value)
        return key, kinds[type(value)], value


CHECKPOINT, MODEL = Form(checkpoint_apart, checkpoint_together), Form(json.loads, sealed)
GGUF = Form(hand_gguf.apart, hand_gguf.together)
SAFETENSORS = Form(hand_safetensors.apart, hand_safetensors.together)
FOLDER = "config.json", "generation_config.json", (TENSORS := "model.safetensors")
SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
ENCODED = 2**23  # bytes: a tokenizer of characters has a table of all that there are
READERS = {
    "checkpoint": Reader(read_run, ("run.safetensors", "weights.safetensors"), CHECKPOINT, ENCODED),
    "metadata": Reader(native.metadata, ("run.safetensors",), CHECKPOINT),
    "llmc": Reader(load, tuple(f"model_v{version}.bin" for version in (3, 1, 2, 4, 5))),
    "debug-state": Reader(lambda path: load_debug_state(path, make_config("gpt2", CONFIG)), ("debug_state.bin",)),
    "json": Reader(load, ("model.json", "model_v1.json"), MODEL, ENCODED),
    "gguf": Reader(load, ("model.gguf", "model_q.gguf"), GGUF),
    "gguf-llama": Reader(read_weights, ("llama.gguf",), GGUF),
    "gguf-chat": Reader(read_chat, ("chat.gguf",), Form(pairs_apart, pairs_together), ENCODED),
    "folder": Reader(in_folder("llama", "config.json"), ("llama_config.json",), JSON),
    "folder-gpt2": Reader(in_folder("gpt2", "config.json"), ("gpt2_config.json",), JSON),
    "folder-sampling": Reader(in_folder("llama", "generation_config.json"), ("llama_generation_config.json",), JSON),
    "folder-index": Reader(in_folder("llama", INDEX, SHARD), (f"llama_{INDEX}",), JSON),
    "safetensors": Reader(in_folder("llama", TENSORS), ("llama_model.safetensors",), SAFETENSORS),
    "safetensors-gpt2": Reader(in_folder("gpt2", TENSORS), ("gpt2_model.safetensors",), SAFETENSORS),
    "randygpt": Reader(read_randygpt, tuple(f"randygpt_{version}.bin" for version in (2, 1, 3))),
    "tokenizer": Reader(read_tokenizer, ("tokenizer.json", *(f"tokenizer_{kind}.json" for kind in LIBRARY)), JSON, ENCODED),
    "tokenizer-llmc": Reader(read_tokenizer, ("tokenizer.bin",), None, ENCODED),
    "tokenizer-others": Reader(
        read_tokenizer, ("tokenizer_rnn_rust.json", "tokenizer_randygpt.json", "vocab.txt"), JSON, ENCODED
    ),
    "tokenizer-folder": Reader(read_folder_tokenizer, ("folder_new.json", "folder_old.json"), JSON, ENCODED),
    "tokens": Reader(read_tokens, ("gpt2_shard.bin", "llama_shard.bin", "legacy_tokens.bin")),
    "choices": Reader(read_choices, ("choices.bin",)),
    "config": Reader(read_config, ("config.toml",)),
    "metrics": Reader(read_log, ("metrics.jsonl",), LINES),
    "samples": Reader(read_log, ("samples.txt",)),
    "log": Reader(read_log, ("main.log",)),
    "jsonl": Reader(read_records, ("records.jsonl",), LINES),
    "json-records": Reader(read_records, ("records.json",), JSON),
    "csv": Reader(silent(read_records), ("records.csv",)),
    "tsv": Reader(silent(read_records), ("records.tsv",)),
    "messages": Reader(read_messages, ("records.jsonl",), LINES),
    "text": Reader(read_text, ("samples.txt",)),
    "stories": Reader(laid_out(stories), ("stories.json",), JSON),
    "hellaswag": Reader(laid_out(hellaswag, BYTES), ("hellaswag.jsonl",), LINES),
    "mmlu": Reader(laid_out(mmlu, BYTES), ("mmlu.csv",)),
    "bench": Reader(load_kernels, ("bench.json",), JSON),
}
