"""The peak FLOP/s and memory bandwidth of this machine, measured with kernels: what shares of peak refer to."""

import contextlib

import numpy as np

from gpt2c import settings
from gpt2c._core import Stream
from gpt2c.engine.arena import aligned

RUNS = 20
ROWS, STEPS = 4096, 2000  # of the peak kernel: many rows, for any number of threads to share evenly
FLOATS = 70_000_000  # more than caches hold; a power of two would make the arrays contend for cache sets
READING = 2**30  # bytes that a Reading reads
PRECISIONS = "fp32", "bf16"
FMA = "fp32 FMA"
PRODUCTS = (512, 768, 512), (2048, 768, 2048), (1024, 3072, 1024)  # (R, C, N): which is fastest depends on the caches


def unit(isa, precision):
    """What multiplies matrices in this precision (kernels/precision.h)."""
    if isa == "amx":
        return f"AMX {precision}"  # fp32: in three parts, on the tiles of bf16
    return "AVX-512 bf16" if (isa, precision) == ("avx512bf16", "bf16") else FMA


def measured_peak(isa, precision=None):
    """Floating-point operations per second, in GFLOP/s: the most that `isa` does on the threads in use, by the unit of matrix
    products in this precision, or else by multiply-adds.

    Independent multiply-adds in registers, nothing from memory. Of other units it is the most that a product of matrices gets
    out of them, packing included.
    """
    with _using(isa, precision):
        if precision and unit(isa, precision) != FMA:
            return max(2 * R * C * N / _product_seconds(R, C, N) for R, C, N in PRODUCTS) / 1e9
        sink, flops = aligned(ROWS), aligned(1)
        seconds = _fastest("peak", sink, flops, STEPS)
        return float(flops[0]) / seconds / 1e9


def raised(peak, speed, isa, precision=None):
    """The peak for a share of this speed, all in GFLOP/s. One that is exceeded was measured while the machine did something
    else: it is measured again, and what was reached counts too."""
    return peak if speed <= peak else max(peak, speed, measured_peak(isa, precision))


def measured_read_bandwidth():
    """Bytes per second, in GB/s: the most that the threads in use read from memory (global_norm)."""
    norm, a = aligned(1), aligned(FLOATS)
    a.fill(1)  # untouched zeros all share one page, which the caches do hold
    return a.nbytes / _fastest("global_norm", norm, a) / 1e9


class Reading:
    """Reads READING bytes, more than any cache holds, each time it is called, and returns the seconds; the fewest are `best`."""

    def __init__(self):
        self._arrays = norm, a = aligned(1), aligned(READING // 4)
        a.fill(1)
        stream = Stream("record")
        stream.global_norm(norm, a)
        self._program, self.best = stream.program(), np.inf

    def __call__(self):
        seconds = np.empty(1)
        self._program.run(seconds)
        self.best = min(self.best, float(seconds[0]))
        return float(seconds[0])


def measured_bandwidth():
    """Bytes per second, in GB/s: the most that the threads in use move between memory and processor.

    The better of reading an array and of adding one to another (residual_forward in place, so that nothing is fetched only
    to be overwritten).
    """
    a, b = aligned(FLOATS), aligned(FLOATS)
    a.fill(1)
    b.fill(1)
    update = 3 * a.nbytes / _fastest("residual_forward", a, a, b) / 1e9
    return max(measured_read_bandwidth(), update)


@contextlib.contextmanager
def _using(isa, precision):
    before = settings.info()
    settings.set_isa(isa)
    settings.set_matmul_precision(precision or before["matmul_precision"])
    try:
        yield
    finally:
        settings.set_isa(before["isa"])
        settings.set_matmul_precision(before["matmul_precision"])


def _product_seconds(R, C, N):
    out, x, w = aligned(R * N).reshape(R, N), aligned(R * C).reshape(R, C), aligned(N * C).reshape(N, C)
    x.fill(1)
    w.fill(1)
    return _fastest("matmul_forward", out, x, w)


def _fastest(kernel, *args):
    """Seconds of the fastest of several runs; the first ones warm up."""
    stream, seconds = Stream("record"), np.empty(RUNS)
    for _ in range(RUNS):
        getattr(stream, kernel)(*args)
    stream.program().run(seconds)
    return float(seconds.min())
