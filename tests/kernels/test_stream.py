"""The door: what it refuses and how it says so, and that a recorded program does what running does."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from guarded import bits

import gpt2c
from gpt2c import _core


def floats(*shape):
    return np.zeros(shape, np.float32)


def ints(*shape):
    return np.zeros(shape, np.int32)


# ---- what is refused

REFUSED = {
    "shape": (
        "gelu_backward", (floats(5), floats(5), floats(4)), ValueError,
        "gelu_backward: x has shape (4,), expected (R) with R = 5 from dx"),
    "rows over several dimensions": (
        "layernorm_forward", (floats(2, 3, 5), floats(2, 3), floats(5), None, None, None), ValueError,
        "layernorm_forward: rstd has shape (5,), expected (R) with R = 6 from out, C = 5 from out"),
    "a multiple": (
        "cope_backward", (floats(1, 2, 8), None, None, None, None, None, None), ValueError,
        "cope_backward: dqkv has shape (1, 2, 8), expected (B, T, 3C) with B = 1 from dqkv, "
        + "T = 2 from dqkv"),
    "a fixed size": (
        "global_norm", (floats(2), floats(3)), ValueError,
        "global_norm: norm has shape (2,), expected (1)"),
    "dimensions": (
        "last_position_forward", (floats(6), floats(1, 2, 6)), ValueError,
        "last_position_forward: out has shape (6,), expected (B, C)"),
    "float64": (
        "gelu_forward", (floats(3), np.zeros(3)), TypeError,
        "gelu_forward: x: expected a contiguous float32 or int32 array, found float64"),
    "integers for reals": (
        "gelu_forward", (floats(3), ints(3)), TypeError,
        "gelu_forward: x holds int32, expected float32"),
    "reals for integers": (
        "crossentropy_backward", (floats(3, 5), floats(3, 5), floats(3), floats(3), floats(1), None, 5), TypeError,
        "crossentropy_backward: targets holds float32, expected int32"),
    "not contiguous": (
        "gelu_forward", (floats(3), floats(6)[::2]), TypeError,
        "gelu_forward: x: expected a contiguous float32 or int32 array, found float32, not contiguous"),
    "None": (
        "matmul_forward", (floats(3, 7), None, floats(7, 4), None), TypeError,
        "matmul_forward: x is None, expected an array"),
    "a rule on sizes": (
        "attention_forward", (floats(1, 2, 3, 5), floats(1, 3, 2), floats(1, 2, 7, 5), 2), ValueError,
        "attention_forward: H = 3, expected a multiple of K = 2"),
    "a sum of products": (
        "attention_forward", (floats(1, 2, 4, 5), floats(1, 4, 2), floats(1, 2, 7, 5), 2), ValueError,
        "attention_forward: G = 7, expected H+2*K = 8"),
    "a product of sizes": (
        "cope_forward", (floats(1, 2, 6), floats(1, 2, 2), None, None, floats(1, 2, 18), floats(2, 5, 4)), ValueError,
        "cope_forward: C = 6, expected H*D = 8"),
    "no heads": (
        "attention_forward", (floats(1, 2, 3, 5), floats(1, 3, 2), floats(1, 2, 3, 5), 0), ValueError,
        "attention_forward: H = 3, expected a multiple of K = 0"),
    "a rule on a scalar": (
        "crossentropy_backward", (floats(3, 5), floats(3, 5), floats(3), ints(3), floats(1), None, 6), ValueError,
        "crossentropy_backward: V = 6, expected <= P = 5"),
    "too many": (
        "gelu_forward", (floats(3), floats(3), floats(3)), TypeError,
        "gelu_forward: too many positional arguments"),
    "too few": (
        "matmul_forward", (floats(3, 7), floats(3, 5)), TypeError,
        "matmul_forward: missing a required argument: 'w'"),
    "some of those that come together": (
        "moe_forward",
        (floats(1, 2, 3), floats(1, 1, 2, 12), floats(1, 1, 2, 3), floats(1, 2, 1), floats(1, 2, 1), ints(1, 2, 1),
         floats(1, 2, 3), floats(2, 6, 3), floats(2, 6, 3), floats(2, 3, 6)), TypeError,
        "moe_forward: router is None, but probs is not: the arrays of 'routed' come together"),
    "an array without another that it needs": (
        "rmsnorm_backward", (floats(2, 3), floats(3), floats(2, 3), floats(2, 3), None, floats(2)), TypeError,
        "rmsnorm_backward: dw is given without w, which it needs"),
    "a scalar without the array that it needs": (
        "sgd", (floats(3), None, floats(3), 0.1, 0.9), TypeError,
        "sgd: momentum is given without m, which it needs"),
    "a rule on what may be absent": (
        "embedding_forward", (floats(1, 3, 2), ints(1, 3), floats(4, 2), floats(2, 2), ints(1)), ValueError,
        "embedding_forward: T = 3, expected <= S = 2"),
    "a sum of sizes": (
        "moe_forward",
        (floats(1, 2, 3), floats(1, 1, 2, 12), floats(1, 1, 2, 3), None, floats(1, 2, 1), ints(1, 2, 1),
         floats(1, 2, 3), floats(2, 6, 3), floats(2, 6, 3), floats(2, 3, 6)), ValueError,
        "moe_forward: N = 2, expected M+1 = 1"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["run", "record", "plan"])
@pytest.mark.parametrize("name, args, error, message", REFUSED.values(), ids=REFUSED)
def test_refused(mode, name, args, error, message):
    stream = _core.Stream(mode)
    with pytest.raises(error) as raised:
        getattr(stream, name)(*args)
    assert str(raised.value) == message
    assert len(stream.program()) == 0


def test_outputs_must_be_writable():
    x = floats(3)
    x.flags.writeable = False
    _core.Stream().gelu_forward(floats(3), x)
    message = "^gelu_forward: out: expected a contiguous writable float32 or int32 array, found float32, read-only$"
    with pytest.raises(TypeError, match=message):
        _core.Stream().gelu_forward(x, floats(3))


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match="^mode is 'replay', expected run, record or plan$"):
        _core.Stream("replay")
    with pytest.raises(ValueError, match="^instruction set 'mmx' is not usable here, expected one of baseline"):
        _core.use_isa("mmx")
    with pytest.raises(TypeError, match="^gelu_forward: missing a required argument: 'x'$"):
        _core.Stream().gelu_forward(out=floats(3), y=floats(3))
    with pytest.raises(TypeError, match="^gelu_forward: got an unexpected keyword argument 'y'$"):
        _core.Stream().gelu_forward(floats(3), floats(3), y=floats(3))
    with pytest.raises(TypeError, match="^gelu_forward: multiple values for argument 'out'$"):
        _core.Stream().gelu_forward(floats(3), floats(3), out=floats(3))


# ---- what is accepted


def test_arguments_by_name_and_defaults(rng):
    x, w, b = rng.standard_normal((3, 4, 5), np.float32), floats(5) + 1, floats(5)
    plain, named = ([floats(3, 4, 5), floats(3, 4), floats(3, 4)] for _ in range(2))
    _core.Stream().layernorm_forward(*plain, x, w, b, 1e-5)
    _core.Stream().layernorm_forward(*named, b=b, w=w, x=x)
    assert plain[0].any() and bits(plain) == bits(named)


def test_what_may_be_none_may_be_left_out(rng):
    x, w = rng.standard_normal((3, 5), np.float32), rng.standard_normal((7, 5), np.float32)
    out, again = floats(3, 7), floats(3, 7)
    _core.Stream().matmul_forward(out, x, w)
    _core.Stream().matmul_forward(again, x, w, None)
    assert out.any() and bits([out]) == bits([again])
    assert str(_core.DOORS["matmul_forward"].signature) == "(out, x, w, b=None, at=0)"
    assert str(_core.DOORS["embedding_forward"].signature) == "(out, tokens, wte, wpe, pos)"


@pytest.mark.parametrize("dtype", _core.DTYPES)
def test_a_buffer_shares_its_memory_and_keeps_it_alive(dtype):
    array = np.zeros((2, 3), _core.DTYPES[dtype].array)
    alive, buffer = weakref.ref(array), _core.buffer_of("name", array)
    assert (buffer.name, buffer.shape, buffer.dtype) == ("name", (2, 3), dtype)
    again = buffer.array
    again[...] = 7
    assert again.dtype == _core.DTYPES[dtype].array and again.shape == (2, 3) and (array == 7).all()
    del array, buffer
    gc.collect()
    assert alive() is not None and (again == 7).all()
    del again
    gc.collect()
    assert alive() is None


def test_planning_touches_nothing():
    nowhere = [_core.Buffer(name, (2, 3), 0, None) for name in ("out", "x")]
    x, stream = floats(6) + 1, _core.Stream("plan")
    stream.gelu_forward(*nowhere)
    stream.zero(x)
    assert (x == 1).all() and len(stream.program()) == 0


# ---- programs


@pytest.fixture
def arrays(rng):
    """What `block` works on; dx is there to be added to."""
    R, C = 5, 33
    x, dx, out, normed = rng.standard_normal((4, R, C), np.float32)
    w, b = rng.standard_normal((2, C), np.float32)
    return [dx, out, normed, floats(R), floats(R), x, w, b]


def block(stream, dx, out, normed, mean, rstd, x, w, b):
    """Three calls, each of which needs the one before; the last adds."""
    stream.layernorm_forward(normed, mean, rstd, x, w, b)
    stream.gelu_forward(out, normed)
    stream.gelu_backward(dx, out, normed)


def test_a_program_does_what_running_does_as_often_as_it_runs(isa, threads, arrays):
    recorded, stream = [a.copy() for a in arrays], _core.Stream("record")
    block(stream, *recorded)
    program = stream.program()
    assert bits(recorded) == bits(arrays)  # recording runs nothing
    runner, after = _core.Stream(), []
    for _ in range(2):
        block(runner, *arrays)
        program.run()
        assert bits(recorded) == bits(arrays)
        after.append(bits(arrays))
    assert after[0] != after[1] and len(runner.program()) == 0


def test_a_program_prints_as_one_line_per_call(arrays):
    stream = _core.Stream("record")
    block(stream, _core.buffer_of("dx0", arrays[0]), *arrays[1:])
    stream.matmul_forward(floats(3, 7), _core.buffer_of("h", floats(3, 5)), floats(7, 5), None)
    program = stream.program()
    assert str(program) == (
        "layernorm_forward(out, mean, rstd, x, w, b, R=5, C=33)\n"
        "gelu_forward(out, x, R=165)\n"
        "gelu_backward(dx0, dout, x, R=165)\n"
        "matmul_forward(out, h, w, NULL, R=3, P=7, C=5, N=7)"
    )
    assert len(program) == 4 and program.calls[3] == ("matmul_forward", {"R": 3, "P": 7, "C": 5, "N": 7})
    assert len(stream.program()) == 0  # what was recorded has been taken


def test_a_program_keeps_its_memory_alive_and_lets_go_of_it(arrays):
    stream = _core.Stream("record")
    block(stream, *arrays)
    expected = [a.copy() for a in arrays]
    block(_core.Stream(), *expected)
    program, alive = stream.program(), [weakref.ref(a) for a in arrays]
    arrays.clear()
    gc.collect()
    assert all(ref() is not None for ref in alive)
    program.run()
    assert bits(ref() for ref in alive) == bits(expected)
    del program
    gc.collect()
    assert [ref() for ref in alive] == [None] * len(alive)


def test_a_program_runs_on_the_instruction_set_of_the_moment(arrays):
    """Each set has vectors of its own length, by which `peak` counts."""
    recorded, flops, stream = [a.copy() for a in arrays], floats(1), _core.Stream("record")
    block(stream, *recorded)
    stream.peak(floats(4), flops, 10)
    program, counted = stream.program(), set()
    for isa in _core.isas():
        _core.use_isa(isa)
        program.run()
        block(_core.Stream(), *arrays)
        assert bits(recorded) == bits(arrays)
        counted.add(flops[0])
    assert len(counted) == len({"avx512" if isa == "amx" else isa.removesuffix("bf16") for isa in _core.isas()})


def test_a_program_times_its_calls(arrays):
    stream = _core.Stream("record")
    block(stream, *arrays)
    program, seconds = stream.program(), np.full(3, -1.0)
    program.run(seconds)
    assert (seconds >= 0).all() and seconds.sum() > 0
    with pytest.raises(ValueError, match="^seconds has 2 entries, the program 3 calls$"):
        program.run(np.zeros(2))


def test_an_empty_program_runs():
    _core.Stream("record").program().run()


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_count_as_zero_in_kernels_alone(threads):
    _core.use_threads(threads)
    tiny = np.full(1 << 17, 1e-40, np.float32)
    out = np.ones_like(tiny)
    _core.Stream().residual_forward(out, tiny, tiny)
    assert not out.any()  # on every thread
    assert (tiny + tiny).all()  # and nowhere else


THREADS_BEFORE = """
import ctypes
import numpy as np
from gpt2c import _core

task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
ctypes.CDLL("libgomp.so.1").GOMP_parallel(task, None, 2, 0)
_core.use_threads(2)
tiny = np.full(1 << 17, 1e-40, np.float32)
out = np.ones_like(tiny)
_core.Stream().residual_forward(out, tiny, tiny)
assert not out.any()
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not gpt2c.info()["openmp"] or not gpt2c.info()["compiler"].startswith("gcc"),
    reason="there is no OpenMP of gcc's",
)
def test_threads_that_were_there_before_count_so_too():
    """Those that another library of the process has started."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS_BEFORE],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.returncode, done.stderr
