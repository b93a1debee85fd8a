"""What setup.py can build besides the plain module, each in a copy of the source tree."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gpt2c import _core

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
    for folder in "tests/kernels", "tests/engine":
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    for file in "conftest.py", "families.py":
        shutil.copy2(ROOT / "tests" / file, tmp_path / "tests")
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
    files = "tests/kernels/test_kernels.py", "tests/kernels/test_promises.py"
    return run(tree, "-m", "pytest", "-q", "--tb=short", *files, *which, **variables)


# Faults: in a file of kernels/ the kernel that one makes wrong, what stands there once, and what the mutant has in its place.
MUTANTS = {
    "activation.c": ("gelu_backward", "(3 * GELU_CUBIC)", "(2 * GELU_CUBIC)"),
    "attention.c": ("attention_backward", "(j + l - at - i) <= 0", "(j + l - at - i) <= 1"),  # sees the next key
    "attention_materialised.c": ("attention_materialised_backward", "p[j] * (da[j] - mean)", "p[j] * da[j]"),
    "cope.c": ("cope_backward", "dgate += vf_load(s.dp + at_j);", "dgate = vf_load(s.dp + at_j);"),
    "dropout.c": ("dropout_residual_backward", "dropped), g * scale, (vf){0})", "dropped), g, (vf){0})"),
    "dyt.c": ("dyt_backward", "(1.0f - t * t)", "(1.0f + t * t)"),
    "elementwise.c": ("last_position_forward", "((b + 1) * T - 1) * C", "b * T * C"),
    "embedding.c": ("embedding_forward", "p = wpe + (pos[bt / T] + bt % T) * C", "p = wpe + bt % T * C"),
    "few_rows.c": ("few_rows_forward", "for (; c < C; c += VL) {", "for (; c + VL <= C; c += VL) {"),  # loses any tail
    "gru.c": ("gru_backward", "k + v + q - fresh", "k + v + q + fresh"),
    "loss.c": ("crossentropy_forward", "if (v < V) {", "if (v + 1 < V) {"),  # loses a tail of one column
    "matmul.c": ("matmul_forward", "0, b ? b + at : NULL, scratch", "0, b, scratch"),  # another column's bias
    "moe.c": ("balance_forward", "chosen[r * S + s] == j + 1", "chosen[r * S + s] == j"),
    "norm.c": ("layernorm_backward", "(d - mean_d - n * mean_dn) * s", "(d - mean_d) * s"),
    "optim.c": ("adamw", "(sqrtf(vi[i]) * root + eps)", "(sqrtf(vi[i]) * root)"),
    "recursion.c": ("halting_forward", "if (step == 1 || depth[r] >= step)", "if (step == 1 || depth[r] > step)"),
    "repack.c": ("repack", "(s[part - 4] >> 6) << 4", "(s[part - 4] >> 5) << 4"),
    "rope.c": ("rope", "aj * s + bj * c", "aj * s - bj * c"),
    "scan.c": ("scan_backward", "bt % T ? out + (bt - 1) * I", "bt ? out + (bt - 1) * I"),  # crosses the border of a sequence
}


def test_every_file_of_kernels_has_a_mutant_that_fits():
    files = {path.with_suffix(".c").name for path in (ROOT / "tests/kernels/cases").glob("*.py")} & set(
        os.listdir(ROOT / "kernels")
    )
    assert files == set(MUTANTS)
    for file, (_, text, fault) in MUTANTS.items():
        assert (ROOT / "kernels" / file).read_text().count(text) == 1, f"{file}: {text}"
        assert fault != text


@pytest.mark.slow  # it compiles every kernel
def test_each_mutant_turns_the_tests_of_its_kernel_red_and_no_others(tree):
    """All in one build: a file is compiled by itself, so what is wrong in one cannot show in another's kernels."""
    for file, (_, text, fault) in MUTANTS.items():
        path = tree / "kernels" / file
        source = path.read_text()
        assert source.count(text) == 1, f"{file}: {text}"
        path.write_text(source.replace(text, fault))
    built = build(tree)
    assert built.returncode == 0, built.stdout
    tests = run_kernel_tests(tree, "--tb=no", "-k", "oracle and not -2- and not -3-")  # on one thread
    assert tests.returncode == pytest.ExitCode.TESTS_FAILED, tests.stdout
    red = set(re.findall(r"^FAILED \S+\[(\w+)-1-(\w+)-", tests.stdout, re.MULTILINE))
    assert red == {(isa, kernel) for isa in _core.isas() for kernel, _, _ in MUTANTS.values()}


COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))


def library_of(sanitizer):
    library = subprocess.check_output([*COMPILER, f"-print-file-name=lib{sanitizer}.so"], text=True).strip()
    if not Path(library).is_absolute():
        pytest.skip(f"the compiler brings no {sanitizer}")
    return library


@pytest.mark.slow
def test_sanitizers_find_nothing(tree):
    library = library_of("asan")
    built = build(tree, GPT2C_SANITIZE="address,undefined")
    assert built.returncode == 0, built.stdout
    which = "--capture=sys", "-k", "oracle and -3- or beside or promises"  # every kernel, set and size, with three threads
    tests = run_kernel_tests(tree, *which, LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")
    assert tests.returncode == 0 and "Sanitizer" not in tests.stdout, tests.stdout


@pytest.fixture
def race_detector(tmp_path):
    """Variables of the environment with which a program that was built for it dies of a race: exit code 66."""
    library, openmp = library_of("tsan"), str(tmp_path / "gomp.so")
    how = "-shared", "-fPIC", "-fsanitize=thread", "-g", "-O1", "-pthread"
    subprocess.run([*COMPILER, *how, str(ROOT / "tests/kernels/gomp.c"), "-o", openmp], check=True)
    return {"LD_PRELOAD": f"{library}:{openmp}", "OPENBLAS_NUM_THREADS": "1", "TSAN_OPTIONS": "exitcode=66"}


RACE = """
#include "parallel.h"
_Thread_local int gpt2c_num_threads = 4;
int main(int count, char** words) {
    static int64_t sums[4], one;
    PARALLEL_FOR(1 << 20)
    for (int64_t i = 0; i < 100; i++) *(count > 1 ? &one : &sums[thread_index()]) += i;
    return 0;
}
"""


@pytest.mark.slow
def test_the_sanitizer_of_threads_sees_a_race_and_no_other(tmp_path, race_detector):
    (tmp_path / "race.c").write_text(RACE)
    words = *COMPILER, "-fopenmp", "-fsanitize=thread", "-I", str(ROOT / "kernels"), "race.c", "-o", "race"
    subprocess.run(words, cwd=tmp_path, check=True)
    for words, code in (["./race"], 0), (["./race", "one"], 66):
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | race_detector, capture_output=True, text=True)
        assert done.returncode == code and ("data race" in done.stderr) == (code != 0), done.stderr


@pytest.mark.slow
def test_the_sanitizer_of_threads_finds_nothing(tree, race_detector):
    """In any kernel, on any instruction set; and in models that run at once while settings change."""
    built = build(tree, GPT2C_SANITIZE="thread")
    assert built.returncode == 0, built.stdout
    tests = run_kernel_tests(tree, "--capture=sys", "-k", "threads_change_no_bit and -3]", **race_detector)
    assert tests.returncode == 0 and "Sanitizer" not in tests.stdout, tests.stdout
    paths = os.pathsep.join(map(str, (tree, tree / "tests")))
    models = run(tree, "tests/engine/at_once.py", "steps_keep_their_bits", **race_detector | {"PYTHONPATH": paths})
    assert models.returncode == 0 and "Sanitizer" not in models.stdout, models.stdout


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
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("*.so", ".*", "__pycache__", "build"))
    shutil.rmtree(source / "runs", ignore_errors=True)  # what somebody has trained here
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
