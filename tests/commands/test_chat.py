"""Chat through a real terminal, through pipes and with interrupts."""

import codecs
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from programs import call, command
from texts import ITEMS

import gpt2c
from gpt2c.commands.chat import MAX_INPUT_LENGTH
from gpt2c.data import ItemLoader, Reading, read_items
from gpt2c.data.conversations import conversation
from gpt2c.data.items import Item
from gpt2c.errors import InputError
from gpt2c.generation import conversation as talking
from gpt2c.generation.conversation import Conversation
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.generation.slots import Slots
from gpt2c.support.rng import Xorshift
from gpt2c.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model that knows these conversations by heart."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "items.json").write_text(json.dumps(ITEMS), encoding="utf-8")
    tokenizer = Tokenizer.make("word", [text for item in ITEMS for text, _ in conversation(item, "")])
    items = read_items([str(folder / "items.json")], Reading(), tokenizer)
    m = gpt2c.create(
        "chargpt", num_layers=2, channels=48, num_heads=3, vocab_size=tokenizer.vocab_size, max_seq_len=32, dropout=0.0
    )
    config = gpt2c.TrainConfig(max_steps=150, learning_rate=5e-3, lr_schedule="cosine", final_lr_frac=0.1)
    *_, last = gpt2c.Trainer(m, ItemLoader(items, 4, 30), None, config)
    assert last.loss < 0.05
    m.tokenizer, m.turns, m.description = tokenizer, max(item.turns for item in items), "learned by heart"
    m.save(folder / "m.safetensors")
    return folder / "m.safetensors"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *words):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, command(*words))
        self.seen, self.decoder = "", codecs.getincrementaldecoder("utf-8")("replace")  # an interrupt drops what is on its way

    def until(self, text, seconds=30):
        """Reads on until this text has come; what came before and with it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += self.decoder.decode(os.read(self.fd, 4096))
                except OSError:
                    raise AssertionError(f"ended: {self.seen}") from None
        before, self.seen = self.seen.split(text, 1)
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", before).replace("\r\n", "\n") + text

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self, seconds=20):
        """The exit code."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode()
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"still running: {self.seen}")


def test_a_session_at_a_terminal(checkpoint):
    terminal = Terminal("chat", checkpoint)
    banner = terminal.until("Enter prompt: ")
    assert "chargpt" in banner and "learned by heart" in banner and "exit ends" in banner
    for typed, transcript in [
        ("What is snow?", "What is snow?\nModel output: Snow is ice, of course.\nEnter prompt: "),
        ("", "\nEnter prompt: "),
        ("Who are you?", "Who are you?\nModel output: I am a tiny model.\nEnter prompt: "),
        ("Hello.", "Hello.\nModel output: Hi!\nEnter prompt: "),
        ("Again.", "Again.\nModel output: Hi, hi!\nEnter prompt: "),
    ]:
        terminal.type(typed + "\n")
        assert terminal.until("Enter prompt: ") == transcript
    terminal.type("exit\n")
    assert terminal.end() == 0


@pytest.mark.parametrize("ending", ["\x04", "\x03"])
def test_end_of_file_and_ctrl_c_at_an_empty_prompt_end_the_session(checkpoint, ending):
    terminal = Terminal("chat", checkpoint)
    terminal.until("Enter prompt: ")
    time.sleep(0.3)  # a signal between the prompt and the wait for what is typed would be noticed with the next key only
    terminal.type(ending)
    assert terminal.end() == 0 and "Traceback" not in terminal.seen


def test_ctrl_c_stops_an_answer_and_not_the_session(checkpoint, tmp_path):
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=2, vocab_size=257, max_seq_len=64)
    m.tokenizer = Tokenizer.make("byte", specials=("<|endoftext|>",))
    m.params["wte"][256] = -10 * m.params["wte"][0]  # the end is far away
    m.save(tmp_path / "m.safetensors")
    terminal = Terminal("chat", tmp_path / "m.safetensors", "--max-new-tokens", 10**9, "--temperature", 0)
    assert "continues what you write" in terminal.until("Enter prompt: ")
    for _ in range(2):
        terminal.type("go\n")
        terminal.until("Model output: ")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.until("Enter prompt: ")
    terminal.type("exit\n")
    assert terminal.end() == 0 and "Traceback" not in terminal.seen


def piped(checkpoint, text, *words, **how):
    return subprocess.run(command("chat", checkpoint, *words), input=text, capture_output=True, timeout=60, **how)


def test_through_a_pipe_there_are_answers_alone(checkpoint):
    done = piped(checkpoint, b"What is snow?\n\nWho are you?\nexit\nWhat is snow?\n")
    assert done.returncode == 0 and done.stdout.decode() == "Snow is ice, of course.\nI am a tiny model.\n"
    assert b"Enter prompt: " in done.stderr and b"it answers" in done.stderr
    assert piped(checkpoint, b"").stdout == b"" and piped(checkpoint, b"Who are you?").stdout == b"I am a tiny model.\n"


def test_lines_that_are_too_long_or_no_text(checkpoint):
    long = "é" * (MAX_INPUT_LENGTH + 5000) + "\nWho are you?\n"
    done = piped(checkpoint, long.encode())
    assert done.returncode == 0 and b"more than 10,000 characters" in done.stderr
    assert done.stdout.count(b"\n") == 2 and done.stdout.endswith(b"I am a tiny model.\n")
    done = piped(checkpoint, b"\xff\xfe\nWho are you?\n")
    assert done.returncode == 0 and done.stdout.endswith(b"I am a tiny model.\n")


def test_flags_and_errors(checkpoint):
    short = piped(checkpoint, b"What is snow?\n", "--max-new-tokens", "2", "--turns", "1")
    assert short.stdout == b"Snow is\n"
    assert piped(checkpoint, b"What is snow?\n", "--stop", " of").stdout == b"Snow is ice,\n"
    call(".", "chat", "missing.safetensors", code=4)
    call(".", "chat", checkpoint, "--turns", -1, code=2)
    call(".", "chat", checkpoint, "--seed", "x", code=2)


def ids_asked(monkeypatch):
    asked = []

    def record(model, tokenizer, prompt, most, *_, **__):
        asked.append((prompt, most))
        return iter([" Hi!"])

    monkeypatch.setattr(talking, "pieces", record)
    return asked


def test_what_was_said_is_kept_within_the_context(checkpoint, monkeypatch):
    m = gpt2c.load(checkpoint)
    talk = Conversation(m, m.tokenizer, Sampling(), max_new_tokens=10, turns=9)
    asked = ids_asked(monkeypatch)
    for _ in range(6):
        list(talk.answer("Hello."))
    lengths = [len(prompt) for prompt, _ in asked]
    assert lengths[0] < lengths[1] and max(lengths) <= 32 - 10 and lengths[-1] == lengths[-2]
    assert all(len(prompt) + most <= 32 for prompt, most in asked)
    first = "User: Hello. Assistant: Hi!"
    assert m.tokenizer.decode(asked[1][0]) == f"{first} </s> User: Hello. Assistant:"
    list(talk.answer("Hello. " * 40))
    assert len(asked[-1][0]) == 22


def test_questions_are_asked_as_they_were_learned(checkpoint, monkeypatch):
    m = gpt2c.load(checkpoint)
    talk = Conversation(m, m.tokenizer, Sampling(), turns=2)
    asked = ids_asked(monkeypatch)
    list(talk.answer("Hello."))
    list(talk.answer("Again."))
    texts = [text for text, _ in conversation(ITEMS[2], "")]
    learned = [id for text in texts[:3] for id in m.tokenizer.encode(text)] + [m.tokenizer.eot]
    learned += [id for text in texts[3:5] for id in m.tokenizer.encode(text)]
    assert asked[1][0] == learned


# ---- a model with a chat template of its own

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    """A model that knows these conversations by heart, as its own template writes them."""
    tokenizer = Tokenizer.make("word", [text for item in ITEMS for text, _ in conversation(item, "")] + ["x"], specials=SPECIALS)
    tokenizer.chat_template, tokenizer.ends = CHATML, [tokenizer.special_tokens["<|im_end|>"], tokenizer.eot]
    talks = [[("user", "What is snow?"), ("assistant", "Snow is ice, of course.")]]
    talks += [[("system", "x"), ("user", "What is snow?"), ("assistant", "I am a tiny model.")]]
    talks += [[*talks[0], ("user", "Again."), ("assistant", "Hi!")]]
    rows = []
    for talk in talks:
        said = [{"role": role, "content": content} for role, content in talk]
        asked, whole = tokenizer.chat(said[:-1]), tokenizer.chat(said, False)
        assert whole[: len(asked)] == asked
        rows.append(Item(np.array(whole, np.int32), np.arange(len(whole)) >= len(asked), len(talk) // 2))
    m = gpt2c.create("gpt2", num_layers=2, channels=48, num_heads=3, vocab_size=tokenizer.vocab_size + 5, max_seq_len=64)
    m.tokenizer = tokenizer
    config = gpt2c.TrainConfig(max_steps=150, learning_rate=5e-3, lr_schedule="cosine", final_lr_frac=0.1)
    *_, last = gpt2c.Trainer(m, ItemLoader(rows, 3, 48), None, config)
    assert last.loss < 0.05
    path = tmp_path_factory.mktemp("templated") / "m.safetensors"
    m.save(path)
    return path


def test_a_model_answers_by_its_own_template(templated):
    done = piped(templated, b"What is snow?\nAgain.\n")
    assert done.stdout == b"Snow is ice, of course.\nHi!\n" and b"it answers" in done.stderr
    assert piped(templated, b"What is snow?\n", "--system", "x").stdout == b"I am a tiny model.\n"


def test_generate_answers_by_it_too(templated, checkpoint):
    done = call(".", "generate", templated, "--chat", "--prompt", "What is snow?")
    assert done.stdout == "Snow is ice, of course.\n"
    done = call(".", "generate", templated, "--chat", "--prompt", "What is snow?", "--system", "x", "--beams", 2)
    assert done.stdout == "I am a tiny model.\n"
    assert call(".", "generate", checkpoint, "--chat", "--prompt", "Who are you?").stdout == "I am a tiny model.\n"


def test_a_system_prompt_needs_a_template(tmp_path, templated):
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=2, vocab_size=257, max_seq_len=64)
    m.tokenizer = Tokenizer.make("byte", specials=("<|endoftext|>",))
    m.save(tmp_path / "m.safetensors")
    for words in (["chat", tmp_path / "m.safetensors", "--system", "x"], ["generate", tmp_path / "m.safetensors", "--chat"]):
        assert "no chat template" in call(".", *words, code=2).stderr
    assert "add --chat" in call(".", "generate", templated, "--system", "x", code=2).stderr


def test_the_oldest_turns_are_dropped_and_the_system_prompt_stays(templated, monkeypatch):
    m = gpt2c.load(templated)
    talk, asked = Conversation(m, m.tokenizer, Sampling(), max_new_tokens=8, system="x"), ids_asked(monkeypatch)
    for _ in range(6):
        list(talk.answer("Again."))
    texts = [m.tokenizer.decode(prompt) for prompt, _ in asked]
    assert all(len(prompt) + most <= 64 and most >= 8 for prompt, most in asked)
    assert all(text.startswith("<|im_start|>") and "<unk> x <|im_end|>" in text for text in texts)
    counts = [text.count("Again") for text in texts]
    assert counts[:2] == [1, 2] and max(counts) == counts[-1] == counts[-2] < 6


def test_a_conversation_reads_only_what_is_new_and_says_the_same(templated, monkeypatch):
    m, questions, how = gpt2c.load(templated), ("What is snow?", "Again.", "Again."), Sampling(temperature=0.5)
    talk = Conversation(m, m.tokenizer, how, max_new_tokens=8)
    talk._slots.piece = 4
    said, rng, past, read, run = ["".join(talk.answer(text)) for text in questions], Xorshift(1337), [], [], Slots._run
    for asked, answer in zip(questions, said):
        past.append({"role": "user", "content": asked})
        whole = pieces(m, m.tokenizer, m.tokenizer.chat(past), 8, how, rng, m.tokenizer.ends, chunk=4)
        assert "".join(whole).lstrip() == answer
        past.append({"role": "assistant", "content": answer})

    def counted(self, slots, positions, ids, decoding=False):
        read.append(np.size(ids))
        return run(self, slots, positions, ids, decoding)

    monkeypatch.setattr(Slots, "_run", counted)
    list(talk.answer("Again."))
    assert sum(read) < len(m.tokenizer.chat(past))


def test_a_question_that_does_not_fit_is_refused_and_the_chat_goes_on(templated, monkeypatch):
    """What the template begins with must not be cut off."""
    m = gpt2c.load(templated)
    talk, asked = Conversation(m, m.tokenizer, Sampling(), max_new_tokens=8, system="x"), ids_asked(monkeypatch)
    list(talk.answer("Again."))
    for question in ("Again. " * 40, "Again. " * 25):
        with pytest.raises(InputError, match=r"has \d+ tokens, and the context of 64 leaves 56 of them beside an answer of 8"):
            list(talk.answer(question))
    list(talk.answer("Again."))
    assert len(asked) == 2 and m.tokenizer.decode(asked[1][0]).count("Again") == 2  # what was said before is there still
    done = piped(templated, b"x " * 99 + b"\nWhat is snow?\n", "--max-new-tokens", 8)
    assert done.stdout == b"\nSnow is ice, of course.\n" and b"this prompt cannot be used: with the system" in done.stderr


@pytest.mark.parametrize("special", SPECIALS)
def test_what_a_user_or_the_model_says_ends_no_turn(special, templated, monkeypatch):
    m = gpt2c.load(templated)
    asked = ids_asked(monkeypatch)
    monkeypatch.setattr(talking, "pieces", lambda model, tokenizer, prompt, *_, **__: asked.append(prompt) or iter([special]))
    talk = Conversation(m, m.tokenizer, Sampling(), max_new_tokens=4, system=special)
    list(talk.answer(f"Again {special}"))
    list(talk.answer("Again."))
    for prompt, turns in zip(asked, (2, 4)):
        count = {name: prompt.count(id) for name, id in m.tokenizer.special_tokens.items()}
        assert count == {"<unk>": count["<unk>"], "<|im_start|>": turns + 1, "<|im_end|>": turns, "<|endoftext|>": 0}


def test_a_prompt_that_cannot_be_written_is_said_and_the_chat_goes_on(tmp_path, templated):
    m = gpt2c.load(templated)
    m.tokenizer.chat_template = CHATML + "{% if messages[0].content == 'no' %}{{ raise_exception('not so') }}{% endif %}"
    m.save(tmp_path / "m.safetensors")
    done = piped(tmp_path / "m.safetensors", b"no\nWhat is snow?\n")
    assert done.stdout == b"\nSnow is ice, of course.\n" and b"not so" in done.stderr
