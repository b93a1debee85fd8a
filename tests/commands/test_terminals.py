"""What becomes of a program whose standard output or standard error is full, closed, read by nobody, or has no snowman; and
what a terminal gets of texts that would steer it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from programs import call, command, run

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


def test_an_error_from_loading_the_verb_is_one_sentence_too():
    done = run(".", "info", code=2, GPT2C_ISA="mmx")
    assert done.stderr.startswith("gpt2c info: GPT2C_ISA: instruction set 'mmx' is not usable here")
    assert done.stderr.count("\n") == 1


ESCAPE = "\x1b]0;owned\x07"  # sets the title of a window
SEEN = r"\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with a model that knows nothing but escape, and says what it is in such words."""
    folder = tmp_path_factory.mktemp("hostile")
    model = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=257, max_seq_len=32)
    model.tokenizer, model.description = Tokenizer.make("byte", specials=("<|endoftext|>",)), ESCAPE
    model.params["lnfw"][...], model.params["lnfb"][...] = 0, 1
    model.params["wte"][0x1B] = 10
    model.save(folder / "model")
    (folder / "text.txt").write_text("Some text. " * 20)
    (folder / f"{ESCAPE}.csv").write_text(f"{ESCAPE},b\nwords,words\n" + "more words,words\n" * 20)
    (folder / "run.toml").write_text('"\\u001b]0;owned\\u0007" = 1\n')
    return folder


def at_a_terminal(folder, *words):
    """What a terminal gets, standard error too."""
    ours, theirs = pty.openpty()
    program = subprocess.Popen(command(*words), cwd=folder, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    program.stdin.close()
    got = b""
    try:
        while block := os.read(ours, 4096):
            got += block
    except OSError:  # the end
        pass
    os.close(ours)
    assert program.wait() == 0, got
    return got.decode()


def test_text_of_files_does_not_steer_the_terminal(hostile, undrawn):
    fine_tuned = f"train -e model --data text.txt -b 1 -t 8 -x 1 -v 0 -s 1 -g 3 -o {ESCAPE}".split()
    for words, code in (
        (["info", "model"], 0), (["info", ESCAPE], 4), ([ESCAPE], 2), (["convert", "model", f"{ESCAPE}.bin"], 0),
        (["train", "--config", "run.toml"], 2), (["train", "--data", f"{ESCAPE}.csv", "--dry-run"], 0), (fine_tuned, 0),
        (["train", "--resume", "-o", ESCAPE, "-x", 2, "--prompt", "new", "-s", 0], 0),
        (["generate", "model", "--seed", ESCAPE, "--prompt", "x", "-n", 0], 0),
    ):  # fmt: skip
        done = call(hostile, *words, code=code)
        for text in (done.stdout, done.stderr):
            assert "\x1b" not in text and "\x07" not in text, (words, text)
        assert SEEN in done.stdout + done.stderr, (words, done)


def test_a_model_does_not_steer_the_terminal(hostile, undrawn):
    text = "caf\u00e9 \u2603"
    got = at_a_terminal(hostile, "generate", "model", "--prompt", text, "-n", 3)
    assert got == text + 3 * r"\x1b" + "\r\n"
    got = call(hostile, "train", "-e", "model", "--data", "text.txt", *"-b 1 -t 8 -x 1 -v 0 -s 1 -g 3 -l 1e-9".split()).stdout
    assert 3 * r"\x1b" in got and "\x1b" not in got


def test_a_pipe_gets_the_product_as_it_is(hostile):
    assert call(hostile, "generate", "model", "--prompt", "Once", "-n", 3).stdout == "Once" + 3 * "\x1b" + "\n"
    assert run(hostile, "chat", "model", "-n", 3, "--temperature", 0, input="Once\n").stdout == 3 * "\x1b" + "\n"
