"""Whoever runs kernels runs them with this machine's threads and instruction set, whichever module is asked for first."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from programs import run

import gpt2c

PACKAGE = Path(gpt2c.__file__).parent


def users_of_kernels():
    """The modules that import the compiled one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text("utf-8")))
        if any(isinstance(node, ast.ImportFrom) and node.module == "gpt2c._core" for node in nodes):
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("module", [*users_of_kernels()])
def test_threads_and_instruction_set_are_chosen_before_kernels_can_run(module):
    ask = f"import sys, {module}; assert 'gpt2c.settings' in sys.modules"
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True).returncode == 0


@pytest.mark.parametrize("first", ["gpt2c.create('chargpt', num_layers=1)", "gpt2c.ops.linear", "gpt2c.Family", "gpt2c.world()"])
def test_public_names_choose_them_too(first):
    ask = f"import gpt2c, sys; {first}; assert 'gpt2c._core' not in sys.modules or 'gpt2c.settings' in sys.modules"
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True).returncode == 0


@pytest.mark.parametrize("words", [["info"], ["train", "-x", "1"], ["--model", "x"]], ids=str)
def test_an_unknown_instruction_set_is_one_sentence_from_every_verb(words, tmp_path):
    isas = ", ".join(gpt2c.info()["isas"])
    done = run(tmp_path, *words, code=2, GPT2C_ISA="bogus")
    said = f": GPT2C_ISA: instruction set 'bogus' is not usable here, expected one of {isas}\n"
    assert not done.stdout and done.stderr.endswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("threads", [-1, 0, 70000])
def test_a_number_of_threads_that_cannot_be(threads):
    before = gpt2c.info()["threads"]
    with pytest.raises(gpt2c.UsageError, match=rf"^the number of threads is {threads}, expected 1 to \d{{4,}}$"):
        gpt2c.set_num_threads(threads)
    assert gpt2c.info()["threads"] == before
