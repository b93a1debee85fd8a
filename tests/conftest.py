"""What any test can ask for: each instruction set, several numbers of threads, random numbers."""

import numpy as np
import pytest

import gpt2c
from gpt2c import _core

DEFAULT = gpt2c.info()


@pytest.fixture(params=_core.isas())
def isa(request):
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(DEFAULT["isa"])


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    _core.use_threads(request.param)
    yield request.param
    _core.use_threads(DEFAULT["threads"])


@pytest.fixture
def rng():
    return np.random.default_rng(1)
