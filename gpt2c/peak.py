"""What this machine can do at most, measured with kernels: a share of peak is a share of this."""

import numpy as np

from gpt2c._core import Stream, use_isa
from gpt2c.arena import aligned

RUNS = 20
ROWS, STEPS = 4096, 2000  # of the peak kernel: many equal rows, so that any number of threads shares them evenly
FLOATS = 1 << 26  # 256 MB in each array: more than caches hold


def measured_peak(isa):
    """The most floating-point operations that `isa` does on the threads in use, in GFLOP/s.

    Independent multiply-adds in registers, nothing from memory. `isa` stays the instruction set in use.
    """
    use_isa(isa)
    sink, flops = aligned(ROWS), aligned(1)
    seconds = _fastest("peak", sink, flops, STEPS)
    return float(flops[0]) / seconds / 1e9


def measured_bandwidth():
    """The most bytes that the threads in use move between memory and the processor, in GB/s.

    The better of reading one array (global_norm) and of reading two and writing a third (residual_forward).
    """
    norm, a, b, out = aligned(1), aligned(FLOATS), aligned(FLOATS), aligned(FLOATS)
    a.fill(1)  # untouched zeros all share one page, which the caches do hold
    b.fill(1)
    read = a.nbytes / _fastest("global_norm", norm, a)
    stream = 3 * a.nbytes / _fastest("residual_forward", out, a, b)
    return max(read, stream) / 1e9


def _fastest(kernel, *args):
    """Seconds of the fastest of several runs; the first ones warm up."""
    stream, seconds = Stream("record"), np.empty(RUNS)
    for _ in range(RUNS):
        getattr(stream, kernel)(*args)
    stream.program().run(seconds)
    return float(seconds.min())
