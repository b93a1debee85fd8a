"""What of the kernels is measured: each at the shapes of a GPT-2, verified first, and how much work it is."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt2c._core import Stream
from gpt2c.bench import kernel_setups as setups
from gpt2c.engine.flops import flops
from gpt2c.errors import Gpt2cError

GPT2_124M = {"B": 4, "lengths": (64, 1024), "C": 768, "H": 12, "V": 50257, "P": 50304, "parameters": 124_475_904}
HALF_UNIT = 2.0**-24  # what rounding to float32 changes at most, relatively
READ_ONLY = ("matmul_one_row", "global_norm")  # what they write is next to nothing


class Case(NamedTuple):
    setup: Callable  # of kernel_setups
    label: str
    sizes: dict  # what the set-up is called with

    @property
    def kernel(self):
        return self.setup.__name__

    @property
    def name(self):
        return f"{self.kernel}-{self.label}"


def _case(setup, label, **sizes):
    return Case(setup, label, sizes)


def gpt2_cases(B, lengths, C, H, V, P, parameters):
    """Every kernel of a training step at B x each length, then of decoding one token, then of an update."""
    products = [  # label, inputs, outputs, bias
        ("qkv", C, 3 * C, 1),
        ("attproj", C, C, 1),
        ("fc", C, 4 * C, 1),
        ("fcproj", 4 * C, C, 1),
        ("classifier", C, P, 0),
    ]
    for T in lengths:
        R, label = B * T, f"T{T}"
        for product, inputs, outputs, bias in products:
            yield _case(setups.matmul_forward, f"{product}-{label}", R=R, C=inputs, N=outputs, bias=bias)
            yield _case(setups.matmul_backward_x, f"{product}-{label}", R=R, C=inputs, N=outputs)
            yield _case(setups.matmul_backward_w, f"{product}-{label}", R=R, C=inputs, N=outputs, bias=bias)
        yield _case(setups.attention_forward, label, B=B, T=T, C=C, H=H)
        yield _case(setups.attention_backward, label, B=B, T=T, C=C, H=H)
        yield _case(setups.layernorm_forward, label, R=R, C=C)
        yield _case(setups.layernorm_backward, label, R=R, C=C)
        yield _case(setups.rmsnorm_forward, label, R=R, C=C)
        yield _case(setups.rmsnorm_backward, label, R=R, C=C)
        yield _case(setups.gelu_forward, label, R=R * 4 * C)
        yield _case(setups.gelu_backward, label, R=R * 4 * C)
        yield _case(setups.gelu_erf_forward, label, R=R * 4 * C)
        yield _case(setups.gelu_erf_backward, label, R=R * 4 * C)
        yield _case(setups.squared_relu_forward, label, R=R * 4 * C)
        yield _case(setups.squared_relu_backward, label, R=R * 4 * C)
        yield _case(setups.swiglu_forward, label, R=R * 4 * C)
        yield _case(setups.swiglu_backward, label, R=R * 4 * C)
        yield _case(setups.mingru_gates_forward, label, R=R, I=C)
        yield _case(setups.mingru_gates_backward, label, R=R, I=C)
        yield _case(setups.scan_forward, label, B=B, T=T, I=C)
        yield _case(setups.scan_backward, label, B=B, T=T, I=C)
        yield _case(setups.dropout_residual_forward, label, R=R * C)
        yield _case(setups.dropout_residual_backward, label, R=R * C)
        yield _case(setups.residual_forward, label, R=R * C)
        yield _case(setups.residual_backward, label, R=R * C)
        yield _case(setups.crossentropy_forward, label, R=R, P=P, V=V)
        yield _case(setups.crossentropy_backward, label, R=R, P=P, V=V)
        yield _case(setups.embedding_forward, label, B=B, T=T, C=C, V=V)
        yield _case(setups.embedding_backward, label, B=B, T=T, C=C, V=V)
    for product, inputs, outputs, bias in products:
        L = math.ceil(parameters / (inputs * outputs))
        yield _case(setups.matmul_one_row, product, L=L, C=inputs, N=outputs, bias=bias)
    S = lengths[-1]
    yield _case(setups.attention_one_row, f"S{S}", L=math.ceil(parameters / (2 * S * C)), S=S, C=C, H=H)
    yield _case(setups.adamw, "parameters", R=parameters)
    yield _case(setups.global_norm, "gradients", R=parameters)


def prepare(case):
    """(the recorded calls of a case, the same with NumPy or None), once the results are verified."""
    stream = Stream("record")
    checks, numpy = case.setup(stream, **case.sizes)
    program = stream.program()
    program.run()
    for got, want, roundings in checks:
        # Independent roundings add up like the root of their number; 4 is room for those within the terms.
        error = np.linalg.norm(got() - want) / np.linalg.norm(want)
        allowed = 4 * HALF_UNIT * math.sqrt(roundings)
        if not error <= allowed:
            raise Gpt2cError(
                f"{case.name} is wrong by {error:.1e} of its norm, expected at most {allowed:.1e}: it is not "
                "timed; please report this with the output of gpt2c.info()"
            )
    return program, numpy


def amount(case, program):
    """(floating-point operations, bytes to and from memory) of a case.

    An element counts 4 bytes when it must be read and 4 when it must be written, whatever the caches do.
    """
    count = OPERATIONS.get(case.setup)
    return count(**case.sizes) if count else flops(program), BYTES[case.setup](**case.sizes)


def bound_by_memory(case):
    """Whether its speed is counted in bytes rather than in operations."""
    return case.setup in OPERATIONS


# Operations of the cases that are bound by memory: each +, -, x, /, exp and sqrt of the formula in
# kernels/gpt2c.h is one. gpt2c.flops counts those of the others.
OPERATIONS = {
    setups.matmul_one_row: lambda L, C, N, bias: L * N * (2 * C + bias),
    setups.attention_one_row: lambda L, S, C, H: 4 * L * S * C,
    setups.layernorm_forward: lambda R, C: 8 * R * C,
    setups.layernorm_backward: lambda R, C: 14 * R * C,
    setups.rmsnorm_forward: lambda R, C: 4 * R * C,
    setups.rmsnorm_backward: lambda R, C: 10 * R * C,
    setups.gelu_forward: lambda R: 8 * R,
    setups.gelu_backward: lambda R: 16 * R,
    setups.gelu_erf_forward: lambda R: 30 * R,
    setups.gelu_erf_backward: lambda R: 34 * R,
    setups.squared_relu_forward: lambda R: 2 * R,
    setups.squared_relu_backward: lambda R: 4 * R,
    setups.swiglu_forward: lambda R: 5 * R,
    setups.swiglu_backward: lambda R: 12 * R,
    setups.mingru_gates_forward: lambda R, I: 10 * R * I,
    setups.mingru_gates_backward: lambda R, I: 16 * R * I,
    setups.scan_forward: lambda B, T, I: 2 * B * T * I,
    setups.scan_backward: lambda B, T, I: 3 * B * T * I,
    setups.dropout_residual_forward: lambda R: 2 * R,
    setups.dropout_residual_backward: lambda R: R,
    setups.residual_forward: lambda R: R,
    setups.residual_backward: lambda R: 2 * R,
    setups.crossentropy_forward: lambda R, P, V: 3 * R * V,
    setups.crossentropy_backward: lambda R, P, V: 3 * R * V,
    setups.embedding_forward: lambda B, T, C, V: B * T * C,
    setups.embedding_backward: lambda B, T, C, V: 2 * B * T * C,
    setups.adamw: lambda R: 17 * R,
    setups.global_norm: lambda R: 2 * R,
}

BYTES = {
    setups.matmul_forward: lambda R, C, N, bias: 4 * (R * (C + N) + N * (C + bias)),
    setups.matmul_backward_x: lambda R, C, N: 4 * (R * (2 * C + N) + N * C),
    setups.matmul_backward_w: lambda R, C, N, bias: 4 * (R * (C + N) + 2 * N * (C + bias)),
    setups.matmul_one_row: lambda L, C, N, bias: 4 * L * (N * (C + 1 + bias) + C),
    setups.attention_forward: lambda B, T, C, H: 4 * B * T * (4 * C + H),
    setups.attention_backward: lambda B, T, C, H: 4 * B * T * (11 * C + H),
    setups.attention_one_row: lambda L, S, C, H: 4 * L * C * (2 * S + 4),
    setups.layernorm_forward: lambda R, C: 4 * (2 * R * C + 2 * R + 2 * C),
    setups.layernorm_backward: lambda R, C: 4 * (4 * R * C + 2 * R + 5 * C),
    setups.rmsnorm_forward: lambda R, C: 4 * (2 * R * C + R + C),
    setups.rmsnorm_backward: lambda R, C: 4 * (4 * R * C + R + 3 * C),
    setups.gelu_forward: lambda R: 4 * 2 * R,
    setups.gelu_backward: lambda R: 4 * 4 * R,
    setups.gelu_erf_forward: lambda R: 4 * 2 * R,
    setups.gelu_erf_backward: lambda R: 4 * 4 * R,
    setups.squared_relu_forward: lambda R: 4 * 2 * R,
    setups.squared_relu_backward: lambda R: 4 * 4 * R,
    setups.swiglu_forward: lambda R: 4 * 3 * R,
    setups.swiglu_backward: lambda R: 4 * 7 * R,
    setups.mingru_gates_forward: lambda R, I: 4 * 4 * R * I,
    setups.mingru_gates_backward: lambda R, I: 4 * 8 * R * I,
    setups.scan_forward: lambda B, T, I: 4 * (3 * B * T * I + 2 * B * I),
    setups.scan_backward: lambda B, T, I: 4 * (5 * B * T * I + 2 * B * I),
    setups.dropout_residual_forward: lambda R: 4 * 3 * R,
    setups.dropout_residual_backward: lambda R: 4 * 3 * R,
    setups.residual_forward: lambda R: 4 * 3 * R,
    setups.residual_backward: lambda R: 4 * 5 * R,
    setups.crossentropy_forward: lambda R, P, V: 4 * R * (V + 3),
    setups.crossentropy_backward: lambda R, P, V: 4 * R * (V + P + 2),
    setups.embedding_forward: lambda B, T, C, V: 4 * T * (2 * B * C + C + B),
    setups.embedding_backward: lambda B, T, C, V: 4 * T * (3 * B * C + 2 * C + B),
    setups.adamw: lambda R: 4 * 7 * R,
    setups.global_norm: lambda R: 4 * R,
}
