"""Chat through a real terminal, through pipes and with interrupts; training in phases; the files they learn from."""

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
import tomllib
from pathlib import Path

import pytest

import gpt2c
from gpt2c.commands.chat import MAX_INPUT_LENGTH
from gpt2c.commands.train import in_phases, main
from gpt2c.data import ItemLoader, Reading, read_items
from gpt2c.data.conversations import conversation, prompts_and_answers
from gpt2c.generation import conversation as talking
from gpt2c.generation.conversation import Conversation
from gpt2c.generation.sampling import Sampling
from gpt2c.runs.phases import SHIPPED, read_questions
from gpt2c.tokenizers.tokenizer import Tokenizer

DATA = Path(gpt2c.__file__).parents[1] / "data"
ITEMS = [
    {"prompt": "What is snow?", "completion": "Snow is ice, of course."},
    {"prompt": "Who are you?", "completion": "I am a tiny model."},
    {
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": "Hi, hi!"},
        ]
    },
    {"prompt": "Again.", "completion": "What again?"},
]
FACTS = ["Snow is ice.", "The sun is a star.", "Ice is cold."]


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


def command(*words):
    return [sys.executable, "-m", "gpt2c", *map(str, words)]


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
    assert piped("missing.safetensors", b"").returncode == 4
    assert piped(checkpoint, b"", "--turns", "-1").returncode == 2
    assert piped(checkpoint, b"", "--seed", "x").returncode == 2


def ids_asked(conversation_, monkeypatch):
    asked = []

    def record(model, tokenizer, prompt, most, *_):
        asked.append((prompt, most))
        return iter([" Hi!"])

    monkeypatch.setattr(talking, "pieces", record)
    return asked


def test_what_was_said_is_kept_within_the_context(checkpoint, monkeypatch):
    m = gpt2c.load(checkpoint)
    talk = Conversation(m, m.tokenizer, Sampling(), max_new_tokens=10, turns=9)
    asked = ids_asked(talk, monkeypatch)
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
    asked = ids_asked(talk, monkeypatch)
    list(talk.answer("Hello."))
    list(talk.answer("Again."))
    texts = [text for text, _ in conversation(ITEMS[2], "")]
    learned = [id for text in texts[:3] for id in m.tokenizer.encode(text)] + [m.tokenizer.eot]
    learned += [id for text in texts[3:5] for id in m.tokenizer.encode(text)]
    assert asked[1][0] == learned


# ---- phases

TINY = [
    "--channels",
    16,
    "--hidden",
    16,
    "--num-heads",
    2,
    "--pretrain-epochs",
    3,
    "--instruct-epochs",
    4,
    "--log-every",
    1,
    "--batch-size",
    4,
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)), encoding="utf-8")
    return tmp_path


def train(folder, *words, code=0, **how):
    done = subprocess.run(command("train", *words), cwd=folder, capture_output=True, text=True, timeout=60, **how)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def phases(folder, out, *words, **how):
    return train(folder, "--pretrain", "facts.json", "--instruct", "items.jsonl", *TINY, "-o", out, *words, **how)


def test_phases_end_to_end(folder):
    done = phases(
        folder, "run", "--test-questions", "items.jsonl", "--interactive", "--description", "by phases", input="Who are you?\n"
    )
    assert "phase 1 of 2: pretrain" in done.stdout and "phase 2 of 2: instruct" in done.stdout
    assert re.search(r"instruction questions: \d of 4 answered word for word", done.stdout)
    assert "paraphrased questions: " in done.stdout and "Enter prompt: " in done.stderr
    last = gpt2c.load(folder / "run/instruct/ckpt_00000004.safetensors")
    first = gpt2c.load(folder / "run/pretrain/ckpt_00000003.safetensors")
    assert (last.family, last.turns, last.description) == ("trm", 2, "by phases") and first.turns == 0
    tokenizer = Tokenizer.load(folder / "run/tokenizer.json")
    assert {last.tokenizer.to_json(), first.tokenizer.to_json()} == {tokenizer.to_json()}
    assert {b"sun", b"course"} <= set(tokenizer.tokens)  # of both files


# Trains, and interrupts itself in the Nth update.
INTERRUPTED = """
import os, signal, sys
import gpt2c.models.model, gpt2c.__main__
honest, updates, last = gpt2c.models.model.Model.loss_and_grad, 0, int(sys.argv.pop(1))
def loss_and_grad(*args, **how):
    global updates
    updates += 1
    if updates == last:
        os.kill(os.getpid(), signal.SIGINT)
    return honest(*args, **how)
gpt2c.models.model.Model.loss_and_grad = loss_and_grad
gpt2c.__main__.main("train")
"""


def test_phases_interrupted_one_after_the_other_end_with_the_same_bits(folder):
    words = ["--pretrain", "../facts.json", "--instruct", "../items.jsonl", *TINY, "-o", "run"]
    for name in ("straight", "parts"):
        (folder / name).mkdir()
    train(folder / "straight", *words)

    def interrupted(update, *more):
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *map(str, [update, *words, *more])],
            cwd=folder / "parts",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 130 and "stopped: SIGINT" in done.stdout, done.stdout + done.stderr
        return done.stdout

    assert "phase 2" not in interrupted(2)
    said = interrupted(3, "--resume")  # the last update of the first phase, and two of the second
    assert "resumed from run/pretrain/ckpt_00000002" in said and "phase 2 of 2" in said
    said = train(folder / "parts", *words[:-4], "-o", "run", "--resume").stdout  # in batches as they were
    assert "nothing to train" in said and "resumed from run/instruct/ckpt_00000002" in said and "changed since" not in said
    for last in ("pretrain/ckpt_00000003.safetensors", "instruct/ckpt_00000004.safetensors"):
        one, other = ((folder / name / "run" / last).read_bytes() for name in ("straight", "parts"))
        assert one == other, last


def test_prompts_may_be_masked_and_families_chosen(folder):
    assert "loss on all tokens" in phases(folder, "dry", "--mask-prompt", "--dry-run").stdout
    shape = ["--model", "chargpt", "--num-layers", 1, "--channels", 16, "--num-heads", 2]
    done = train(
        folder,
        "--pretrain",
        "facts.json",
        "--instruct",
        "items.jsonl",
        "-o",
        "m",
        "--mask-prompt",
        *shape,
        "--pretrain-epochs",
        3,
        "--instruct-epochs",
        4,
        "--batch-size",
        4,
    )
    assert "loss on all tokens" in done.stdout and "loss on answers" in done.stdout
    assert gpt2c.load(folder / "m/instruct/ckpt_00000004.safetensors").family == "chargpt"


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--model trm", True),
        ("--interactive", True),
        ("--model hybrid --interactive", True),
        ("--model gpt2", False),
        ("", False),
        ("--model trm --data x.txt", False),
        ("--interactive -e d12", False),
        ("--model mingru --pretrain a --instruct b", True),
    ],
)
def test_what_asks_for_phases(words, expected):
    assert in_phases(words.split()) == expected


@pytest.mark.parametrize("family", gpt2c.models.family.FAMILIES)
def test_every_family_has_phases(family, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    width = {"mingru": "--dim", "hybrid": "--hidden"}.get(family, "--channels")
    assert (
        main(
            [
                "--model",
                family,
                "--pretrain",
                "facts.json",
                "--instruct",
                "items.jsonl",
                "-o",
                "run",
                width,
                "16",
                "--pretrain-epochs",
                "1",
                "--instruct-epochs",
                "1",
                "--test-questions",
                "items.jsonl",
            ]
        )
        == 0
    )
    assert "instruction questions: " in capsys.readouterr().out and checkpoint_of(folder / "run/instruct").family == family


def test_phases_of_csv_files(folder):
    """Without a header, as the small language models of others have them; what their numbers say is watched."""
    (folder / "facts.csv").write_text("".join(f'"{fact} </s>"\n' for fact in FACTS), encoding="utf-8")
    (folder / "items.csv").write_text('"User: Is ice cold, or hot? Assistant: Cold, of course. </s>"\n', encoding="utf-8")
    done = train(folder, "--pretrain", "facts.csv", "--instruct", "items.csv", "--no-csv-header", *TINY, "-o", "run")
    assert "of 1 answered word for word" in done.stdout
    first, last = (checkpoint_of(folder / "run" / phase) for phase in ("pretrain", "instruct"))
    words = "Snow is ice . The sun a star Ice cold User : Is , or hot ? Assistant Cold of course".split()
    assert {token.decode() for token in first.tokenizer.tokens} == {"<unk>", "</s>", *words} and last.turns == 1
    flags = tomllib.loads((folder / "run/instruct/config.toml").read_text(encoding="utf-8"))
    assert flags["max_grad_value"] == 1000 and flags["max_loss"] == 1e6 and flags["max_file_size"] == 0.1
    assert flags["learning_rate"] == 1e-4 and flags["epochs"] == 4 and flags["optimizer"] == "adam"
    assert flags["tensor_rates"] == "alpha=1e-4, beta=1e-4" and flags["tensor_bounds"] == "alpha=0.01:0.5, beta=0.01:0.5"


def checkpoint_of(run):
    return gpt2c.load(max(run.glob("ckpt_*")))


def test_phases_that_cannot_be(folder):
    assert "go together" in train(folder, "--pretrain", "facts.json", code=2).stderr
    assert (
        "use --out-dir"
        in train(folder, "--pretrain", "facts.json", "--instruct", "items.jsonl", "--save-path", "x", code=2).stderr
    )
    assert train(folder, "--pretrain", "missing.json", "--instruct", "items.jsonl", code=4).stderr.count("\n") == 1
    with open(folder / "large.json", "wb") as file:
        file.truncate(101_000_000)
    assert "more than the 0.1 GB allowed" in train(folder, "--pretrain", "facts.json", "--instruct", "large.json", code=4).stderr
    assert "has no questions" in train(folder, "--pretrain", "facts.json", "--instruct", "facts.json", *TINY, code=4).stderr


# ---- what ships


def test_the_files_that_ship():
    facts, dialogue, asked = (json.loads((DATA / name).read_text(encoding="utf-8")) for name in SHIPPED)
    assert len(facts) >= 300 and len(set(map(str.lower, facts))) == len(facts)
    assert all(re.fullmatch(r"[A-Z][\w ,'-]+\.", fact) for fact in facts)
    questions = [item["prompt"] for item in dialogue]
    assert len(questions) >= 150 and len(set(map(str.lower, questions))) == len(questions)
    assert all(item.keys() == {"prompt", "completion"} and item["completion"][-1] in ".!?" for item in [*dialogue, *asked])
    answers = {item["completion"] for item in dialogue}
    assert not {item["prompt"] for item in asked} & set(questions) and all(item["completion"] in answers for item in asked)
    assert len(read_questions(str(DATA / SHIPPED[1]), Reading())) == len(dialogue)
    tokenizer = Tokenizer.make("word", [*facts, *(text for item in dialogue for text, _ in conversation(item, ""))])
    longest = max(len(item.ids) for name in SHIPPED[:2] for item in read_items([str(DATA / name)], Reading(), tokenizer, False))
    assert longest <= 80


def test_questions_with_their_answers():
    assert prompts_and_answers(ITEMS[2], "") == [("Hello.", "Hi!"), ("Again.", "Hi, hi!")]
    assert prompts_and_answers("User: a b Assistant: c </s>", "") == [("a b", "c")]
