"""Training in phases: facts, then questions; the files that ship; going on after an interrupt."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from programs import call, run
from texts import FACTS, ITEMS

import gpt2c
from gpt2c.commands.train import in_phases
from gpt2c.data import Reading, read_items
from gpt2c.data.conversations import conversation
from gpt2c.runs.phases import SHIPPED, read_questions
from gpt2c.tokenizers.tokenizer import Tokenizer

DATA = Path(gpt2c.__file__).parents[1] / "data"
EPOCHS = ["--pretrain-epochs", 3, "--instruct-epochs", 4]
BATCHES = ["--batch-size", 4]
TINY = ["--channels", 16, "--hidden", 16, "--num-heads", 2, *EPOCHS, "--log-every", 1]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)), encoding="utf-8")
    return tmp_path


def train(folder, *words, code=0):
    return call(folder, "train", *words, code=code)


def test_phases_end_to_end(folder):
    words = ["--test-questions", "items.jsonl", "--interactive", "--description", "by phases"]
    files = ["--pretrain", "facts.json", "--instruct", "items.jsonl", "-o", "run"]
    done = run(folder, "train", *files, *TINY, *BATCHES, *words, input="Who are you?\n")
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
    files = ["--pretrain", "../facts.json", "--instruct", "../items.jsonl", "-o", "run"]
    words = [*files, *TINY, *BATCHES]
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
    said = train(folder / "parts", *files, *TINY, "--resume").stdout  # in batches as they were
    assert "nothing to train" in said and "resumed from run/instruct/ckpt_00000002" in said and "changed since" not in said
    for last in ("pretrain/ckpt_00000003.safetensors", "instruct/ckpt_00000004.safetensors"):
        one, other = ((folder / name / "run" / last).read_bytes() for name in ("straight", "parts"))
        assert one == other, last


def test_prompts_may_be_masked_and_families_chosen(folder):
    files = ["--pretrain", "facts.json", "--instruct", "items.jsonl", "--mask-prompt"]
    assert "loss on all tokens" in train(folder, *files, *TINY, *BATCHES, "-o", "dry", "--dry-run").stdout
    shape = ["--model", "chargpt", "--num-layers", 1, "--channels", 16, "--num-heads", 2]
    done = train(folder, *files, *shape, *EPOCHS, *BATCHES, "-o", "m")
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


@pytest.mark.parametrize("family", gpt2c.models.registry.FAMILIES)
def test_every_family_has_phases(family, folder):
    width = {"mingru": "--dim", "hybrid": "--hidden"}.get(family, "--channels")
    files = ["--pretrain", "facts.json", "--instruct", "items.jsonl", "--test-questions", "items.jsonl", "-o", "run"]
    done = train(folder, "--model", family, *files, width, 16, "--pretrain-epochs", 1, "--instruct-epochs", 1)
    assert "instruction questions: " in done.stdout and checkpoint_of(folder / "run/instruct").family == family


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
    facts = ["--pretrain", "facts.json"]
    assert "go together" in train(folder, *facts, code=2).stderr
    assert "use --out-dir" in train(folder, *facts, "--instruct", "items.jsonl", "--save-path", "x", code=2).stderr
    assert train(folder, "--pretrain", "missing.json", "--instruct", "items.jsonl", code=4).stderr.count("\n") == 1
    with open(folder / "large.json", "wb") as file:
        file.truncate(101_000_000)
    assert "more than the 0.1 GB allowed" in train(folder, *facts, "--instruct", "large.json", code=4).stderr
    assert "has no questions" in train(folder, *facts, "--instruct", "facts.json", *TINY, code=4).stderr


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
