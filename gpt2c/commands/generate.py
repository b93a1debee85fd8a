"""Generate text from a model: python -m gpt2c generate CKPT [flags], or gpt2c generate.

Streams the prompt with its continuation to standard output, and nothing else; with --chat the model's answer to it.
"""

import sys
from dataclasses import dataclass

from gpt2c import settings
from gpt2c.commands.command_line import CommandLine, merge
from gpt2c.data import VocabularySource
from gpt2c.errors import UsageError
from gpt2c.generation.sampling import Sampling, layers, pieces
from gpt2c.generation.slots import PIECE, CacheConfig
from gpt2c.models.files import load
from gpt2c.models.frozen import weights_flag
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.streams import bare
from gpt2c.tokenizers.finding import tokenizer_of_model
from gpt2c.tokenizers.turns import stops


@dataclass
class GenerateConfig:
    checkpoint: str = flag(
        "", "model to use: a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT"
    )
    prompt: str = flag("", "prompt: the text to continue", default_text="nothing: the end-of-text token")
    chat: bool = flag(False, "chat: the prompt is a user's message in the model's chat template; prints the answer alone")
    system: str = flag("", "with --chat: the system prompt", "--system-prompt", metavar="TEXT")
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
    weights: str = weights_flag()
    chunk_size: int = flag(PIECE, "prefill: tokens of the prompt per forward pass")
    threads: int = flag(0, "CPU threads to use", default_text="one per core")
    device: str = flag("", "", hidden=True, deprecated={"--device-id": "gpt2c runs on the CPU; it changes nothing"})

    def __post_init__(self):
        require_at_least(self, max_new_tokens=0, chunk_size=1)
        if self.system and not self.chat:
            raise UsageError("system is given without chat, which it goes with; add --chat")


def main(argv):
    line, about = CommandLine(argv), __doc__.partition("\n\n")[2]

    def merged(*before):
        classes = [GenerateConfig, Sampling, CacheConfig, VocabularySource]
        return merge(line, classes, "gpt2c generate", about, ["checkpoint"], before).instances

    config, *_ = merged()
    if not config.checkpoint:
        raise UsageError("name a checkpoint: gpt2c generate CKPT [flags]")
    model = load(config.checkpoint, config.weights)
    config, how, cache, _ = merged(*layers(model, "--chat" if config.chat else ""))
    if isinstance(how.seed, str):
        print(f"warning: --seed {how.seed!r} is taken as the prompt; use --prompt for that", file=sys.stderr)
        config.prompt, how.seed = config.prompt or how.seed, Sampling.seed
    if config.threads:
        settings.set_num_threads(config.threads)
    tokenizer = tokenizer_of_model(model, config.tokenizer)
    ends, stop = () if config.ignore_eot else tokenizer.ends, stops(tokenizer) if config.chat else []
    prompt = tokenizer.chat(messages(config)) if config.chat else tokenizer.prompt(config.prompt)
    output = sys.stdout if sys.stdout.isatty() else bare(sys.stdout)
    before = "" if config.chat else config.prompt  # not written yet: what cannot be generated from is an error alone
    texts = pieces(model, tokenizer, prompt, config.max_new_tokens, how, None, ends, stop, config.chunk_size, cache.kv)
    for number, text in enumerate(texts):
        text = text.lstrip() if config.chat and not number else text
        print(before + text, end="", file=output, flush=True)
        before = ""
    print(before, file=output)


def messages(config):
    """The conversation that --chat is for."""
    system = [{"role": "system", "content": config.system}] if config.system else []
    return [*system, {"role": "user", "content": config.prompt}]
