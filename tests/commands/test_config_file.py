"""Config files: the same fields as flags, by their names."""

import math
import tomllib

import pytest
from options import CLASSES, Config, Options, refused, run

from gpt2c.commands.command_line import peek
from gpt2c.commands.config_file import to_toml
from gpt2c.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_peek_reads_the_config_file(tmp_path):
    path = write(tmp_path, 'model = "trm"\nbogus = 1\nmax_steps = "ten"\ninit_from = "a"\n')
    assert peek(["--config", path, "-e", "b"], Options, "model", "init_from") == ("trm", "b")


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
