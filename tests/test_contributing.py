"""The walk of CONTRIBUTING.md, gone by somebody new: each thing is added in the places that the page names, and works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2c.__main__ import VERBS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, to add to; returns what runs python -m gpt2c there."""
    shutil.copytree(ROOT / "gpt2c", tmp_path / "gpt2c", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*words):
        return subprocess.run([sys.executable, "-m", "gpt2c", *words], cwd=tmp_path, text=True, capture_output=True, check=False)

    return run


def add_line(path, after, line):
    """Puts a line into a file, after the first one that begins with these words."""
    lines = path.read_text("utf-8").splitlines()
    at = next(number for number, text in enumerate(lines) if text.startswith(after))
    path.write_text("\n".join([*lines[: at + 1], line, *lines[at + 1 :]]) + "\n", "utf-8")


SPELL = '''
"""Says a word letter by letter."""

from dataclasses import dataclass

from gpt2c.commands.command_line import parse
from gpt2c.errors import UsageError
from gpt2c.support.fields import flag


@dataclass
class SpellConfig:
    word: str = flag("", "what to spell")
    times: int = flag(1, "how often", "-n")


def main(argv):
    (config,), _ = parse(argv, [SpellConfig], "gpt2c spell-out", __doc__, ["word"])
    if not config.word:
        raise UsageError("there is no word to spell: name one")
    print("\\n".join(["-".join(config.word)] * config.times))
'''


def test_a_verb_is_a_file_and_a_line(copy, tmp_path):
    (tmp_path / "gpt2c/commands/spell_out.py").write_text(SPELL.lstrip())
    unknown = copy("spell-out", "abc")
    assert unknown.returncode == 2 and "there is no verb 'spell-out'" in unknown.stderr
    add_line(tmp_path / "gpt2c/__main__.py", "VERBS = {", '    "spell-out": "a word, letter by letter",')
    assert copy("spell-out", "abc", "-n", "2").stdout == "a-b-c\na-b-c\n"
    assert "spell-out        a word, letter by letter" in copy().stdout
    assert "how often" in copy("spell-out", "--help").stdout
    wrong = copy("spell-out")
    assert wrong.returncode == 2 and wrong.stderr == "gpt2c spell-out: there is no word to spell: name one\n"


def test_a_flag_is_a_field(copy, tmp_path):
    add_line(
        tmp_path / "gpt2c/training/config.py",
        '    """The Trainer',
        '    shade: float = flag(0.5, "how dark it is meanwhile", choices=(0.5, 0.75))',
    )
    size = ["--num-layers", "1", "--channels", "8", "--num-heads", "1", "-b", "1", "-t", "8", "-v", "0", "-s", "0", "-x", "1"]
    assert "how dark it is meanwhile (default 0.5)" in " ".join(copy("train", "--help-all").stdout.split())
    trained = copy("train", *size, "--data", str(ROOT / "data/stories_train.bin"), "--shade", "0.75", "-o", "run")
    assert trained.returncode == 0, trained.stderr
    assert "shade = 0.75\n" in (tmp_path / "run/config.toml").read_text()  # what a run records
    wrong = copy("train", *size, "--shade", "black")
    assert wrong.returncode == 2 and "--shade: expected one of 0.5, 0.75, found 'black'" in wrong.stderr
    misspelt = copy("train", *size, "--shde", "0.75")
    assert misspelt.returncode == 2 and "did you mean --shade" in misspelt.stderr


BIGRAM = '''
"""Each token tells the next one."""

from dataclasses import dataclass

from gpt2c.engine import ops
from gpt2c.engine.arena import ParamSpec, normal
from gpt2c.models.family import Family


@dataclass(frozen=True)
class Config:
    vocab_size: int = 256
    width: int = 8


def params(cfg):
    shape = (cfg.vocab_size, cfg.width)
    return [ParamSpec("table", shape, normal(0.5), True), ParamSpec("head", shape, normal(0.5), True)]


def forward(t, p, batch, cfg):
    x = ops.embedding(t, batch.tokens, p("table"), name="embedded")  # (B, T, width)
    return ops.classifier(t, x, p("head"), batch.targets, cfg.vocab_size)


FAMILY = Family(name="bigram", Config=Config, params=params, forward=forward, tiny=dict(vocab_size=31))
'''


def test_a_family_is_a_file_and_a_name_in_the_registry(copy, tmp_path):
    (tmp_path / "gpt2c/models/bigram.py").write_text(BIGRAM.lstrip())
    registry = tmp_path / "gpt2c/models/registry.py"
    add_line(registry, "from gpt2c.models import chargpt", "from gpt2c.models import bigram")
    registry.write_text(registry.read_text("utf-8").replace("for module in gpt2, ", "for module in bigram, gpt2, "), "utf-8")
    proved = copy("check-grad", "--model", "bigram")
    assert proved.returncode == 0 and proved.stdout.startswith("bigram, 496 parameters"), proved.stdout + proved.stderr
    (tmp_path / "book.txt").write_text("one fish two fish " * 200)
    words = ["--data", "book.txt", "--tokenizer", "byte", "--width", "4", "-b", "2", "-t", "16", "-x", "2", "-v", "0", "-s", "0"]
    trained = copy("train", "--model", "bigram", *words, "--save-path", "bigram.safetensors")
    assert trained.returncode == 0, trained.stderr
    written = copy("generate", "bigram.safetensors", "--prompt", "one", "-n", "3")
    assert written.returncode == 0 and written.stdout.startswith("one"), written.stderr


PLAIN = '''
"""A line of JSON, then all parameters."""

import json
import math

import numpy as np

from gpt2c.formats.weights import Weights, loaded

MAGIC = b"PLAIN "


def is_plain(head):
    return head.startswith(MAGIC)


def read(path):
    with open(path, "rb") as file:
        said = json.loads(file.readline().removeprefix(MAGIC))
        shapes = said["shapes"].items()
        tensors = {name: np.fromfile(file, "<f4", math.prod(shape)).reshape(shape) for name, shape in shapes}
    return Weights(said["family"], said["config"], tensors, form="plain 1")


def write(path, weights):
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    said = {"family": weights.family, "config": weights.config, "shapes": shapes}
    with open(path, "wb") as file:
        file.write(MAGIC + json.dumps(said).encode() + b"\\n")
        for tensor in weights.tensors.values():
            file.write(loaded(tensor).tobytes())
'''


def test_a_format_is_a_file_and_an_entry_in_the_table(copy, tmp_path):
    model = ROOT / "tests/corpus/model_v3.bin"
    (tmp_path / "gpt2c/formats/plain.py").write_text(PLAIN.lstrip())
    table = tmp_path / "gpt2c/formats/__init__.py"
    add_line(table, "from gpt2c.formats import blocks", "from gpt2c.formats import plain")
    add_line(table, "RANDYGPT = ", 'PLAIN = Format("a plain model", plain.is_plain, plain.read, plain.write, ".plain")')
    table.write_text(table.read_text("utf-8").replace("FORMATS = (LLMC, ", "FORMATS = (LLMC, PLAIN, "), "utf-8")
    for source, target in ((model, "there.plain"), ("there.plain", "back.bin")):
        converted = copy("convert", str(source), target)
        assert converted.returncode == 0, converted.stderr
    assert (tmp_path / "there.plain").read_bytes().startswith(b"PLAIN {")
    assert (tmp_path / "back.bin").read_bytes() == model.read_bytes()
    assert "plain 1" in copy("info", "there.plain").stdout


def test_every_verb_has_its_file_and_every_file_that_the_workflows_name_is_there():
    assert [verb for verb in VERBS if not (ROOT / f"gpt2c/commands/{verb.replace('-', '_')}.py").exists()] == []
    machines = [ROOT / "pyproject.toml", *(ROOT / ".github/workflows").iterdir()]
    named = [name for path in machines for name in re.findall(r"(?:tests|\.ci)/[\w/.]+", path.read_text("utf-8"))]
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_counts_the_places_that_it_names():
    sections = re.findall(r"^## An? [\w ]+: (\w+) places?\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    places = [(count, len(re.findall(r"^\d\. ", text, re.MULTILINE))) for count, text in sections]
    assert places == [("four", 4), ("two", 2), ("two", 2), ("two", 2), ("one", 0)]  # a single one needs no list
