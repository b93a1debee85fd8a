"""What any test can ask for: each instruction set, several numbers of threads, random numbers."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave their cores to others; read on import

import gpt2c
from gpt2c import _core

HERE = [str(Path(gpt2c.__file__).parents[1])]  # programs that are started find this gpt2c, whichever one is installed
os.environ["PYTHONPATH"] = os.pathsep.join([*HERE, *filter(None, [os.environ.get("PYTHONPATH")])])

for number, usual in (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL):
    if signal.getsignal(number) == signal.SIG_IGN:  # as nohup and a shell's & leave it, and every program started from here too
        signal.signal(number, usual)

DEFAULT = gpt2c.info()


def pytest_addoption(parser):
    parser.addoption("--draws", type=int, default=20, help="runs that runs/test_draws.py draws")
    parser.addoption("--first-draw", type=int, default=0, help="number of the first of them: its seed")


@pytest.fixture(params=_core.isas())
def isa(request):
    _core.use_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request):
    _core.use_threads(request.param)
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(autouse=True)
def default_settings():
    """Whatever a test chose, the next one starts with the defaults."""
    yield
    gpt2c.set_num_threads(DEFAULT["threads"])
    gpt2c.set_isa(DEFAULT["isa"])
    gpt2c.set_matmul_precision(DEFAULT["matmul_precision"])


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    """A run in this process does not measure what the machine can do: it takes longer than the run."""
    monkeypatch.setattr("gpt2c.runs.loop.measured_peak", lambda *_: 1e9)


@pytest.fixture
def undrawn(monkeypatch):
    """Nor does it draw its curves, which takes as long."""
    monkeypatch.setattr("gpt2c.support.pictures.available", lambda: False)


@pytest.fixture
def golden_file():
    """Compares a text with tests/golden/NAME; GPT2C_WRITE_GOLDEN=1 writes it instead."""

    def check(name, text):
        path = Path(__file__).parent / "golden" / name
        if os.environ.get("GPT2C_WRITE_GOLDEN"):
            path.write_text(text + "\n")
        assert text + "\n" == path.read_text()

    return check


@pytest.fixture
def write(tmp_path):
    """`write(name, content)` makes a file and gives its path."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def mpi():
    """MPI is optional: where it cannot be installed, or starts no ranks, there is nothing to test."""
    from mpi import why_not  # here, because the tests of the kernels do without

    if why := why_not():
        pytest.skip(why)


def _real(source):
    from real_models import found  # here, because the tests of the kernels do without

    path, why = found(source)
    return path or pytest.skip(why)


@pytest.fixture(scope="session")
def smollm2():
    """The path of SmolLM2-135M-Instruct in Q4_1."""
    from real_models import SMOLLM2

    return _real(SMOLLM2)


@pytest.fixture(scope="session")
def gemma():
    """The path of Gemma 3 270M, which has blocks of Q4_K, Q5_0, Q6_K and Q8_0."""
    from real_models import GEMMA

    return _real(GEMMA)
