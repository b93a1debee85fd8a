"""Data parallel training: the processes (ranks) that train one model together, and their collective operations.

An MPI launcher (mpirun, srun) starts them; each is a rank from 0 to size - 1. A process that no launcher has started is a
world of its own, and nothing of MPI is imported.

A flat block of floats is cut into one part for each rank. `reduce_scatter` leaves the sum over all ranks in this rank's part,
`all_gather` brings the parts of all ranks to each: both together are an all-reduce. Sums are taken in the order of ranks, with
any MPI, so a run that is repeated on as many ranks is bit-identical.
"""

import functools
import importlib.util
import os
import sys
import time

import numpy as np

from gpt2c import settings
from gpt2c.errors import UsageError
from gpt2c.support.machine import allowed_cores, cores

LAUNCHERS = {"OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE", "PMI_RANK": "PMI_SIZE", "PMIX_RANK": ""}  # as they say it
CHUNK = 1 << 18  # floats per rank and message: small enough that what is received is still in the cache when it is summed
LINE = 16  # floats: parts begin at cache lines
MOST_CORES = 1 << 14  # of one machine
EAGER, NAP, TRAVEL = 2e-4, 2e-5, 4e-9  # seconds; the last for each float sent
GRACE = 1.0  # seconds that a rank with an error waits for rank 0, which usually has the same error and prints it


class World:
    """A single process; the interface of several ranks too."""

    rank, size, neighbours = 0, 1, 1  # neighbours: the ranks on this machine

    def __repr__(self):
        return f"<rank {self.rank} of {self.size}>"

    def bounds(self, n):
        """Where the parts of n floats begin, and the end of the last: (size + 1,)."""
        lines = -(-n // LINE)
        return np.minimum(np.arange(self.size + 1) * lines // self.size * LINE, n)

    def part(self, n):
        """This rank's part of n floats: (first, last)."""
        return tuple(self.bounds(n)[self.rank : self.rank + 2].tolist())

    def reduce_scatter(self, flat):
        """Puts the sum over all ranks into this rank's part of `flat`; the rest of it is undefined afterwards."""

    def all_gather(self, flat):
        """Fills `flat` with the parts of all ranks."""

    def begin_all_reduce(self, flat):
        """Begins an all-reduce by MPI's own means and returns a function that waits for it, to measure them with."""
        return lambda: None

    def gather(self, flat, into):
        """The parts of all ranks of `flat`, one after the other, into another array on rank 0."""
        into[...] = flat

    def all_reduce(self, values):
        """The sums of float64 values over all ranks; exact, in whatever order, where but one rank has something other than 0."""
        return np.array(values, np.float64)

    def all_reduce_max(self, *values):
        """The largest that any rank has, of each value."""
        return values

    def all_gather_arrays(self, array):
        """(size, *shape): the arrays of all ranks."""
        return array[None]

    def broadcast(self, words):
        """The text of rank 0, on every rank."""
        return words

    def barrier(self):
        """Waits until all ranks have called it."""

    def rank_0_first(self, work):
        """work(), on rank 0 before the other ranks, which then find its files."""
        if self.rank:
            self.barrier()
        done = work()
        if not self.rank:
            self.barrier()
        return done

    def cores(self):
        """Cores for this rank: those in its affinity mask, each divided among the ranks that share it."""
        sets = self._allowed_cores()
        share = sum(1 / sum(core in allowed for allowed in sets) for core in allowed_cores())
        return max(1, min(int(share + 1e-6), cores(set.union(*sets)) // self.neighbours))

    def _allowed_cores(self):
        """Of each rank on this machine, as sets."""
        return [allowed_cores()]

    def settle(self, threads=0):
        """As many threads as asked for, else one for each core that is this rank's; and the best instruction set that all
        ranks have, because another may round differently."""
        about = settings.info()
        settings.set_num_threads(threads or min(about["threads"], self.cores()))
        settings.set_isa(about["isas"][-int(self.all_reduce_max(-about["isas"].index(about["isa"]))[0])])

    def quiet(self):
        """Ranks other than 0 print only errors from here on, unless GPT2C_ALL_RANKS is set."""
        if self.rank and not os.environ.get("GPT2C_ALL_RANKS"):
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")

    def fail(self, text, code):
        """Prints an error message, if there is one, and ends all ranks."""
        if text:
            print(text, file=sys.stderr)
        sys.exit(code)


class MpiWorld(World):
    """The ranks that a launcher has started."""

    def __init__(self):
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # only Python's main thread calls it
        from mpi4py import MPI

        self._mpi, self._all = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._all.rank, self._all.size
        self._near = self._all.Split_type(MPI.COMM_TYPE_SHARED)
        self.neighbours = self._near.size
        self._scratch = np.empty(0, np.float32)
        self.implementation = MPI.Get_library_version().splitlines()[0]
        sys.excepthook = self._unexpected

    def _finish(self, request, floats=0):
        """Waits: spins for the time that this many floats take, then sleeps in between, because with more ranks than cores a
        waiting rank must leave its core to the others."""
        eager = time.perf_counter() + EAGER + floats * TRAVEL
        while not request.Test():
            if time.perf_counter() > eager:
                time.sleep(NAP)

    def reduce_scatter(self, flat):
        bounds, rank = self.bounds(flat.size), self.rank
        sizes = np.diff(bounds)
        self.barrier()
        for at in range(0, int(sizes.max()), CHUNK):
            counts = np.clip(sizes - at, 0, CHUNK)
            n = int(counts[rank])  # floats of this rank's part, once from each rank
            if self._scratch.size < n * self.size:
                self._scratch = np.empty(n * self.size, np.float32)
            arrived = self._scratch[: n * self.size]
            request = self._all.Ialltoallv(
                [flat, counts, bounds[:-1] + at, self._mpi.FLOAT],
                [arrived, np.full(self.size, n), np.arange(self.size) * n, self._mpi.FLOAT],
            )
            self._finish(request, arrived.size)
            first, second, *others = arrived.reshape(self.size, n)
            total = np.add(first, second, out=flat[bounds[rank] + at : bounds[rank] + at + n])
            for other in others:
                total += other

    def all_gather(self, flat):
        bounds = self.bounds(flat.size)
        self.barrier()
        self._finish(self._all.Iallgatherv(self._mpi.IN_PLACE, [flat, np.diff(bounds), bounds[:-1], self._mpi.FLOAT]), flat.size)

    def begin_all_reduce(self, flat):
        return self._all.Iallreduce(self._mpi.IN_PLACE, flat).Wait

    def gather(self, flat, into):
        bounds = self.bounds(flat.size)
        part = flat[slice(*self.part(flat.size))]
        self._finish(self._all.Igatherv(part, [into, np.diff(bounds), bounds[:-1], self._mpi.FLOAT], 0))

    def all_reduce(self, values):
        sums = np.array(values, np.float64)
        self._finish(self._all.Iallreduce(self._mpi.IN_PLACE, sums))
        return sums

    def all_reduce_max(self, *values):
        largest = np.array(values, np.float64)
        self._finish(self._all.Iallreduce(self._mpi.IN_PLACE, largest, self._mpi.MAX))
        return largest.tolist()

    def all_gather_arrays(self, array):
        array = np.ascontiguousarray(array)
        stacked = np.empty((self.size, *array.shape), array.dtype)
        self._finish(self._all.Iallgather(array, stacked))
        return stacked

    def broadcast(self, words):
        (size,) = self.all_reduce_max(len(words.encode()) if self.rank == 0 else 0)
        said = np.frombuffer(words.encode().ljust(int(size))[: int(size)], np.uint8).copy()
        self._finish(self._all.Ibcast(said, 0))
        return said.tobytes().decode()

    def barrier(self):
        self._finish(self._all.Ibarrier())

    def _allowed_cores(self):
        mask, masks = np.zeros(MOST_CORES, np.uint8), np.zeros((self.neighbours, MOST_CORES), np.uint8)
        mask[list(allowed_cores())] = 1
        self._finish(self._near.Iallgather(mask, masks))
        return [set(np.flatnonzero(row).tolist()) for row in masks]

    def fail(self, text, code):
        if self.rank:
            time.sleep(GRACE)
        if text:
            print(f"rank {self.rank}: {text}" if self.rank else text, file=sys.__stderr__, flush=True)
        self._all.Abort(code)
        os._exit(code)  # where the launcher is slow to end this one

    def _unexpected(self, kind, error, traceback):
        sys.stderr = sys.__stderr__
        sys.__excepthook__(kind, error, traceback)
        self.fail("an unexpected error ended all ranks", 1)


@functools.cache
def world():
    """The World of this process."""
    launched = next((size for rank, size in LAUNCHERS.items() if rank in os.environ), None)
    if launched is None or os.environ.get(launched) == "1":
        return World()
    if importlib.util.find_spec("mpi4py") is None:
        raise UsageError('an MPI launcher has started this process, but mpi4py is not installed: pip install "gpt2c[mpi]"')
    try:
        ranks = MpiWorld()
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"mpi4py finds no MPI library ({error}): install the one that the launcher belongs to, or pip install mpich"
        ) from None
    if os.environ.get(launched, str(ranks.size)) != str(ranks.size):
        raise UsageError(
            f"the launcher has started {os.environ[launched]} ranks, but mpi4py uses {ranks.implementation}, which "
            f"knows of {ranks.size}: use the launcher that belongs to it"
        )
    return ranks if ranks.size > 1 else World()


def joined():
    """The World of this process if it has been asked for, else one of a single process: for errors, which may come before."""
    return world() if world.cache_info().currsize else World()
