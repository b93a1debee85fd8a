"""What type checkers are told is so: the public names, the stub of the compiled module, and what a user's lines may be."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import gpt2c
from gpt2c import _core

ROOT = Path(__file__).parent.parent
NAMED = ast.AnnAssign | ast.ClassDef | ast.FunctionDef


def public_imports():
    """{name: module} of what gpt2c/__init__.py imports for type checkers alone."""
    (block,) = [node for node in ast.parse((ROOT / "gpt2c/__init__.py").read_text("utf-8")).body if isinstance(node, ast.If)]
    return {alias.asname: node.module.removeprefix("gpt2c.") for node in block.body for alias in node.names}


def test_type_checkers_see_the_public_names_where_they_are_imported_from():
    assert public_imports() == gpt2c._HOME


def differences(stub, module):
    """Public names that the stub or the module (or class) lacks, and functions whose parameters are others. What has a
    __getattr__ in the stub has names that it does not list."""
    said = {getattr(node, "name", None) or node.target.id: node for node in stub if isinstance(node, NAMED)}
    there = {name for name in vars(module) if name[0] != "_" and not inspect.ismodule(getattr(module, name))}
    found = [] if "__getattr__" in said else sorted(there - said.keys())
    for name, node in said.items():
        if isinstance(node, ast.AnnAssign) or name[0] == "_":
            continue
        if name not in there:
            found.append(name)
        elif isinstance(node, ast.ClassDef):
            found += [f"{name}.{difference}" for difference in differences(node.body, getattr(module, name))]
        elif not node.decorator_list:
            parameters = [arg.arg for arg in [*node.args.args, node.args.vararg] if arg]
            if parameters != list(inspect.signature(getattr(module, name)).parameters):
                found.append(f"{name}({', '.join(parameters)})")
    return found


def test_the_stub_is_what_the_compiled_module_is():
    text = (ROOT / "gpt2c/_core.pyi").read_text("utf-8")
    assert differences(ast.parse(text).body, _core) == []
    for right, wrong, name in (
        ("use_isa(name", "use_isa(isa", "use_isa(isa)"),
        ("def isas", "def all_isas", "isas"),
        ("def isas", "def all_isas", "all_isas"),
        ("def rows(self, first", "def rows(self, begin", "Buffer.rows(self, begin, last, row_shape)"),
        ("    def program(", "    def programme(", "Stream.programme"),
    ):
        assert right in text
        assert name in differences(ast.parse(text.replace(right, wrong)).body, _core)


USE = """
from collections.abc import Iterator
from typing import assert_type

import numpy as np

import gpt2c

model = gpt2c.create("gpt2", num_layers=1)
loader = gpt2c.DataLoader("tokens.bin", B=1, T=8)
x, y = loader.next_batch()
assert_type(model, gpt2c.Model)
assert_type(model.forward(x, y), float)
assert_type(model.forward(x), None)
assert_type(model.params.flat, np.ndarray)
assert_type(gpt2c.load("model.bin"), gpt2c.Model)
assert_type(gpt2c.Tokenizer.load("tokenizer.json").encode("text"), list[int])
assert_type(gpt2c.generate(model, [1], 2, temperature=0.5), Iterator[int])
assert_type(gpt2c.generate_batch(model, [[1], [2]], 2), list[list[int]])
for step in gpt2c.Trainer(model, loader, None, gpt2c.TrainConfig(max_steps=3)):
    assert_type(step.loss, float)
gpt2c.set_num_threads(2)
assert_type(gpt2c.__version__, str)
"""
MISUSE = """
import gpt2c

gpt2c.lode("model.bin")
gpt2c.load(3)
gpt2c.create("gpt2").forward([[1]], [[2]], keep="yes")
gpt2c.TrainConfig(max_stops=3)
"""


def test_a_user_s_mistakes_are_found_and_nothing_else(tmp_path):
    for name, text in (("use.py", USE), ("misuse.py", MISUSE)):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("use.py", "misuse.py")]
    checked = subprocess.run([sys.executable, "-m", "mypy", *files], cwd=ROOT, text=True, capture_output=True, check=False)
    errors = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert [(Path(line.split(":")[0]).name, int(line.split(":")[1])) for line in errors] == [
        ("misuse.py", number) for number in (4, 5, 6, 7)
    ], checked.stdout
