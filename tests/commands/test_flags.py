"""Flags, config files and help come from the same fields, so what one knows the others must know too."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field

import pytest

from gpt2c.commands.command_line import parse, peek
from gpt2c.commands.config_file import to_toml
from gpt2c.commands.help_text import help_text
from gpt2c.errors import InputError, UsageError
from gpt2c.support.fields import flag, nearest


@dataclass
class Options:
    """Has every kind of field, as a verb would."""

    model: str = flag("gpt2", "the family", "--family", metavar="FAMILY", group="model")
    init_from: str | None = flag(None, "start from weights", "-e", "--loadCheckpoint", default_text="scratch")
    resume: bool | str = flag(False, "go on with a run", "-y", metavar="PATH")
    data: tuple[str, ...] = flag((), "files to learn from", "-i", "--trainingFile", metavar="PATH", group="data")
    max_steps: int = flag(40, "updates in all", "-x", "--iters", "--max-iters", group="training")
    learning_rate: float = flag(1e-4, "peak rate", "-l", "--lr")
    lr_schedule: str = flag("cosine", "shape of the rate", "-k", choices=("constant", "cosine", "linear"))
    recompute: bool | int = flag(1, "what to compute again", "-r")
    overfit: bool = flag(False, "one batch only", "-a")
    shuffle: bool = flag(True, "mix the windows")
    sample_top_k: int = flag(0, "candidates", "--top-k")
    keep: int | None = flag(None, "checkpoints to keep", "-nk")
    secret: int = flag(7, "for tests alone", hidden=True)
    prompt: str = flag("", "how a sample begins", deprecated={"--seed-text": "use --prompt"})


@dataclass(frozen=True)
class Config:
    """Plain fields, as a model family has them."""

    vocab_size: int
    dim: int = 64
    dropout: float = 0.1
    use_rwkv: bool = True
    top_k: int = 1
    keep: int = 5


PROG = "gpt2c train"
CLASSES = [Options, Config]


def run(*argv, classes=(Options,), **more):
    """The instances, then the names that were given."""
    instances, given = parse(argv, classes, PROG, **more)
    return *instances, given


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(*argv, error=UsageError, **more):
    with pytest.raises(error) as caught:
        run(*argv, **more)
    return str(caught.value)


# spellings

CASINGS = {
    "as declared": lambda s: s,
    "upper": str.upper,
    "underscores": lambda s: "--" + s[2:].replace("-", "_"),
    "joined": lambda s: "--" + s[2:].replace("-", ""),
    "camel": lambda s: "--" + s[2:3] + s[2:].title().replace("-", "")[1:],
}
SAMPLES = {
    "model": "trm",
    "init_from": "a.bin",
    "resume": "b.bin",
    "data": "x.txt",
    "max_steps": "12",
    "learning_rate": "0.5",
    "lr_schedule": "linear",
    "recompute": "2",
    "overfit": "true",
    "shuffle": "false",
    "sample_top_k": "3",
    "keep": "4",
    "secret": "8",
    "prompt": "hello",
}


def spellings():
    for f in dataclasses.fields(Options):
        for spelling in ("--" + f.name.replace("_", "-"), *f.metadata["names"], *f.metadata["deprecated"]):
            yield f.name, spelling


@pytest.mark.parametrize(("name", "spelling"), list(spellings()))
@pytest.mark.parametrize("casing", CASINGS)
def test_every_spelling_in_every_casing_sets_its_field(name, spelling, casing):
    written = CASINGS[casing](spelling) if spelling.startswith("--") else spelling
    expected, given = run("--" + name, SAMPLES[name])
    assert given == {name}
    assert expected != Options()
    assert run(written, SAMPLES[name]) == (expected, {name})
    assert run(f"{written}={SAMPLES[name]}") == (expected, {name})


def test_nothing_given_is_all_defaults():
    assert run() == (Options(), set())


def test_one_dash_is_for_what_was_declared_with_one():
    assert run("-X", "5")[0].max_steps == 5
    assert run("-nk", "5")[0].keep == 5
    for word in ("-x5", "-max-steps", "--x", "-n"):
        assert f"unknown flag {word}" in refused(word, "5")


def test_the_last_of_a_repeated_flag_wins_under_any_name():
    assert run("-x", "1", "--iters=2", "--max_steps", "3")[0].max_steps == 3


def test_repeatable_flags_collect():
    assert run("--data", "a", "-i=b", "--trainingFile", "c")[0].data == ("a", "b", "c")

    Lists = dataclasses.make_dataclass("Lists", [("sizes", list[int], field(default_factory=lambda: [1]))])
    assert run("--sizes", "2", "--sizes=3", classes=[Lists])[0].sizes == [2, 3]
    assert run(classes=[Lists])[0].sizes == [1]


# values


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--max-steps", "1_000"], "max_steps", 1000),
        (["--max-steps", "-1"], "max_steps", -1),
        (["--max-steps=-1"], "max_steps", -1),
        (["--lr", "-1e-3"], "learning_rate", -1e-3),
        (["--lr", "3e-4"], "learning_rate", 3e-4),
        (["--lr", "2"], "learning_rate", 2.0),
        (["--lr", "inf"], "learning_rate", math.inf),
        (["--lr", "-Infinity"], "learning_rate", -math.inf),
        (["--prompt=-hello"], "prompt", "-hello"),
        (["--prompt=a=b"], "prompt", "a=b"),
        (["--prompt="], "prompt", ""),
        (["--prompt", ""], "prompt", ""),
        (["--prompt", "-"], "prompt", "-"),
        (["--prompt", "-5"], "prompt", "-5"),
        (["--prompt", "naïve 日本"], "prompt", "naïve 日本"),
    ],
)
def test_values(argv, name, value):
    got = getattr(run(*argv)[0], name)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-steps", "ten"], "--max-steps: expected a whole number, found 'ten'"),
        (["--max-steps", "1e6"], "--max-steps: expected a whole number, found '1e6'"),
        (["-x", "4.0"], "-x: expected a whole number, found '4.0'"),
        (["--max-steps="], "--max-steps: expected a whole number, found ''"),
        (["--lr", "nan"], "--lr: expected a number, found 'nan'"),
        (["--lr", "1e999"], "--lr: expected a number, found '1e999'"),
        (["--overfit=maybe"], "--overfit: expected true or false, found 'maybe'"),
        (["--recompute=all"], "--recompute: expected true or false or a whole number, found 'all'"),
        (["-k", "square"], "-k: expected one of constant, cosine, linear, found 'square'"),
        (["--max-steps"], "--max-steps: expected a value, found the end of the command line"),
        (
            ["--prompt", "--overfit"],
            "--prompt: expected a value, found the flag --overfit (write --prompt=--overfit if that is the value)",
        ),
        (["stray"], "unexpected argument 'stray'; flags begin with -- (gpt2c train --help lists all)"),
        (["-a", "maybe"], "unexpected argument 'maybe'; flags begin with -- (gpt2c train --help lists all)"),
    ],
)
def test_what_cannot_be_a_value_is_refused(argv, message):
    assert refused(*argv) == message


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "TRUE", "On"])
def test_switch_on(word):
    assert run("--overfit", word)[0].overfit is True
    assert run(f"--overfit={word}")[0].overfit is True
    assert run("-a", word)[0].overfit is True


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "FALSE", "Off"])
def test_switch_off(word):
    assert run("--shuffle", word)[0].shuffle is False
    assert run(f"--shuffle={word}")[0].shuffle is False


def test_switches_stand_alone():
    assert run("--overfit")[0].overfit is True
    assert run("--overfit", "--max-steps", "3")[0] == Options(overfit=True, max_steps=3)
    for word in ("--no-shuffle", "--no_shuffle", "--noShuffle"):
        options, given = run(word)
        assert options.shuffle is False
        assert given == {"shuffle"}
    assert "unknown flag --no-max-steps" in refused("--no-max-steps")
    assert "unknown flag --no-shuffle" in refused("--no-shuffle=true")


def test_a_flag_that_can_be_a_bool_has_an_optional_value():
    for argv in (["--resume"], ["--resume", "-a"], ["-y", "1"]):
        assert run(*argv)[0].resume is True
    assert run("--resume", "--no-resume")[0].resume is False
    assert run("--resume", "a.bin")[0].resume == "a.bin"
    assert [run(*argv)[0].recompute for argv in (["-r", "2"], ["-r", "0"], ["-r"])] == [2, False, True]


# unknown flags


def test_unknown_flags_name_the_nearest():
    assert refused("--learnin-rate", "1") == (
        "unknown flag --learnin-rate; did you mean --learning-rate? (gpt2c train --help lists all)"
    )
    assert "did you mean --init-from?" in refused("--load-chekpoint=x")  # from an alias to the canonical name
    assert "did you mean --max-steps" in refused("-max-steps", "5")
    assert refused("--zzzzzz") == "unknown flag --zzzzzz (gpt2c train --help lists all)"


def test_a_flag_that_counts_elsewhere_is_said_to():
    with pytest.raises(UsageError, match=r"unknown flag --use-RWKV, which goes with --kind large or huge \("):
        run("--use-RWKV", elsewhere=("--kind", {"large": Config, "huge": Config, "small": Options}))


def test_nearest_serves_other_names_too():
    assert nearest("dimm", {"dim": "dim", "depth": "depth"}) == "; did you mean dim?"
    assert nearest("zzz", {"dim": "dim"}) == ""


def test_deprecated_spellings_work_and_warn(capsys):
    assert run("--seed-text", "abc")[0].prompt == "abc"
    assert capsys.readouterr().err == "gpt2c train: --seed-text is deprecated: use --prompt\n"
    run("--prompt", "abc")
    assert capsys.readouterr().err == ""


def test_a_spelling_cannot_name_two_fields_of_one_class():
    claims = [("a", int, flag(1, "", "-b")), ("b", int, flag(2, "", "-b"))]
    Twice = dataclasses.make_dataclass("Twice", claims)
    with pytest.raises(ValueError, match="-b names both a and b of Twice"):
        parse([], [Twice], PROG)


def test_a_field_that_cannot_be_a_flag_is_refused():
    Odd = dataclasses.make_dataclass("Odd", [("table", dict, field(default_factory=dict))])
    with pytest.raises(TypeError, match=r"Odd\.table"):
        parse([], [Odd], PROG)


# positional words


def test_positional_words():
    assert run("a.bin", "-x", "2", positional=["init_from"])[0] == Options(init_from="a.bin", max_steps=2)
    options, given = run("a.bin", "b", "--", "-c", "--help", positional=["init_from", "data"])
    assert (options.init_from, options.data, given) == ("a.bin", ("b", "-c", "--help"), {"init_from", "data"})
    assert "unexpected argument 'b'" in refused("a.bin", "b", positional=["init_from"])
    assert refused("ten", positional=["max_steps"]) == "N: expected a whole number, found 'ten'"


# several dataclasses


def test_plain_fields_of_a_second_class_are_flags():
    options, config, given = run("--dim", "8", "--useRWKV=false", "-x", "2", classes=CLASSES)
    assert options == Options(max_steps=2)
    assert config == Config(vocab_size=None, dim=8, use_rwkv=False)
    assert given == {"dim", "use_rwkv", "max_steps"}


def test_a_field_goes_before_an_alias_then_the_first_class_wins():
    options, config, _ = run("--top-k", "9", "--keep", "2", classes=CLASSES)
    assert (options.sample_top_k, config.top_k) == (0, 9)
    assert (options.keep, config.keep) == (2, 5)
    assert run("--top-k", "9")[0].sample_top_k == 9


def test_defaults_can_be_replaced_but_are_not_given():
    defaults = {"max_steps": 7, "dim": 1, "vocab_size": 9}
    options, config, given = run("--dim", "8", classes=CLASSES, defaults=defaults)
    assert (options.max_steps, config.dim, config.vocab_size, given) == (7, 8, 9, {"dim"})


def test_peek_reads_some_fields_and_passes_over_the_rest(capsys):
    argv = ["--dim", "8", "--bogus=1", "stray", "--family", "mingru", "-x", "ten", "--seed-text", "a", "-h"]
    assert peek(argv, Options, "model", "init_from") == ("mingru", None)
    assert peek([*argv, "-e", "w.bin"], Options, "prompt", "init_from", "model") == ("a", "w.bin", "mingru")
    assert capsys.readouterr() == ("", "")
    assert refused(*argv[:-1]).startswith("unknown flag --dim")
    with pytest.raises(UsageError, match="expected one of"):
        peek(["-k", "square"], Options, "lr_schedule")


def test_peek_reads_the_config_file(tmp_path):
    path = write(tmp_path, 'model = "trm"\nbogus = 1\nmax_steps = "ten"\ninit_from = "a"\n')
    assert peek(["--config", path, "-e", "b"], Options, "model", "init_from") == ("trm", "b")


# config files

FILE = """
maxSteps = 5
lr = 1
[model]
family = "trm"
[any.name]
data = ["a", "b"]
nk = 3
use_rwkv = false
-r = 2
"""


def test_defaults_then_file_then_command_line(tmp_path):
    path = write(tmp_path, FILE)
    options, config, given = run("--config", path, classes=CLASSES)
    assert options == Options("trm", data=("a", "b"), max_steps=5, learning_rate=1.0, keep=3, recompute=2)
    assert isinstance(options.learning_rate, float)
    assert config == Config(vocab_size=None, use_rwkv=False)
    assert given == {"max_steps", "learning_rate", "model", "data", "keep", "use_rwkv", "recompute"}
    options, _, given = run("-x", "6", f"--config={path}", "--data", "c", "-a", classes=CLASSES)
    assert (options.max_steps, options.data, options.model, options.overfit) == (6, ("c",), "trm", True)
    assert given >= {"max_steps", "overfit", "model"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate = 1", "unknown key learnin_rate; did you mean learning_rate?"),
        ("[a]\nzzzzzz = 1", "unknown key zzzzzz"),
        ('config = "other.toml"', "unknown key config"),
        ("help = true", "unknown key help"),
        ('max_steps = "40"', "max_steps: expected a whole number, found '40'"),
        ("iters = 4.0", "iters: expected a whole number, found 4.0"),
        ("max_steps = true", "max_steps: expected a whole number, found True"),
        ("max_steps = [1]", "max_steps: expected a whole number, found [1]"),
        ("overfit = 1", "overfit: expected true or false, found 1"),
        ('overfit = "true"', "overfit: expected true or false, found 'true'"),
        ("prompt = 1", "prompt: expected text, found 1"),
        ("learning_rate = nan", "learning_rate: expected a number, found nan"),
        ('data = ["a", 1]', "data: expected text, found 1"),
        ('lr_schedule = "square"', "lr_schedule: expected one of constant, cosine, linear, found 'square'"),
        ("[[data]]\na = 1", "data: expected text, found {'a': 1}"),
        ("learning_rate = 1" + "0" * 400, "learning_rate: expected a number"),
    ],
)
def test_bad_entries_of_a_config_file(tmp_path, text, message):
    path = write(tmp_path, text)
    assert refused("--config", path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("content", [b"a = ", b"a = \xff", b"x" * 100, b"a = " + b"[" * 100_000, b"\x00"])
def test_what_is_no_toml_is_bad_input(tmp_path, content):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert f"{path} is not a TOML file" in refused("--config", str(path), error=InputError)


def test_a_missing_config_file_is_bad_input(tmp_path):
    message = refused("--config", str(tmp_path / "none.toml"), error=InputError)
    assert message == f"cannot read the config file {tmp_path / 'none.toml'}: No such file or directory"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": 'quo"te \\ new\nline \t tab \x00\x1f\x7f ünï 🙂 # [x] = \'y\' """'},
        {"data": ("a b", "", '"'), "init_from": "C:\\x"},
        {"learning_rate": math.inf, "max_steps": -(10**30)},
        {"learning_rate": 5e-324, "resume": True},
        {"learning_rate": 0.1 + 0.2, "resume": "true story", "recompute": 2},
        {"learning_rate": 1e22, "overfit": True, "shuffle": False, "keep": 0},
    ],
)
def test_what_to_toml_writes_reads_back_the_same(tmp_path, changes):
    options, config = Options(**changes), Config(vocab_size=11, dropout=0.0, use_rwkv=False)
    text = to_toml(options, config)
    assert run("--config", write(tmp_path, text), classes=CLASSES)[:2] == (options, config)
    assert ("keep" in tomllib.loads(text)) is ("keep" in changes)  # None has no place in TOML


def test_an_empty_list_in_a_file_replaces_the_default(tmp_path):
    path = write(tmp_path, "data = []")
    assert run("--config", path, defaults={"data": ("x",)})[0].data == ()


# help


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
    own = text[text.index(f"\n\n{__name__.rpartition('.')[2]}:\n") :]
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
