"""Convert a model to another format: python -m gpt2c convert FROM TO, or gpt2c convert.

FROM is a checkpoint, an llm.c model, a checkpoint of randyGPT or a model in JSON, told apart by content. The name of TO
says what is written: .json is JSON, .bin of a gpt2 model is llm.c's format, anything else is a checkpoint. Weights and
tokenizer are converted, optimizer and run state are not.
"""

import os
from dataclasses import dataclass

from gpt2c.commands.command_line import parse
from gpt2c.data.reading import Reading, decoded_blocks
from gpt2c.errors import UsageError
from gpt2c.formats import RANDYGPT, format_of
from gpt2c.formats.randygpt import characters
from gpt2c.models.files import load
from gpt2c.support.fields import flag
from gpt2c.support.streams import say
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.tokenizers.vocabularies import over_characters


@dataclass
class ConvertConfig:
    source: str = flag("", "file to convert", metavar="FROM")
    target: str = flag("", "file to write", metavar="TO")
    version: int = flag(3, "version of llm.c's format: 3 is float32, 5 is bf16", choices=(3, 5))
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
        raise UsageError("name two files: gpt2c convert FROM TO [flags]")
    model = model_in(config)
    if os.path.exists(config.target) and os.path.samefile(config.source, config.target):
        raise UsageError(f"{config.target} is the file to convert: choose another name")
    model.description = config.description or model.description
    if config.tokenizer:
        model.tokenizer = Tokenizer.load(config.tokenizer)
        if model.tokenizer.vocab_size != model.config.vocab_size:
            raise UsageError(f"{config.tokenizer} has {model.tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    model.save(config.target, config.version)
    say(f"{config.target}: {model.family}, {model.num_parameters:,} parameters")


def model_in(config):
    """The Model to convert."""
    model = load(config.source)
    if config.training_text:
        if (form := format_of(config.source)) is not RANDYGPT:
            raise UsageError(f"--training-text is for randyGPT's checkpoints, and {config.source} is {form.name}: leave it out")
        text = "".join(text for text, _ in decoded_blocks(config.training_text, Reading()))
        known = characters(text)
        if len(known) != model.config.vocab_size:
            raise UsageError(
                f"{config.training_text} gives {len(known)} characters, the model has {model.config.vocab_size}: it "
                "is not the text that the model was trained on"
            )
        model.tokenizer = Tokenizer.from_json(over_characters(known).to_str())
    return model
