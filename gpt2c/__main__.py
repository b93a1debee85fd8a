"""gpt2c VERB ..., or python -m gpt2c VERB ..."""

import importlib
import os
import sys

from gpt2c.errors import UsageError
from gpt2c.support.fields import nearest

VERBS = {
    "train": "train a model; with no arguments, a small one on the data that is at hand",
    "generate": "text from a checkpoint",
    "rlvr": "reinforcement learning (GRPO) on tasks whose answers can be checked",
    "chat": "talk to a model",
    "download": "a published model to chat with",
    "prepare": "token files from text, JSON and CSV",
    "eval": "loss, perplexity and bits per byte on a file; multiple-choice files",
    "train-tokenizer": "a vocabulary from text",
    "bench": "the speed of kernels and models, beside what this machine can do at most",
    "check-grad": "a model's gradients against differences of its loss",
    "convert": "a model in another format: Hugging Face's, GGUF, llm.c's, JSON, a checkpoint",
    "info": "this machine and build, or what a checkpoint or the folder of a run holds",
    "plot": "the loss curves of runs, or the roofline of a benchmark",
    "completion": "what bash or zsh needs to complete verbs and flags",
}
BEGIN = """gpt2c trains and runs small language models on the CPU. To begin with:

  gpt2c train                            a small GPT-2 from scratch on the stories that ship, in a minute or two
  gpt2c train --model trm --interactive  a model that learns facts and questions, then answers yours, in a few minutes
  gpt2c train --data book.txt            on a text of yours
  gpt2c download smollm2-135m-instruct   a model that answers (98 MB), with the command to chat with it

README.md in the source leads to the pages about models, data, runs and scripting in docs/.

usage: gpt2c VERB [flags]      (gpt2c help VERB, or gpt2c VERB --help, lists the flags)
"""
ALIASES = {"inference": "generate", "infer": "generate", "sample": "generate", "rl": "rlvr"}


def begin(argv):
    print(BEGIN)
    print("\n".join(f"  {verb:<16} {text}" for verb, text in VERBS.items()))


def version(argv):
    from gpt2c import __version__

    print(f"gpt2c {__version__}")


def without_verb(argv):
    from gpt2c.commands.compat import main

    return main(argv)


def of_verb(verb):
    """Its program, imported where an error of that is told as any other."""
    return lambda argv: importlib.import_module(f"gpt2c.commands.{verb.replace('-', '_')}").main(argv)


def unknown(argv):
    near = nearest(argv[0], {name: name for name in [*VERBS, *ALIASES]})
    raise UsageError(f"there is no verb {argv[0]!r}{near}; the verbs are {', '.join(VERBS)}")


def main(verb=None):
    """Runs the verb, or the one that the command line begins with."""
    from gpt2c.commands.program import run_program

    words = [*[verb] * bool(verb), *sys.argv[1:]]
    if words[:1] == ["help"] and words[1:] and not words[1].startswith("-"):  # gpt2c help train
        words = [words[1], "--help", *words[2:]]
    first = words[0] if words else "help"
    verb = ALIASES.get(first, first)
    if first in ("-h", "--help", "--help-all", "help"):
        run_program("gpt2c", begin, words)
    if first in ("-V", "--version", "version"):
        run_program("gpt2c", version, words)
    if first.startswith("-"):
        run_program("gpt2c", without_verb, words)
    if verb not in VERBS:
        run_program("gpt2c", unknown, words)
    if verb != "bench":  # which measures NumPy's products; elsewhere its threads, whose start takes time, have nothing to do
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run_program(f"gpt2c {verb}", of_verb(verb), words[1:])


if __name__ == "__main__":
    main()
