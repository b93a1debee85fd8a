"""The peak FLOP/s and memory bandwidth of this machine, measured with kernels: what shares of peak refer to."""

import numpy as np

from gpt2c._core import Stream, use_isa
from gpt2c.engine.arena import aligned

RUNS = 20
ROWS, STEPS = 4096, 2000  # of the peak kernel: many rows, for any number of threads to share evenly
FLOATS = 70_000_000  # more than caches hold; a power of two would make the arrays contend for cache sets


def measured_peak(isa):
    """Floating-point operations per second, in GFLOP/s: the most that `isa` does on the threads in use.

    Independent multiply-adds in registers, nothing from memory. `isa` stays the instruction set in use.
    """
    use_isa(isa)
    sink, flops = aligned(ROWS), aligned(1)
    seconds = _fastest("peak", sink, flops, STEPS)
    return float(flops[0]) / seconds / 1e9


def measured_read_bandwidth():
    """Bytes per second, in GB/s: the most that the threads in use read from memory (global_norm)."""
    norm, a = aligned(1), aligned(FLOATS)
    a.fill(1)  # untouched zeros all share one page, which the caches do hold
    return a.nbytes / _fastest("global_norm", norm, a) / 1e9


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


def _fastest(kernel, *args):
    """Seconds of the fastest of several runs; the first ones warm up."""
    stream, seconds = Stream("record"), np.empty(RUNS)
    for _ in range(RUNS):
        getattr(stream, kernel)(*args)
    stream.program().run(seconds)
    return float(seconds.min())
