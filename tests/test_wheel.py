"""What a source distribution and a wheel hold. The kernels are not compiled again: the wheel takes those that are built."""

import os
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest

import gpt2c
from gpt2c import _core

ROOT = Path(__file__).parent.parent


def run(folder, *command, **variables):
    """Python in a folder, with nothing to import from but what is installed and `variables` add -> its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2C_", "PYTHON"))} | variables
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "tinyshakespeare", "hellaswag")
    for part in "gpt2c", "kernels", "data", "build/kernels":  # the last: Cython's translation, if a build left one
        if (ROOT / part).exists():
            shutil.copytree(ROOT / part, folder / part, ignore=skip)
    for file in "setup.py", "pyproject.toml", "README.md", "LICENSE":
        shutil.copy2(ROOT / file, folder)
    run(folder, "setup.py", "-q", "sdist")
    (archive,) = folder.glob("dist/*.tar.gz")
    assert archive.name == f"gpt2c-{gpt2c.__version__}.tar.gz"
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    shutil.copytree(folder / "build", source / "build")
    return source


@pytest.fixture(scope="module")
def installed(unpacked, tmp_path_factory):
    """A wheel made from the source distribution, unzipped."""
    folder = tmp_path_factory.mktemp("installed")
    (unpacked / "setup.cfg").write_text("[build]\nbuild_lib = library\n")
    (unpacked / "library/gpt2c").mkdir(parents=True)
    shutil.copy2(_core.__file__, unpacked / "library/gpt2c")
    run(unpacked, "setup.py", "-q", "build_py", "bdist_wheel", "--skip-build", "-d", str(folder))
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"gpt2c-{gpt2c.__version__}-cp311-abi3-")
    shutil.unpack_archive(wheel, folder, "zip")
    return folder


def test_the_source_distribution_has_all_that_is_compiled(unpacked):
    assert {path.name for path in (ROOT / "kernels").glob("*.*")} - {path.name for path in unpacked.glob("kernels/*")} == {
        "SPEED.md"
    }


def test_the_wheel_holds_the_whole_package_and_the_data_of_a_first_run(installed):
    package = [path.relative_to(ROOT) for path in (ROOT / "gpt2c").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {".py", ".pyi", ".so", ".typed"} <= {path.suffix for path in package}
    assert [str(path) for path in package if not (installed / path).exists()] == []
    shipped = [path.name for suffix in ("bin", "json") for path in (ROOT / "data").glob(f"*.{suffix}")]
    assert shipped and [name for name in shipped if not (installed / "gpt2c/shipped" / name).exists()] == []
    assert not (installed / "tests").exists()


def test_the_wheel_says_its_licence(installed):
    (about,) = installed.glob("*.dist-info")
    said = Parser().parsestr((about / "METADATA").read_text("utf-8"))
    assert said["Version"] == gpt2c.__version__
    assert said["License-Expression"] == "MIT" and (about / "licenses/LICENSE").exists()


def test_verbs_run_from_the_wheel_alone(installed, tmp_path):
    alone = {"PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    assert run(tmp_path, "-c", "import gpt2c; print(gpt2c.__file__)", **alone).startswith(str(installed))
    assert f"gpt2c: {gpt2c.__version__}" in run(tmp_path, "-m", "gpt2c", "info", **alone)
    size = ["-b", "1", "-t", "16", "--num-layers", "1", "--channels", "16", "--num-heads", "1"]
    trained = run(tmp_path, "-m", "gpt2c", "train", "--max-steps", "1", *size, "-v", "0", "-s", "0", "-o", "run", **alone)
    assert "done: step 1 of 1" in trained
