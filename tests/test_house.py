"""The house rules: one dialect of Python, types that hold, files and functions of a size that can be read."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("gpt2c", "kernels", "tests", "benchmarks", "docs", "data", "setup.py")
FILE_LINES, FUNCTION_LINES, PACKAGE_ENTRIES = 400, 60, 20


def tool(*command, cwd=ROOT):
    """A tool that is a Python module -> (whether it is content, what it says)."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, text=True, capture_output=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def code_files(root):
    """The files of Python and C, where those of the project are."""
    for name in CODE:
        for path in [root / name] if (root / name).is_file() else sorted((root / name).rglob("*")):
            if path.suffix in (".py", ".pyi", ".pyx", ".c", ".h", ".def"):
                yield path


def python_functions(text):
    """(name, lines) of each function and method, those inside others too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def c_functions(text):
    """(name, lines) of each function: from its name to the brace that closes it."""
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])
    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)
    depth, start = 0, 0
    for at in (match.start() for match in re.finditer(r"[{};]", text)):
        if text[at] == "{":
            if depth == 0:
                head = text[start:at]
            depth += 1
            continue
        depth -= text[at] == "}"
        if depth == 0:
            if text[at] == "}" and head.rstrip().endswith(")"):
                name = re.search(r"(?:\w+\()?\w+\)?(?=\s*\()", head)
                yield name[0], text.count("\n", start + name.start(), at) + 1
            start = at + 1
    assert depth == 0, "braces that do not match"


def too_long(root):
    """FILE for each that has too many lines, FILE: FUNCTION for each function that has."""
    found = set()
    for path in code_files(root):
        name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
        if text.count("\n") > FILE_LINES:
            found.add(name)
        functions = {".py": python_functions, ".c": c_functions, ".h": c_functions}.get(path.suffix, lambda text: ())
        found |= {f"{name}: {function}" for function, lines in functions(text) if lines > FUNCTION_LINES}
    return found


def entries(folder):
    """What ls shows of a checkout: neither what was built nor what Python keeps for itself."""
    return [path.name for path in folder.iterdir() if path.name != "__pycache__" and path.suffix != ".so"]


def test_ruff_finds_nothing_and_would_write_no_line_differently():
    for command in ("check",), ("format", "--check"):
        content, said = tool("ruff", *command)
        assert content, said


def test_mypy_finds_nothing():
    content, said = tool("mypy")
    assert content, said


def test_no_file_and_no_function_is_too_long():
    assert too_long(ROOT) == set()


def test_the_package_is_seen_at_one_glance():
    assert len(entries(ROOT / "gpt2c")) <= PACKAGE_ENTRIES


@pytest.mark.parametrize("fault, command", [("import os\n", "check"), ("x = 'one'\n", "format --check")])
def test_ruff_holds_made_up_code_to_the_same_rules(fault, command, tmp_path):
    (tmp_path / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")
    for text, good in ((fault, False), ('"""Nothing."""\n', True)):
        (tmp_path / "made_up.py").write_text(text)
        content, said = tool("ruff", *command.split(), ".", cwd=tmp_path)
        assert content == good and ("made_up.py" in said) == (not good), said


C_FILE = """#define M(x) { \\
    (x)
int array[] = {1, 2};
static inline int fits(void) {
BODYBODY    return '}';  // }
}

void FN(long_by_one)(float* out,
                    int64_t n) {
BODYBODY    puts("}");
}
"""


def test_what_is_too_long_is_found(tmp_path):
    body = "    x = 1;\n" * (FUNCTION_LINES - 2)
    files = {
        "gpt2c/file.py": "x = 1\n" * (FILE_LINES + 1),
        "gpt2c/file_that_fits.py": "x = 1\n" * FILE_LINES,
        "gpt2c/function.py": f"def fits():\n{body}    pass\nclass A:\n  class B:\n   def b():\n{body}    pass\n    pass\n",
        "kernels/file.def": "\n" * (FILE_LINES + 1),
        "kernels/function.c": C_FILE.replace("BODYBODY", "    {\n" + "    x = 1;\n" * (FUNCTION_LINES - 5) + "    }\n"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {"gpt2c/file.py", "kernels/file.def", "gpt2c/function.py: b", "kernels/function.c: FN(long_by_one)"}
    assert too_long(tmp_path) == found


def test_what_crowds_the_package_is_found(tmp_path):
    for name in ("__pycache__", *(f"part{n}" for n in range(PACKAGE_ENTRIES + 1))):
        (tmp_path / name).mkdir()
    (tmp_path / "_core.abi3.so").touch()
    assert len(entries(tmp_path)) == PACKAGE_ENTRIES + 1
