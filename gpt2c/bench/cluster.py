"""Data parallel scaling: measured on the present ranks, predicted for more of them.

An update with m batches on each of N ranks, one to a machine, of a model of S bytes takes

    step(N)     = m batch + update + exchange(N)
    exchange(N) = 2 S (N-1)/N / bandwidth  +  S (N-1)/N / summing  +  latency (N-1) (pieces(N) + 1)
    pieces(N)   = ceil(S / N / 1 MiB)

because the exchange is a reduce-scatter in pieces, then an all-gather, and does not overlap with computation. batch, update and
summing are measured here; bandwidth (bytes/s, each way) and latency (s, of one message) are the link's.
"""

import math
import statistics
import time
from typing import NamedTuple

import numpy as np

from gpt2c.bench.measure import batch
from gpt2c.training.optimizers import Optimizer
from gpt2c.training.ranks import CHUNK

SIZES = 16, 1 << 10, 1 << 16, 1 << 20, 1 << 24  # floats
NODES = tuple(2**n for n in range(11))
RUNS = 5


class Link(NamedTuple):
    bandwidth: float  # bytes/s
    latency: float  # s


class Costs(NamedTuple):
    """Seconds on one rank."""

    batch: float  # forward and backward
    update: float  # by the optimizer
    summing: float  # bytes/s


def exchange(S, N, link, summing):
    """Seconds to sum S bytes of gradients over N ranks and to bring the sums to all."""
    others, pieces = S * (N - 1) / N, math.ceil(S / N / (4 * CHUNK))
    return 2 * others / link.bandwidth + others / summing + link.latency * (N - 1) * (pieces + 1)


def step(S, N, batches, costs, link):
    """Seconds of an update with so many batches on each of N ranks."""
    return batches * costs.batch + costs.update + (exchange(S, N, link, costs.summing) if N > 1 else 0)


def median(work, ranks, runs=RUNS):
    """The median seconds of work(), which all ranks begin together; the first run warms up."""
    times = []
    for _ in range(1 + runs):
        ranks.barrier()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return ranks.all_reduce_max(statistics.median(times[1:]))[0]


def sums(ranks):
    """Yields (floats, seconds) of sums over all ranks that all have in the end."""
    for size in SIZES:
        flat = np.ones(size, np.float32)

        def both(flat=flat):
            ranks.reduce_scatter(flat)
            ranks.all_gather(flat)

        yield size, median(both, ranks)


def fitted(measured, ranks, summing):
    """The Link with which `exchange` comes closest to the first and the last of what was measured."""
    N, (_, quick), (many, slow) = ranks.size, measured[0], measured[-1]
    latency = quick / (N - 1) / 2
    left = slow - exchange(4 * many, N, Link(math.inf, latency), summing)
    return Link(2 * 4 * many * (N - 1) / N / max(left, 1e-9), latency)


def costs(case, model, ranks):
    """The Costs of training a benchmark's model, all ranks at work."""
    x, y = batch(case)
    optimizer = Optimizer(model)
    one = median(lambda: model.loss_and_grad(x, y, train=True), ranks, 3)
    update = median(lambda: (optimizer.norm(), optimizer.update(1e-4, 1)), ranks, 3)
    pieces = np.ones((2, CHUNK), np.float32)
    return Costs(one, update, pieces[0].nbytes / median(lambda: np.add(*pieces, out=pieces[0]), ranks, 50))


def hidden(case, model, ranks):
    """The part of a sum's time that passes while a batch is computed, if MPI may work on it all the while."""
    x, y = batch(case)
    flat = np.ones(model.params.size, np.float32)

    def compute():
        model.loss_and_grad(x, y, train=True)

    def both():
        finish = ranks.begin_all_reduce(flat)
        compute()
        finish()

    computing, summing, together = (median(work, ranks, 3) for work in (compute, lambda: ranks.begin_all_reduce(flat)(), both))
    return max(0.0, min(1.0, (computing + summing - together) / summing))


def predictions(S, tokens, batches, costs, link):
    """Yields (nodes, tokens of an update, seconds, of these exchanging, tokens/s, efficiency) for more and more nodes."""
    alone = step(S, 1, batches, costs, link)
    for N in NODES:
        seconds = step(S, N, batches, costs, link)
        yield N, N * batches * tokens, seconds, seconds - alone, N * batches * tokens / seconds, alone / seconds
