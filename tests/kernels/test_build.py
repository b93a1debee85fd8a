"""What setup.py can build besides the plain module, each in a copy of the source tree."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path):
    """A copy of what setup.py and the kernel tests need.

    Cython's translation of the door comes along where a build left one: if it is up to date it saves time.
    """
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in "kernels", "gpt2c", "build/kernels":
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for file in "setup.py", "pyproject.toml", "README.md", "LICENSE":
        if (ROOT / file).exists():
            shutil.copy2(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "tests/kernels", tmp_path / "tests/kernels", ignore=skip)
    shutil.copy2(ROOT / "tests/conftest.py", tmp_path / "tests")
    return tmp_path


def run(tree, *command, **variables):
    """Python in a tree, with none of this process's settings -> the result, with all output in stdout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GPT2C_", "PYTEST_"))}
    env |= {"PYTHONPATH": str(tree), **variables}
    return subprocess.run([sys.executable, *command], cwd=tree, env=env, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def build(tree, **variables):
    """The kernels set their own -O; the door need not be fast."""
    return run(tree, "setup.py", "-q", "build_ext", "--inplace", CFLAGS="-O0", **variables)


def run_kernel_tests(tree, *which, **variables):
    where = run(tree, "-c", "from gpt2c import _core; print(_core.__file__)", **variables)
    assert where.stdout.startswith(str(tree)), where.stdout
    return run(tree, "-m", "pytest", "-q", "--tb=short", "tests/kernels/test_kernels.py", *which, **variables)


@pytest.mark.slow  # it compiles every kernel
def test_a_kernel_built_wrong_turns_the_tests_red(tree):
    built = build(tree, GPT2C_BREAK="1")
    assert built.returncode == 0, built.stdout
    tests = run_kernel_tests(tree, "-k", "oracle and layernorm")
    assert tests.returncode == pytest.ExitCode.TESTS_FAILED, tests.stdout
    failed = [line for line in tests.stdout.splitlines() if line.startswith("FAILED")]
    assert failed and all("layernorm_backward" in line for line in failed)


@pytest.mark.slow
def test_sanitizers_find_nothing(tree):
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
    library = subprocess.check_output([*compiler, "-print-file-name=libasan.so"], text=True).strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler brings no address sanitizer")
    built = build(tree, GPT2C_SANITIZE="address,undefined")
    assert built.returncode == 0, built.stdout
    tests = run_kernel_tests(tree, "--capture=sys", LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")
    assert tests.returncode == 0 and "Sanitizer" not in tests.stdout, tests.stdout


@pytest.fixture
def compiler_without_openmp(tree):
    script = tree / "compiler"
    script.write_text("""#!/bin/sh
case " $* " in *" -fopenmp "*) echo "unknown option -fopenmp" >&2; exit 1;; esac
exec cc "$@"
""")
    script.chmod(0o755)
    return str(script)


def test_a_compiler_without_openmp_is_an_error_that_says_what_to_do(tree, compiler_without_openmp):
    built = build(tree, CC=compiler_without_openmp)
    assert built.returncode != 0
    assert "the C compiler has no OpenMP, so gpt2c would use one core only" in built.stdout
    assert "GPT2C_NO_OPENMP=1" in built.stdout
    assert not list((tree / "gpt2c").glob("*.so"))


@pytest.mark.slow
def test_without_openmp_on_request(tree, compiler_without_openmp):
    built = build(tree, CC=compiler_without_openmp, GPT2C_NO_OPENMP="1")
    assert built.returncode == 0, built.stdout
    info = run(tree, "-c", "import gpt2c; print(gpt2c.info()['openmp'])")
    assert info.stdout == "False\n"
    tests = run_kernel_tests(tree)
    assert tests.returncode == 0, tests.stdout


@pytest.mark.slow
def test_a_wheel_built_from_the_source_distribution_is_small_and_works_alone(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("*.so", ".*", "__pycache__", "build", "runs"))
    packed = run(source, "setup.py", "-q", "sdist", "-d", str(tmp_path))
    assert packed.returncode == 0, packed.stdout
    (archive,) = tmp_path.glob("*.tar.gz")
    made = run(tmp_path, "-m", "pip", "wheel", archive.name, "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path))
    assert made.returncode == 0, made.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name and wheel.stat().st_size < 5e6
    shutil.unpack_archive(wheel, installed, "zip")
    shutil.rmtree(source)
    trained = run(tmp_path, "-m", "gpt2c.train", "-x", "2", "-o", "run", PYTHONPATH=str(installed), HOME=str(tmp_path))
    assert trained.returncode == 0 and "done: step 2 of 2" in trained.stdout, trained.stdout
