"""Convert a model to another format: python -m gpt2c convert FROM TO, or gpt2c convert.

FROM is a checkpoint, an llm.c model, a GGUF file, a folder of Hugging Face, a checkpoint of randyGPT or a model in JSON, told
apart by content. The name of TO says what is written: .json is JSON, .gguf is GGUF, .bin of a gpt2 model is llm.c's format, a
name that ends in / or a folder is a folder of Hugging Face, anything else is a checkpoint. Weights and tokenizer are converted,
optimizer and run state are not. One tensor at a time is in memory.
"""

import dataclasses
import os
from dataclasses import dataclass

from gpt2c import formats
from gpt2c.commands.command_line import parse
from gpt2c.data.reading import Reading, decoded_blocks
from gpt2c.errors import UsageError
from gpt2c.formats import blocks
from gpt2c.formats.randygpt import characters
from gpt2c.models.files import read
from gpt2c.support.fields import flag
from gpt2c.support.streams import say
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.tokenizers.vocabularies import over_characters


@dataclass
class ConvertConfig:
    source: str = flag("", "file or folder to convert", metavar="FROM")
    target: str = flag("", "file or folder to write", metavar="TO")
    version: int = flag(3, "version of llm.c's format: 3 is float32, 5 is bf16", choices=(3, 5))
    dtype: str = flag(
        "",
        "storage type of the matrices in GGUF and in folders: 32 or 16 bits, or (GGUF) quantised to about 8, 5 or 4",
        choices=("", *blocks.WRITTEN),
        default_text="as they are",
    )
    overwrite: bool = flag(False, "replace a folder that is not empty")
    tokenizer: str = flag("", "tokenizer file to embed in the model", metavar="PATH", default_text="the model's own")
    training_text: str = flag(
        "",
        "text that the model was trained on, for randyGPT's checkpoints, which do not hold their characters",
        "--text",
        metavar="PATH",
    )
    description: str = flag("", "description of the model", default_text="the model's own")


def main(argv):
    (config,), _ = parse(argv, [ConvertConfig], "gpt2c convert", __doc__.partition("\n\n")[2], ["source", "target"])
    if not config.source or not config.target:
        raise UsageError("name two files or folders: gpt2c convert FROM TO [flags]")
    content = read(config.source)
    if os.path.exists(config.target) and os.path.samefile(config.source, config.target):
        raise UsageError(f"{config.target} is the file to convert: choose another name")
    weights = content.alone()
    tokenizer = chosen_tokenizer(config, content.config.vocab_size) or weights.tokenizer
    said = weights.said | ({"description": config.description} if config.description else {})
    weights = dataclasses.replace(weights, tokenizer=tokenizer, said=said)
    notes = formats.write(config.target, weights, config.version, config.dtype, config.overwrite)
    count = sum(tensor.size for tensor in weights.tensors.values())
    say("\n".join([f"{config.target}: {weights.family}, {count:,} parameters", *notes]))


def chosen_tokenizer(config, vocab_size):
    """The Tokenizer that the model is given instead of its own; None if it keeps that."""
    tokenizer = None
    if config.training_text:
        if (form := formats.format_of(config.source)) is not formats.RANDYGPT:
            raise UsageError(f"--training-text is for randyGPT's checkpoints, and {config.source} is {form.name}: leave it out")
        text = "".join(text for text, _ in decoded_blocks(config.training_text, Reading()))
        known = characters(text)
        if len(known) != vocab_size:
            raise UsageError(
                f"{config.training_text} gives {len(known)} characters, the model has {vocab_size}: it "
                "is not the text that the model was trained on"
            )
        tokenizer = Tokenizer.from_json(over_characters(known).to_str())
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
        if tokenizer.vocab_size != vocab_size:
            raise UsageError(f"{config.tokenizer} has {tokenizer.vocab_size} tokens, the model {vocab_size}")
    return tokenizer
