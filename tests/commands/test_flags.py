"""Flags come from fields: every way to write one, what it can be, and which are unknown."""

import dataclasses
import math
import tracemalloc
from dataclasses import field

import pytest
from options import CLASSES, PROG, Config, Options, refused, run

from gpt2c.commands.command_line import parse, peek
from gpt2c.errors import UsageError
from gpt2c.support.fields import flag, nearest

# ---- spellings


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


# ---- values


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


# ---- unknown flags


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


def test_a_word_too_long_to_be_like_any_is_not_compared():
    tracemalloc.start()
    try:
        assert nearest("max_step" * 10**5, {"max_steps": "max_steps", "seed": "seed"}) == ""
        assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    finally:
        tracemalloc.stop()
    assert nearest("", {}) == ""


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


# ---- positional words


def test_positional_words():
    assert run("a.bin", "-x", "2", positional=["init_from"])[0] == Options(init_from="a.bin", max_steps=2)
    options, given = run("a.bin", "b", "--", "-c", "--help", positional=["init_from", "data"])
    assert (options.init_from, options.data, given) == ("a.bin", ("b", "-c", "--help"), {"init_from", "data"})
    assert "unexpected argument 'b'" in refused("a.bin", "b", positional=["init_from"])
    assert refused("ten", positional=["max_steps"]) == "N: expected a whole number, found 'ten'"


# ---- several dataclasses


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
