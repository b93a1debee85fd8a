"""Defaults, families, old runs, config files and the command line are layers that are merged once."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from gpt2c.commands.command_line import CommandLine, merge, peek
from gpt2c.commands.completion import main as completion
from gpt2c.commands.help_text import help_text
from gpt2c.errors import UsageError
from gpt2c.support.fields import Layer, flag, require_at_least


@dataclass
class Run:
    steps: int = flag(40, "updates", "-x", main=True, replaces=("epochs",))
    epochs: float = flag(0.0, "passes")
    rate: float = flag(0.1, "learning rate")
    batch_size: int = flag(4, "rows")

    def __post_init__(self):
        require_at_least(self, steps=0, batch_size=1)


def merged(line, *layers):
    return merge(line, [Run], "prog", layers=layers)


def test_each_layer_goes_before_the_one_below_and_is_remembered(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("rate = 0.3\nbatch_size = 8\n")
    family, size = Layer("the family f", {"rate": 0.2, "epochs": 2.0}), Layer("the size s", {"epochs": 3.0})
    line = CommandLine(["--config", str(config), "--batch-size", "16"], above=[Layer("phase 1", {"steps": 5})])
    settings = merged(line, family, size)
    run = settings.instances[0]
    assert (run.steps, run.rate, run.batch_size) == (5, 0.3, 16)
    assert settings.given == {"rate", "batch_size", "steps"}
    assert settings.origins == {(0, "rate"): str(config), (0, "batch_size"): "command line", (0, "steps"): "phase 1"}
    told = settings.explained().splitlines()
    assert [row.split()[0] for row in told] == ["--rate", "--batch-size", "--steps"] and told[0].endswith(str(config))


def test_what_is_given_voids_the_defaults_of_what_it_replaces_but_not_what_is_given_too():
    family = Layer("the family f", {"epochs": 2.0})
    assert merged([], family).instances[0].epochs == 2.0
    assert merged(["-x", "9"], family).instances[0].epochs == 0.0
    assert merged(["-x", "9", "--epochs", "3"], family).instances[0].epochs == 3.0


def test_a_layer_that_says_the_default_has_no_origin_to_tell():
    assert merged(["--rate", "0.1"]).origins == {}


def test_a_config_file_is_read_once(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("steps = 3\n")
    line = CommandLine(["--config", str(config)])
    assert peek(line, Run, "steps") == (3,)
    config.write_text("steps = 4\n")
    assert merged(line).instances[0].steps == 3
    assert merged(line.between(below=[Layer("x", {"rate": 0.5})])).instances[0] == Run(steps=3, rate=0.5)


def test_peek_sees_what_a_program_puts_under_and_over_the_words():
    line = CommandLine(["-x", "9"], [Layer("below", {"steps": 1, "rate": 0.5})], [Layer("above", {"epochs": 2.0})])
    assert peek(line, Run, "steps", "rate", "epochs") == (9, 0.5, 2.0)


@pytest.mark.parametrize("words, said", [(["-x", "-1"], "-x is -1"), (["--Batch_size=0"], "--Batch_size is 0")])
def test_errors_name_flags_as_they_were_typed(words, said):
    with pytest.raises(UsageError, match=f"^{said}, expected at least"):
        merged(words)


def test_the_help_shows_what_matters_first():
    short, whole = (help_text("prog", "", [Run], everything=everything) for everything in (False, True))
    assert "--steps" in short and "--rate" not in short and "prog --help-all lists all" in short
    assert "--steps" in whole and "--rate" in whole


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_verbs_and_flags(capsys, tmp_path):
    completion(["bash"])
    script = tmp_path / "gpt2c.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words):
        ask = f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _gpt2c; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()

    assert completed("gpt2c", "train-") == ["train-tokenizer"]
    assert {"--max-steps", "--max-time"} <= set(completed("gpt2c", "train", "--max"))
    assert completed("gpt2c", "train", "--dry") == ["--dry-run"] and completed("gpt2c", "info", "--dry") == []


@pytest.mark.parametrize("words", [["help"], ["--version"], ["version"], ["-V"], ["completion", "zsh"], ["nonsense"]])
def test_first_words_load_neither_numpy_nor_the_kernels(words):
    ask = (
        "import json, sys; from gpt2c.__main__ import main; sys.argv[1:] = json.loads(sys.argv[1])\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'numpy', 'gpt2c._core'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", ask, json.dumps(words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
