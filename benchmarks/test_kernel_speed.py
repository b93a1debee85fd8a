"""The speed of every kernel at the shapes of GPT-2 124M. A kernel whose result is wrong is not timed.

A setup makes the arrays, gives the calls to a recording stream, and returns what they should compute.
The shapes are in gpt2_cases, the bytes that cases bound by memory move in BYTES.
"""

import math
from typing import NamedTuple

import numpy as np
import reference

import gpt2c
from gpt2c import _core
from gpt2c.arena import aligned
from gpt2c.work import flops

HALF_UNIT = 2.0**-24  # what rounding to float32 changes at most, relatively
GPT2 = {"B": 4, "lengths": (64, 1024), "C": 768, "H": 12, "V": 50257, "P": 50304, "parameters": 124_475_904}
SMALL = {"B": 2, "lengths": (5, 67), "C": 96, "H": 3, "V": 1009, "P": 1024, "parameters": 100_003}
START = np.zeros(1, np.int32)  # position

rng = np.random.default_rng(1)


class Case(NamedTuple):
    setup: callable
    name: str
    sizes: dict


def case(setup, name, **sizes):
    return Case(setup, name, sizes)


class Check(NamedTuple):
    got: callable  # looks at what the kernel stored, or at a sample of it
    want: np.ndarray  # in float64
    roundings: int  # behind one element: the length of its sum, or the operations that lead to it


def zeros(*shape):
    return aligned(math.prod(shape)).reshape(shape)


def nans(*shape):
    """For outputs: what is not written shows."""
    array = zeros(*shape)
    array.fill(np.nan)
    return array


def normal(*shape):
    return rng.standard_normal(out=zeros(*shape), dtype=np.float32)


def tokens_below(V, *shape):
    return rng.integers(V, size=shape, dtype=np.int32)


def sample(n, most=16):
    """Up to `most` of the indices below n, evenly spread; the first and the last are among them."""
    return np.unique(np.linspace(0, n - 1, most).astype(int))


def elements(R):
    return sample(R, 1 << 14)


def matmul_forward(s, R, C, N, bias):
    out, x, w, b = nans(R, N), normal(R, C), normal(N, C), normal(N) if bias else None
    s.matmul_forward(out, x, w, b)
    rows = sample(R)
    return [Check(lambda: out[rows], reference.matmul_forward(x[rows], w, b), C)]


def matmul_backward_x(s, R, C, N):
    dx, dout, w = zeros(R, C), normal(R, N), normal(N, C)
    s.matmul_backward_x(dx, dout, w)
    rows = sample(R)
    return [Check(lambda: dx[rows], dout[rows].astype(np.float64) @ w, N)]


def matmul_backward_w(s, R, C, N, bias):
    dw, db, dout, x = zeros(N, C), zeros(N) if bias else None, normal(R, N), normal(R, C)
    s.matmul_backward_w(dw, db, dout, x)
    outputs = sample(N)
    dout = dout[:, outputs].astype(np.float64)
    checks = [Check(lambda: dw[outputs], dout.T @ x, R)]
    if bias:
        checks.append(Check(lambda: db[outputs], dout.sum(axis=0), R))
    return checks


def matmul_one_row(s, L, C, N, bias):
    """L weights in turn, as many as make up a model: they come from memory, as in decoding."""
    out, x, w, b = nans(L, 1, N), normal(1, C), normal(L, N, C), normal(N) if bias else None
    for i in range(L):
        s.matmul_forward(out[i], x, w[i], b)
    return [Check(lambda: out, np.stack([reference.matmul_forward(x, wi, b) for wi in w]), C)]


def by_head(x, H, C, chosen):
    """(B, T, nC) -> (chosen, T, nC / H): some of the B * H heads, as a batch with one head each."""
    B, T, width = x.shape
    x = x.reshape(B, T, width // C, H, C // H).transpose(0, 3, 1, 2, 4)
    return x.reshape(B * H, T, width // H)[chosen]


def attention_forward(s, B, T, C, H):
    out, lse, qkv = nans(B, T, C), nans(B, H, T), normal(B, T, 3 * C)
    s.attention_forward(out, lse, qkv)
    heads = sample(B * H, 4)
    want, _, _, want_lse = reference.attention_forward(by_head(qkv, H, C, heads), 1)
    return [
        Check(lambda: by_head(out, H, C, heads), want, T + C // H),
        Check(lambda: lse.reshape(B * H, 1, T)[heads], want_lse, T + C // H),
    ]


def attention_backward(s, B, T, C, H):
    dqkv, dout, qkv = zeros(B, T, 3 * C), normal(B, T, C), normal(B, T, 3 * C)
    out, lse = nans(B, T, C), nans(B, H, T)
    _core.Stream().attention_forward(out, lse, qkv)
    s.attention_backward(dqkv, dout, qkv, out, lse)
    heads = sample(B * H, 4)
    some_qkv, some_dout = by_head(qkv, H, C, heads), by_head(dout, H, C, heads)
    att = reference.attention_forward(some_qkv, 1)[2]
    want = reference.attention_backward(some_dout, some_qkv, att, 1)
    return [Check(lambda: by_head(dqkv, H, C, heads), want, T + C // H)]


def attention_one_row(s, L, S, C, H):
    """The last position of a full context; L caches in turn, for the same reason."""
    out, qkv, k, v = nans(L, 1, 1, C), normal(1, 1, 3 * C), normal(L, 1, S, C), normal(L, 1, S, C)
    last = np.array([S - 1], np.int32)
    for i in range(L):
        s.attention_cached_forward(out[i], k[i], v[i], qkv, last, H)
    want = np.stack([reference.attention_cached_forward(qkv, k[i], v[i], S - 1, H)[0] for i in range(L)])
    return [Check(lambda: out, want, S + C // H)]


def layernorm_forward(s, R, C):
    out, mean, rstd, x, w, b = nans(R, C), nans(R), nans(R), normal(R, C), normal(C), normal(C)
    s.layernorm_forward(out, mean, rstd, x, w, b)
    rows = sample(R)
    want, want_mean, want_rstd = reference.layernorm_forward(x[rows], w, b)
    return [
        Check(lambda: out[rows], want, C),
        Check(lambda: mean[rows], want_mean, C),
        Check(lambda: rstd[rows], want_rstd, C),
    ]


def layernorm_backward(s, R, C):
    dx, dw, db, dout, x, w = zeros(R, C), zeros(C), zeros(C), normal(R, C), normal(R, C), normal(C)
    mean, rstd = zeros(R), zeros(R)
    _, mean[:], rstd[:] = reference.layernorm_forward(x, w, 0)
    s.layernorm_backward(dx, dw, db, dout, x, w, mean, rstd)
    want_dx, want_dw, want_db = reference.layernorm_backward(dout, x, w, mean, rstd)
    return [Check(lambda: dx, want_dx, C), Check(lambda: dw, want_dw, R), Check(lambda: db, want_db, R)]


def gelu_forward(s, R):
    out, x = nans(R), normal(R)
    s.gelu_forward(out, x)
    some = elements(R)
    return [Check(lambda: out[some], reference.gelu_forward(x[some]), 16)]


def gelu_backward(s, R):
    dx, dout, x = zeros(R), normal(R), normal(R)
    s.gelu_backward(dx, dout, x)
    some = elements(R)
    return [Check(lambda: dx[some], reference.gelu_backward(dout[some], x[some]), 32)]


def residual_forward(s, R):
    out, a, b = nans(R), normal(R), normal(R)
    s.residual_forward(out, a, b)
    some = elements(R)
    return [Check(lambda: out[some], reference.residual_forward(a[some], b[some]), 1)]


def residual_backward(s, R):
    da, db, dout = zeros(R), zeros(R), normal(R)
    s.residual_backward(da, db, dout)
    some = elements(R)
    return [Check(lambda: da[some], dout[some], 1), Check(lambda: db[some], dout[some], 1)]


def crossentropy_forward(s, R, P, V):
    loss, count, losses, lse = nans(1), nans(1), nans(R), nans(R)
    logits, targets = normal(R, P), tokens_below(V, R)
    s.crossentropy_forward(loss, count, losses, lse, logits, targets, V)
    rows = sample(R)
    want, want_lse, _ = reference.crossentropy_forward(logits[rows], targets[rows], V)
    return [Check(lambda: losses[rows], want, V), Check(lambda: lse[rows], want_lse, V)]


def crossentropy_backward(s, R, P, V):
    """In place, as in training: the gradient of the gradient of ... costs the same each time."""
    loss, count, losses, lse = nans(1), nans(1), nans(R), nans(R)
    logits, targets = normal(R, P), tokens_below(V, R)
    _core.Stream().crossentropy_forward(loss, count, losses, lse, logits, targets, V)
    s.crossentropy_backward(logits, logits, lse, targets, count, V)
    rows = sample(R)
    want = reference.crossentropy_backward(logits[rows], targets[rows], V) * len(rows)
    return [Check(lambda: logits[rows], want / R, V)]  # the mean is over all rows


def embedding_forward(s, B, T, C, V):
    out, tokens, wte, wpe = nans(B, T, C), tokens_below(V, B, T), normal(V, C), normal(T, C)
    s.embedding_forward(out, tokens, wte, wpe, START)
    return [Check(lambda: out, reference.embedding_forward(tokens, wte, wpe), 1)]


def embedding_backward(s, B, T, C, V):
    dwte, dwpe, dout, tokens = zeros(V, C), zeros(T, C), normal(B, T, C), tokens_below(V, B, T)
    s.embedding_backward(dwte, dwpe, dout, tokens, START)
    want_dwte, want_dwpe = reference.embedding_backward(dout, tokens, V, T)
    return [Check(lambda: dwte, want_dwte, B), Check(lambda: dwpe, want_dwpe, B)]


def adamw(s, R):
    params, m, v, grads = normal(R), normal(R), normal(R), normal(R)
    np.multiply(params, 0.02, out=params)  # so small that an error in the update shows beside it
    np.square(v, out=v)
    lr, beta1, beta2, eps, decay, t = 6e-4, 0.9, 0.95, 1e-8, 0.1, 10
    s.adamw(params, m, v, grads, lr, beta1, beta2, eps, decay, 1 - beta1**t, 1 - beta2**t)
    some = elements(R)
    want = reference.adamw(params[some], grads[some], m[some], v[some], lr, beta1, beta2, eps, decay, t)
    return [Check(lambda array=array: array[some], w, 16) for array, w in zip((params, m, v), want)]


def global_norm(s, R):
    norm, x = nans(1), normal(R)
    s.global_norm(norm, x)
    parts = [reference.global_norm(part) for part in np.array_split(x, 64)]  # in float64 it would be 1 GB
    want = reference.global_norm(np.array(parts))
    return [Check(lambda: norm, want, 1 << 14)]  # the kernel, too, sums longer parts in float64


# Each element that must be read and each that must be written counts once, with 4 bytes. Cases that are
# not listed are bound by arithmetic.
BYTES = {
    matmul_one_row: lambda L, C, N, bias: 4 * L * (N * (C + 1 + bias) + C),
    attention_one_row: lambda L, S, C, H: 4 * L * C * (2 * S + 4),
    layernorm_forward: lambda R, C: 4 * (2 * R * C + 2 * R + 2 * C),
    layernorm_backward: lambda R, C: 4 * (4 * R * C + 2 * R + 5 * C),
    gelu_forward: lambda R: 4 * 2 * R,
    gelu_backward: lambda R: 4 * 4 * R,
    residual_forward: lambda R: 4 * 3 * R,
    residual_backward: lambda R: 4 * 5 * R,
    crossentropy_forward: lambda R, P, V: 4 * R * (V + 3),
    crossentropy_backward: lambda R, P, V: 4 * R * (V + P + 2),
    embedding_forward: lambda B, T, C, V: 4 * T * (2 * B * C + C + B),
    embedding_backward: lambda B, T, C, V: 4 * T * (3 * B * C + 2 * C + B),
    adamw: lambda R: 4 * 7 * R,
    global_norm: lambda R: 4 * R,
}


def gpt2_cases(B, lengths, C, H, V, P, parameters):
    products = [  # name, inputs, outputs, bias
        ("qkv", C, 3 * C, 1),
        ("attproj", C, C, 1),
        ("fc", C, 4 * C, 1),
        ("fcproj", 4 * C, C, 1),
        ("classifier", C, P, 0),
    ]
    for T in lengths:
        R, name = B * T, f"T{T}"
        for product, inputs, outputs, bias in products:
            yield case(matmul_forward, f"{product}-{name}", R=R, C=inputs, N=outputs, bias=bias)
            yield case(matmul_backward_x, f"{product}-{name}", R=R, C=inputs, N=outputs)
            yield case(matmul_backward_w, f"{product}-{name}", R=R, C=inputs, N=outputs, bias=bias)
        yield case(attention_forward, name, B=B, T=T, C=C, H=H)
        yield case(attention_backward, name, B=B, T=T, C=C, H=H)
        yield case(layernorm_forward, name, R=R, C=C)
        yield case(layernorm_backward, name, R=R, C=C)
        yield case(gelu_forward, name, R=R * 4 * C)
        yield case(gelu_backward, name, R=R * 4 * C)
        yield case(residual_forward, name, R=R * C)
        yield case(residual_backward, name, R=R * C)
        yield case(crossentropy_forward, name, R=R, P=P, V=V)
        yield case(crossentropy_backward, name, R=R, P=P, V=V)
        yield case(embedding_forward, name, B=B, T=T, C=C, V=V)
        yield case(embedding_backward, name, B=B, T=T, C=C, V=V)
    for product, inputs, outputs, bias in products:
        L = math.ceil(parameters / (inputs * outputs))
        yield case(matmul_one_row, product, L=L, C=inputs, N=outputs, bias=bias)
    S = lengths[-1]
    yield case(attention_one_row, f"S{S}", L=math.ceil(parameters / (2 * S * C)), S=S, C=C, H=H)
    yield case(adamw, "parameters", R=parameters)
    yield case(global_norm, "gradients", R=parameters)


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    timed = option("benchmark_enable") or not option("benchmark_disable")
    cases = list(gpt2_cases(**GPT2 if timed else SMALL))
    metafunc.parametrize("isa", _core.isas() if option("--isas", None) == "all" else _core.isas()[-1:])
    metafunc.parametrize("case", cases, ids=[f"{c.setup.__name__}-{c.name}" for c in cases])


def verify(checks):
    """Independent roundings add up like the root of their number; 4 is room for those within the terms."""
    for got, want, roundings in checks:
        error = np.linalg.norm(got() - want) / np.linalg.norm(want)
        assert error <= 4 * HALF_UNIT * math.sqrt(roundings)


def test_kernel_speed(isa, case, threads, limit, speeds, benchmark):
    gpt2c.set_isa(isa)
    stream = _core.Stream("record")
    checks = case.setup(stream, **case.sizes)
    program = stream.program()
    program.run()
    verify(checks)

    benchmark(program.run)
    if benchmark.enabled:
        count = BYTES.get(case.setup)
        work, unit = (count(**case.sizes), "GB/s") if count else (flops(program), "GFLOP/s")
        seconds = benchmark.stats["median"]
        speed = work / seconds / 1e9
        benchmark.extra_info.update(
            kernel=case.setup.__name__,
            case=case.name,
            shape=" ".join(f"{letter}={size}" for letter, size in case.sizes.items()),
            isa=isa,
            threads=threads,
            ms=seconds * 1e3,
            speed=speed,
            unit=unit,
            limit=limit(isa, unit),
            share=speed / limit(isa, unit),
        )
        speeds.append(benchmark.extra_info)
