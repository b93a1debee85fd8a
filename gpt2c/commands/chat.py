"""Chat with a model: python -m gpt2c chat CKPT [flags], or gpt2c chat.

A model with a chat template answers, with as many earlier turns as fit in its context; any other one continues each line.
`exit` or the end of the input ends the program; Ctrl-C stops an answer, and at an empty prompt the program. A pipe gets the
answers alone, one per line.
"""

import sys
from dataclasses import dataclass

from gpt2c import settings
from gpt2c.commands.command_line import CommandLine, merge
from gpt2c.errors import InputError, UsageError
from gpt2c.generation.conversation import LONGEST, Conversation
from gpt2c.generation.sampling import Sampling, layers
from gpt2c.generation.slots import CacheConfig
from gpt2c.models.files import load
from gpt2c.models.frozen import weights_flag
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.streams import bare
from gpt2c.tokenizers.finding import tokenizer_of_model

MAX_INPUT_LENGTH = 10_000  # characters of a line
PROMPT, ANSWER = "Enter prompt: ", "Model output: "


@dataclass
class ChatConfig:
    checkpoint: str = flag(
        "", "model to use: a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT"
    )
    max_new_tokens: int = flag(256, "maximum length of an answer, in tokens", "-n", "--length", "--gen-length")
    turns: int = flag(
        0,
        "turns of the conversation that the model sees, the last question included",
        default_text="as many as the conversations had that it learned from, or as fit in its context",
    )
    system: str = flag("", "system prompt: what the model is told before the conversation", "--system-prompt", metavar="TEXT")
    tokenizer: str = flag(
        "",
        "tokenizer file, for checkpoints without a tokenizer",
        "--vocab",
        "--bpe-load-path",
        metavar="PATH",
        default_text="gpt2_tokenizer.bin here or in data/",
    )
    context: int = flag(
        0,
        "context: the longest conversation, in tokens, that the model sees",
        metavar="N",
        default_text=f"as long as the model takes, at most {LONGEST}",
    )
    weights: str = weights_flag()
    threads: int = flag(0, "CPU threads to use", default_text="one per core")

    def __post_init__(self):
        require_at_least(self, max_new_tokens=1, turns=0, context=0)


def main(argv):
    line, about = CommandLine(argv), __doc__.partition("\n\n")[2]

    def merged(*before):
        return merge(line, [ChatConfig, Sampling, CacheConfig], "gpt2c chat", about, ["checkpoint"], before).instances

    config, *_ = merged()
    if not config.checkpoint:
        raise UsageError("name a checkpoint: gpt2c chat CKPT [flags]")
    if config.threads:
        settings.set_num_threads(config.threads)
    model = load(config.checkpoint, config.weights)
    tokenizer = tokenizer_of_model(model, config.tokenizer)
    config, how, cache = merged(*layers(model, "chat" if tokenizer.chat_template else ""))
    if config.system and not tokenizer.chat_template:
        raise UsageError(f"{config.checkpoint} has no chat template, so that a system prompt has no place; leave --system out")
    about = config.max_new_tokens, config.turns, config.system, config.context, cache.kv
    return chat(Conversation(model, tokenizer, how, *about))


def chat(conversation):
    """Questions from standard input, answers to standard output, until there are no more. The exit code."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    aside = sys.stdout if terminal else sys.stderr
    sys.stdin.reconfigure(errors="replace")
    if terminal:
        try:
            import readline  # noqa: F401 - input() then has a line to edit and a history
        except ImportError:
            pass
    model = conversation.model
    print(
        f"{model.family}, {model.num_parameters:,} parameters{', ' + model.description if model.description else ''}; "
        + ("it answers" if conversation.answers else "it was not trained on conversations and continues what you write")
        + "; exit ends",
        file=aside,
        flush=True,
    )
    while (text := read_question(terminal, aside)) is not None:
        if text:
            reply(conversation, text, terminal)
    return 0


def read_question(terminal, aside):
    """The next line, "" where there is nothing to answer, None at the end."""
    try:
        if terminal:
            line = input(PROMPT)
        else:
            print(PROMPT, end="", file=aside, flush=True)
            line = read_line(sys.stdin)
    except EOFError:
        print(file=aside)
        return None
    except KeyboardInterrupt:
        print(file=aside)
        return "" if typed() else None
    text = line.strip()
    if len(text) > MAX_INPUT_LENGTH:
        print(f"warning: the line has more than {MAX_INPUT_LENGTH:,} characters and is cut there", file=sys.stderr)
        text = text[:MAX_INPUT_LENGTH]
    return None if text == "exit" else text


def typed():
    """What stands on the line that is being edited."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def read_line(file):
    """A line, of which no more is kept than is looked at; EOFError at the end."""
    line = file.readline(MAX_INPUT_LENGTH + 2)
    if not line:
        raise EOFError
    rest = line
    while not rest.endswith("\n") and (rest := file.readline(1 << 16)):
        pass
    return line


def reply(conversation, text, terminal):
    """The answer, as it comes; Ctrl-C ends it."""
    answer = conversation.answer(text)
    begun = False
    try:
        for piece in answer:
            if terminal and not begun:
                print(ANSWER, end="")
            begun = True
            if terminal:
                print(piece, end="", flush=True)
            else:
                print(piece.replace("\r", " ").replace("\n", " "), end="", file=bare(sys.stdout), flush=True)
    except KeyboardInterrupt:
        answer.close()
    except InputError as error:
        print(f"this prompt cannot be used: {error}", file=sys.stderr)
    print(flush=True)
