"""Text from a checkpoint: python -m gpt2c.generate CKPT [flags], or gpt2c generate.

The text alone goes to standard output, as it comes.
"""
import sys
from dataclasses import dataclass

import gpt2c
from gpt2c import flags
from gpt2c.checkpoint import load
from gpt2c.cli import run_program
from gpt2c.data import tokenizer_of_model
from gpt2c.errors import UsageError
from gpt2c.flags import flag
from gpt2c.sampler import generate


@dataclass
class GenerateConfig:
    checkpoint: str = flag("", "a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT")
    prompt: str = flag("", "what the text begins with", default_text="nothing: the end-of-text token")
    max_new_tokens: int = flag(256, "tokens to generate", "-n", "--length", "--gen-length")
    temperature: float = flag(0.8, "0 always takes the likeliest token; higher is more varied")
    top_k: int = flag(0, "choose among the k likeliest tokens (0: all)")
    top_p: float = flag(1.0, "choose among the likeliest tokens that together have this probability")
    seed: int = flag(1337, "of the random choices: the same seed gives the same text")
    ignore_eot: bool = flag(False, "go on after an end-of-text token")
    tokenizer: str = flag("", "tokenizer file, for checkpoints that have none of their own", metavar="PATH",
                          default_text="gpt2_tokenizer.bin here or in data/")
    threads: int = flag(0, "threads to use", default_text="one per core")


def main(argv):
    (config,), _ = flags.parse(argv, [GenerateConfig], "gpt2c generate", __doc__.partition("\n\n")[2], ["checkpoint"])
    if not config.checkpoint:
        raise UsageError("name a checkpoint: gpt2c generate CKPT [flags]")
    if config.threads:
        gpt2c.set_num_threads(config.threads)
    model = load(config.checkpoint)
    tokenizer = tokenizer_of_model(model, config.tokenizer)
    prompt = tokenizer.encode(config.prompt) if config.prompt else [tokenizer.eot or 0]
    text = tokenizer.stream()
    sys.stdout.write(config.prompt)
    for token in generate(model, prompt, config.max_new_tokens, config.temperature, config.top_k, config.top_p, config.seed):
        if token == tokenizer.eot and not config.ignore_eot:
            break
        sys.stdout.write(text.push(token))
        sys.stdout.flush()
    print(text.flush())


if __name__ == "__main__":
    run_program("gpt2c generate", main)
