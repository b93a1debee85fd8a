"""Several ranks: programs under MPI's launcher, and ranks that are only imagined.

Ranks that wait for one another for ever are ended after PATIENCE, and none outlives its test.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import psutil

from gpt2c.training.ranks import World

# What Open MPI's launcher wants to be told where there are few cores, or only the superuser.
OPEN_MPI = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
PATIENCE = 100  # seconds
ENVIRONMENT = os.environ | OPEN_MPI | {"OMP_NUM_THREADS": "1"}


def launcher():
    return shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@cache
def why_not():
    """Why there is nothing to test here; "" where there is."""
    if importlib.util.find_spec("mpi4py") is None:
        return 'mpi4py is not installed: pip install -e ".[mpi]"'
    if not launcher():
        return "there is no mpirun"
    done = subprocess.run(
        [launcher(), "-n", "2", sys.executable, "-c", "from gpt2c.training.ranks import world; assert world().size == 2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"mpirun does not start two ranks: {done.stdout}{done.stderr}" if done.returncode else ""


@contextlib.contextmanager
def started(ranks, *words, folder, **environment):
    command = [sys.executable, *map(str, words)]
    if ranks > 1:
        command = [launcher(), "-n", str(ranks), *command]
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT | environment
    )
    watchdog = threading.Timer(PATIENCE, end, [process])
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        end(process)


def end(process):
    """Kills a launcher and its ranks, if it still runs: whoever reads what they say or waits for them goes on."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def finish(ranks, *words, folder, code=0, **environment):
    with started(ranks, *words, folder=folder, **environment) as process:
        out, err = process.communicate()
    assert process.returncode == code, out + err
    return out, err


class Imagined(World):
    """Ranks of which only the numbers exist."""

    def __init__(self, rank=0, size=1, allowed=()):
        self.rank, self.size, self.neighbours, self._allowed = rank, size, len(allowed), allowed

    def _allowed_cores(self):
        return list(self._allowed)
