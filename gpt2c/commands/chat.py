"""Talk to a model: python -m gpt2c chat CKPT [flags], or gpt2c chat.

A model that has learned conversations answers, knowing what was said before as far as its context has room; any other one
continues each line. `exit` or the end of the input ends the program; Ctrl-C stops an answer, and ends the program where
nothing is typed. Into a pipe go the answers alone, one to a line.
"""

import sys
from dataclasses import dataclass

from gpt2c import settings
from gpt2c.commands.command_line import parse
from gpt2c.data import tokenizer_of_model
from gpt2c.data.conversations import NAMES, question
from gpt2c.errors import InputError, UsageError
from gpt2c.formats.native import load
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.models.family import max_seq_len
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.rng import Xorshift

MAX_INPUT_LENGTH = 10_000  # characters of a line
PROMPT, ANSWER = "Enter prompt: ", "Model output: "


@dataclass
class ChatConfig:
    checkpoint: str = flag("", "a gpt2c checkpoint or an llm.c model", "--model", "--load-checkpoint", metavar="CKPT")
    max_new_tokens: int = flag(256, "tokens of an answer, at most", "-n", "--length", "--gen-length")
    turns: int = flag(
        0,
        "questions that the model knows of at a time, the last one included",
        default_text="as many as the conversations had that it learned from",
    )
    tokenizer: str = flag(
        "",
        "tokenizer file, for checkpoints that have none of their own",
        "--vocab",
        "--bpe-load-path",
        metavar="PATH",
        default_text="gpt2_tokenizer.bin here or in data/",
    )
    threads: int = flag(0, "threads to use", default_text="one per core")

    def __post_init__(self):
        require_at_least(self, max_new_tokens=1, turns=0)


def main(argv):
    (config, how), given = parse(argv, [ChatConfig, Sampling], "gpt2c chat", __doc__.partition("\n\n")[2], ["checkpoint"])
    if not config.checkpoint:
        raise UsageError("name a checkpoint: gpt2c chat CKPT [flags]")
    if config.threads:
        settings.set_num_threads(config.threads)
    model = load(config.checkpoint)
    if model.turns and "temperature" not in given:
        how.temperature = 0.0
    return chat(Conversation(model, tokenizer_of_model(model, config.tokenizer), how, config.max_new_tokens, config.turns))


class Conversation:
    """What was said, and the model that answers. `turns`: questions that it knows of at a time (0: as it has learned)."""

    def __init__(self, model, tokenizer, how: Sampling, max_new_tokens=256, turns=0):
        if isinstance(how.seed, str):
            raise UsageError(f"--seed is {how.seed!r}, expected a whole number")
        self.model, self.tokenizer, self.how, self.max_new_tokens = model, tokenizer, how, max_new_tokens
        self.turns = turns or model.turns or 1
        self._rng = Xorshift(how.seed)
        self._past: list[list[int]] = []  # the ids of each question with its answer

    def answer(self, text):
        """Yields the answer as it comes. What was said of it before the caller stops is remembered."""
        if not self.model.turns:
            yield from self._pieces(self.tokenizer.encode(text), self.max_new_tokens)
            return
        context = max_seq_len(self.model.config)
        room = min(self.max_new_tokens, context // 2)
        self._past = self._past[max(0, len(self._past) - self.turns + 1) :] if self.turns > 1 else []
        asked = self._ids(question(text, not self._past))[room - context :]
        while self._past and sum(map(len, self._past)) + len(asked) + room > context:
            self._past.pop(0)
            asked = self._ids(question(text, not self._past))[room - context :]
        prompt, said = [id for turn in self._past for id in turn] + asked, []
        try:
            for piece in self._pieces(prompt, min(self.max_new_tokens, context - len(prompt)), [f" {NAMES['user']}"]):
                said.append(piece if said else piece.lstrip())
                yield said[-1]
        finally:
            end = [] if self.tokenizer.eot is None else [self.tokenizer.eot]
            self._past.append(asked + self._ids(f" {''.join(said)}") + end)

    def _ids(self, text):
        return self.tokenizer.encode(text)

    def _pieces(self, prompt, most, stop=()):
        ends = () if self.tokenizer.eot is None else (self.tokenizer.eot,)
        if not prompt:
            raise InputError("none of this is in the model's vocabulary")
        return pieces(self.model, self.tokenizer, prompt, most, self.how, self._rng, ends, stop)


def chat(conversation):
    """Questions from standard input, answers to standard output, until there are no more. The exit code."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    aside = sys.stdout if terminal else sys.stderr
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")
    if terminal:
        try:
            import readline  # noqa: F401 - input() then has a line to edit and a history
        except ImportError:
            pass
    model = conversation.model
    print(
        f"{model.family}, {model.num_parameters:,} parameters{', ' + model.description if model.description else ''}; "
        + ("it answers" if model.turns else "it has learned no conversations and continues what you write")
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
            sys.stdout.write(piece if terminal else piece.replace("\r", " ").replace("\n", " "))
            sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()
    except InputError as error:
        print(f"this cannot be asked: {error}", file=sys.stderr)
    print(flush=True)
