"""Who may import whom: down only, never in a circle. Read from the source, imports inside functions included."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "gpt2c"

# From the top down: a part imports from itself and from what stands below it. Of parts side by side neither imports the other.
LAYERS = (
    ("train",),
    ("__main__",),
    ("commands",),
    ("serving",),
    ("runs", "bench"),
    ("training",),
    ("generation",),
    ("data",),
    ("models",),
    ("formats",),
    ("tokenizers",),
    ("engine",),
    ("settings", "_core"),
    ("support",),
    ("errors",),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
BESIDE = ("settings", "_core")  # settings are settings of the kernels, which know nothing of the package
ORACLES = "reference"  # imports NumPy alone, and only bench imports it
DOORS = (PACKAGE, f"{PACKAGE}.__main__", f"{PACKAGE}.train")  # the modules that may import the package by its own name


def modules_of(root):
    """{dotted name: path} of the package's Python files."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module, path, known):
    """[(line, what is imported by its dotted name), ...]; a name that is no module of the package counts as the module that
    it is taken from."""
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in known else source) for name in names]
    return found


def part_of(name):
    """The part of the package that a module belongs to: a name of LAYERS; "" for the package itself."""
    return [*name.split("."), ""][1]


def violations(root):
    """What is wrong with the tree below `root`, a sentence each."""
    modules = modules_of(root)
    known = {*modules, f"{PACKAGE}._core"}
    imports = [(module, *found) for module, path in modules.items() for found in imports_of(module, path, known)]
    wrong = [f"{module}: {part_of(module)} has no place in LAYERS" for module in modules if not has_place(part_of(module))]
    for module, line, target in imports:
        if why := objection(module, target):
            wrong.append(f"{module}, line {line}: imports {target}, {why}")
    inner = {}
    for module, _, target in imports:
        if target in modules and target != PACKAGE:
            inner.setdefault(module, set()).add(target)
    return list(dict.fromkeys(wrong)) + [f"a circle of imports: {' -> '.join(circle)}" for circle in circles(inner)]


def has_place(part):
    return part in RANK or part in ("", ORACLES)


def objection(module, target):
    """Why a module must not import this; "" if it may."""
    part, other, top = part_of(module), part_of(target), target.split(".")[0]
    if part == ORACLES:
        own = top == PACKAGE and other == ORACLES or top in sys.stdlib_module_names
        return "" if own or top == "numpy" else "but the oracles import NumPy alone"
    if top != PACKAGE:
        return ""
    if target == PACKAGE:
        return "" if module in DOORS else "but only its doors name the package itself: take it from where it is made"
    if not part or part == other or (part, other) == BESIDE:
        return ""
    if other == ORACLES:
        return "" if part == "bench" else "but the oracles are for bench and tests"
    if not has_place(other) or not has_place(part):
        return ""  # said of the module already
    if RANK[other] == RANK[part]:
        return f"but {other} stands beside {part}, not below it"
    return f"but {other} stands above {part}" if RANK[other] < RANK[part] else ""


def circles(imports):
    """A path [module, ..., the same module] for each circle in {module: modules that it imports} that a search meets."""
    found, done = [], set()

    def visit(module, path):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(imports.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(imports):
        visit(module, [])
    return found


def test_imports_point_down():
    assert not (wrong := violations(ROOT)), "imports that the order of the layers forbids:\n" + "\n".join(wrong)


SOUND = {
    "__init__.py": "import importlib\n__version__ = '1'\n",
    "__main__.py": "from gpt2c import __version__\nfrom gpt2c.commands import verb\n",
    "train.py": "from gpt2c.__main__ import main\n",
    "errors.py": "",
    "settings.py": "import os\nfrom gpt2c import _core\nfrom gpt2c.errors import UsageError\n",
    "engine/__init__.py": "",
    "engine/tape.py": "from gpt2c._core import Stream\nfrom gpt2c import settings\n",
    "formats/__init__.py": "from gpt2c.formats import native\nfrom gpt2c.engine.tape import Tape\n",
    "formats/native.py": "from .. import errors\n",
    "models/__init__.py": "",
    "models/model.py": "def f():\n    from gpt2c import formats\n",
    "runs/__init__.py": "",
    "bench/__init__.py": "from gpt2c.reference.ops import gelu\n",
    "commands/__init__.py": "",
    "commands/verb.py": "from gpt2c import runs, bench\nfrom gpt2c.models.model import Model\n",
    "reference/__init__.py": "",
    "reference/ops.py": "import math\nimport numpy as np\n",
}


def tree(folder, changes=()):
    """SOUND, with {file: text} of `changes` added to it, as files."""
    for name, text in [*SOUND.items(), *dict(changes).items()]:
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    return folder


def test_a_sound_tree_is_sound(tmp_path):
    assert violations(tree(tmp_path)) == []


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("formats/native.py", "from gpt2c.models.model import Model", "models stands above formats"),
        ("formats/native.py", "def f():\n    import gpt2c.models.model", "line 3: imports gpt2c.models.model"),
        ("formats/native.py", "from ..models import model", "models stands above formats"),
        ("formats/native.py", "if False:\n    from gpt2c import models as m", "models stands above formats"),
        ("runs/loop.py", "from gpt2c.bench import measure", "bench stands beside runs"),
        ("bench/measure.py", "from gpt2c.commands.verb import main", "commands stands above bench"),
        ("errors.py", "from gpt2c import settings", "settings stands above errors"),
        ("engine/tape.py", "import gpt2c", "only its doors name the package itself"),
        ("settings.py", "from gpt2c import __version__", "only its doors name the package itself"),
        ("reference/ops.py", "import scipy.special", "NumPy alone"),
        ("reference/ops.py", "from gpt2c.errors import UsageError", "NumPy alone"),
        ("models/model.py", "from gpt2c.reference import ops", "the oracles are for bench and tests"),
        ("widgets/__init__.py", "", "widgets has no place in LAYERS"),
    ],
)
def test_what_points_up_is_named(file, text, said, tmp_path):
    wrong = violations(tree(tmp_path, {file: text + "\n"}))
    assert len([sentence for sentence in wrong if said in sentence]) == 1
    assert len([sentence for sentence in wrong if "circle" not in sentence]) == 1


@pytest.mark.parametrize(
    "files, circle",
    [
        (
            {"engine/a.py": "from gpt2c.engine import b\n", "engine/b.py": "from gpt2c.engine.a import x\n"},
            "engine.a -> engine.b",
        ),
        ({"formats/native.py": "def f():\n    from gpt2c.formats import read\n"}, "formats -> formats.native"),
        ({f"engine/{x}.py": f"from .{y} import f\n" for x, y in ("ab", "bc", "ca")}, "engine.a -> engine.b -> engine.c"),
    ],
)
def test_circles_are_named(files, circle, tmp_path):
    (wrong,) = violations(tree(tmp_path, files))
    whole = [f"{PACKAGE}.{module}" for module in circle.split(" -> ")]
    assert wrong == f"a circle of imports: {' -> '.join([*whole, whole[0]])}"
