"""What becomes of a program whose standard output or standard error is full, closed, read by nobody, or has no snowman."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import command, run

import gpt2c
from gpt2c.tokenizers.tokenizer import Tokenizer

SNOW = "\u2603"  # which neither ASCII nor Latin-1 have
TEXT = f"Snow {SNOW} falls. " * 60
SHAPE = "-e scratch --num-layers 1 --channels 16 --num-heads 1 --max-seq-len 16 -b 2 -t 8 -x 2 -v 1 -m 1 -s 1 -g 4"
RUN = f"train {SHAPE} --data ../text.txt --tokenizer byte --description {SNOW} --prompt {SNOW}"
TABLE = "bench kernels --filter residual_forward-T64 --seconds 0"

# What is run, the exit code where all is well, and whether what it prints is what it was asked for.
PROGRAMS = {
    "help": ("help", 0, True),
    "help of a verb": ("generate --help", 0, True),
    "version": ("version", 0, True),
    "no such verb": (SNOW, 2, False),
    "no such flag": (f"info --{SNOW}", 2, False),
    "no such file": (f"info {SNOW}", 4, False),
    "completion": ("completion bash", 0, True),
    "train": (RUN, 0, False),
    "train --explain": (f"{RUN} --explain", 0, True),
    "train --dry-run": (f"{RUN} --dry-run", 0, True),
    "train --list-datasets": ("train --list-datasets", 0, True),
    "rlvr": ("rlvr ../model --task copy --steps 1 --prompts 1 --group-size 2 --eval-prompts 1 --log-every 1", 0, False),
    "generate": (f"generate ../model --prompt {SNOW} -n 4", 0, True),
    "generate with a warning": (f"generate ../model --seed {SNOW} -n 4", 0, True),
    "chat": ("chat ../model", 0, False),  # to which nobody says anything
    "eval": ("eval ../model --data ../text.txt --val-steps 1", 0, True),
    "info": ("info", 0, True),
    "info of a model": ("info ../model", 0, True),
    "convert": (f"convert ../model {SNOW}", 0, False),
    "prepare": (f"prepare ../text.txt --name {SNOW} --tokenizer char", 0, False),
    "train-tokenizer": ("train-tokenizer ../text.txt --vocab-size 256", 0, False),  # with a warning
    "check-grad": ("check-grad ../model --directions 1", 0, True),
    "bench": (f"{TABLE} --out .", 0, True),
    "plot": (f"plot ../run --out {SNOW}.svg", 0, False),
}  # fmt: skip
STATES = [  # of standard output and standard error
    ("well", "well"), ("full", "well"), ("closed", "well"), ("gone", "ascii"), ("latin-1", "full"), ("ascii", "closed"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where there are a model, a text and a run."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    model = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=257, max_seq_len=32)
    model.tokenizer, model.description = Tokenizer.make("byte", specials=("<|endoftext|>",)), SNOW
    model.save(folder / "model")
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text(json.dumps({"step": 0, "loss": 1.0}) + "\n")
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """{(state of standard output, of standard error): {program: {"code", "out", "err"}}}"""
    asked = [(states, program) for states in STATES for program in PROGRAMS]
    lines = [json.dumps({"words": PROGRAMS[program][0].split(), "states": states}) for states, program in asked]
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("spoilt.py")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"GPT2C_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )
    found = {states: {} for states in STATES}
    for (states, program), answer in zip(asked, ended.stdout.splitlines(), strict=True):
        found[states][program] = json.loads(answer)
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_whatever_the_streams_are_a_program_does_its_work(done, program):
    _, code, product = PROGRAMS[program]
    usual = done["well", "well"][program]
    assert usual["code"] == code, usual
    for (out, err), of in done.items():
        now = of[program]
        assert "Traceback" not in now["err"] and "Exception ignored" not in now["err"], (out, err, now)
        lost = product and out in ("full", "closed")
        assert now["code"] == (5 if lost else code), (out, err, now)
        if lost:
            *others, last = now["err"].splitlines()
            assert "standard output cannot be written to" in last and others == usual["err"].splitlines()
        elif err in ("well", "ascii"):
            assert now["err"].count("\n") == usual["err"].count("\n"), (out, err, now)
        if out in ("ascii", "latin-1"):
            assert now["out"].count("\n") == usual["out"].count("\n")


def test_what_an_encoding_lacks_is_shown_by_its_number(done):
    for states in ("latin-1", "full"), ("ascii", "closed"):
        for program in ("train", "generate", "info of a model", "convert", "prepare"):
            assert r"\u2603" in done[states][program]["out"], program
    assert r"\u2603" in done["gone", "ascii"]["no such file"]["err"]


def test_closed_from_the_start_in_a_process_of_its_own(folder):
    """As a shell does it, with the end of Python and all: what is printed, and the files that take the numbers of streams."""
    here = RUN.replace("../", "").split()
    for streams, words, code in (
        (">&-", ["info"], 5), (">&- 2>&-", [*here, "--save-path", "quiet"], 0), ("<&- 2>/dev/full", ["chat", "model"], 0),
    ):  # fmt: skip
        shell = ["bash", "-c", f'"$@" {streams}', "bash", *command(*words)]
        ended = subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=60)
        assert ended.returncode == code and "Traceback" not in ended.stderr, (streams, words, ended)
        assert ended.stderr.count("\n") == (streams == ">&-")
    run(folder, *here, "--save-path", "ascii", PYTHONIOENCODING="ascii")
    assert gpt2c.load(folder / "quiet").description == gpt2c.load(folder / "ascii").description == SNOW
