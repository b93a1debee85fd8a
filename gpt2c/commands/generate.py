"""Generate text from a model: python -m gpt2c generate CKPT [flags], or gpt2c generate.

Streams the prompt with its continuation to standard output, and nothing else.
"""

import sys
from dataclasses import dataclass

from gpt2c import settings
from gpt2c.commands.command_line import CommandLine, merge
from gpt2c.data import VocabularySource
from gpt2c.errors import UsageError
from gpt2c.generation.decoder import CHUNK
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.models.files import load
from gpt2c.support.fields import Layer, flag, require_at_least
from gpt2c.support.streams import bare
from gpt2c.tokenizers.finding import tokenizer_of_model


@dataclass
class GenerateConfig:
    checkpoint: str = flag(
        "", "model to use: a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT"
    )
    prompt: str = flag("", "prompt: the text to continue", default_text="nothing: the end-of-text token")
    max_new_tokens: int = flag(256, "maximum number of tokens to generate", "-n", "--length", "--gen-length")
    ignore_eot: bool = flag(False, "do not stop at an end-of-text token")
    tokenizer: str = flag(
        "",
        "tokenizer file, for checkpoints without a tokenizer",
        "--vocab",
        "--bpe-load-path",
        metavar="PATH",
        default_text="gpt2_tokenizer.bin here or in data/",
    )
    chunk_size: int = flag(CHUNK, "prefill: tokens of the prompt per forward pass")
    threads: int = flag(0, "CPU threads to use", default_text="one per core")
    device: str = flag("", "", hidden=True, deprecated={"--device-id": "gpt2c runs on the CPU; it changes nothing"})

    def __post_init__(self):
        require_at_least(self, max_new_tokens=0, chunk_size=1)


def main(argv):
    line, about = CommandLine(argv), __doc__.partition("\n\n")[2]

    def merged(*layers):
        classes = [GenerateConfig, Sampling, VocabularySource]
        return merge(line, classes, "gpt2c generate", about, ["checkpoint"], layers).instances

    config, how, _ = merged()
    if not config.checkpoint:
        raise UsageError("name a checkpoint: gpt2c generate CKPT [flags]")
    model = load(config.checkpoint)
    if usual := model.definition.generation:
        config, how, _ = merged(Layer(f"the family {model.family}", dict(usual)))
    if isinstance(how.seed, str):
        print(f"warning: --seed {how.seed!r} is taken as the prompt; use --prompt for that", file=sys.stderr)
        config.prompt, how.seed = config.prompt or how.seed, Sampling.seed
    if config.threads:
        settings.set_num_threads(config.threads)
    tokenizer = tokenizer_of_model(model, config.tokenizer)
    prompt, ends = tokenizer.prompt(config.prompt), () if config.ignore_eot else tokenizer.ends
    output = sys.stdout if sys.stdout.isatty() else bare(sys.stdout)
    before = config.prompt  # not written yet: what cannot be generated from is an error alone
    for text in pieces(model, tokenizer, prompt, config.max_new_tokens, how, stop_tokens=ends, chunk=config.chunk_size):
        print(before + text, end="", file=output, flush=True)
        before = ""
    print(before, file=output)
