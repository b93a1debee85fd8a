"""Help: every flag with its names and its default, in the width of the terminal."""

import dataclasses

import pytest
from options import CLASSES, PROG, Config, run

from gpt2c.commands.command_line import parse
from gpt2c.commands.help_text import help_text
from gpt2c.support.fields import flag


@pytest.fixture(params=[20, 80, 200])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def entry_of(text, canonical):
    """The help of one flag on one line."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip().split(" ")[0] == canonical)
    end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith("    ")), len(lines))
    return " ".join(" ".join(lines[start:end]).split())


def test_help_has_every_flag_its_names_and_its_default(columns):
    text = help_text(PROG, "Train a model.", CLASSES)
    for cls in CLASSES:
        for f in dataclasses.fields(cls):
            canonical = "--" + f.name.replace("_", "-")
            if f.name == "secret":
                assert canonical not in text
            if f.name == "secret" or cls is Config and f.name == "keep":  # Options has --keep
                continue
            entry = entry_of(text, canonical)
            assert f.metadata.get("help", "") in entry
            names = f.metadata.get("names", ())
            assert [n for n in names if n not in entry] == (["--top-k"] if f.name == "sample_top_k" else [])
            default = f.metadata.get("default_text") or f.default
            if default not in (None, "", (), dataclasses.MISSING):
                shown = str(default).lower() if isinstance(default, bool) else default
                assert f"(default {shown})" in entry
    assert "--seed-text" not in text
    assert all(len(line) <= max(columns, 68) for line in text.splitlines())


def test_the_layout_of_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert help_text(PROG, "Train a model.", CLASSES, positional=["init_from", "data"]).startswith("""\
usage: gpt2c train [TEXT] [PATH ...] [flags]

Train a model.

model:
  --model FAMILY  (--family)      the family (default gpt2)
  --init-from TEXT  (-e, --loadCheckpoint)
                                  start from weights (default scratch)
  --resume [PATH]  (-y)           go on with a run (default false)

data:
  --data PATH  (-i, --trainingFile)
                                  files to learn from (may be repeated)

training:
  --max-steps N  (-x, --iters, --max-iters)
                                  updates in all (default 40)
  --learning-rate X  (-l, --lr)   peak rate (default 0.0001)
  --lr-schedule constant|cosine|linear  (-k)
                                  shape of the rate (default cosine)
""")


def test_help_tells_the_flags_of_a_second_class_apart():
    text = help_text(PROG, "", CLASSES)
    own = text[text.index("\n\noptions:\n") :]  # the file of options.Config
    assert entry_of(own, "--dim") == "--dim N (default 64)"
    assert entry_of(own, "--vocab-size") == "--vocab-size N"
    assert "--keep" not in own
    assert entry_of(own, "--help") == "--help (-h) print this help"


def test_help_breaks_no_flag_in_two(columns):
    Long = dataclasses.make_dataclass("Long", [("long", int, flag(1, "see " + "a --very-long-flag " * 20))])
    assert help_text(PROG, "", [Long]).count("--very-long-flag") == 20


def test_help_shows_replaced_defaults():
    assert "(default 7)" in entry_of(help_text(PROG, "", CLASSES, defaults={"max_steps": 7}), "--max-steps")


@pytest.mark.parametrize("argv", [["-h"], ["--HELP"], ["--help=1"], ["--bogus", "-h"], ["--prompt", "-h"]])
def test_asking_for_help_prints_it_and_exits_0(argv, capsys):
    with pytest.raises(SystemExit) as left:
        parse(argv, CLASSES, PROG, "Train a model.", defaults={"dim": 3})
    assert left.value.code == 0
    assert capsys.readouterr().out == help_text(PROG, "Train a model.", CLASSES, defaults={"dim": 3}) + "\n"


def test_a_value_or_word_is_no_question_for_help():
    assert run("--prompt=--help", "h", "help", positional=["data"])[0].data == ("h", "help")
