"""Settings of all kernels of this process: threads, instruction set, precision of matrix products.

Any thread may change them at any time. Whatever runs meanwhile, a kernel or a recorded program, ends with those it began with.
"""

import os
from typing import Any

# How long libgomp's threads spin before they sleep; it reads this once, when it is loaded. Its own value, hundreds of
# times longer, makes a thread that waits keep the one it waits for from running wherever cores are shared (SPEED.md).
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from gpt2c import _core
from gpt2c.errors import UsageError
from gpt2c.support.machine import cores, cpu_name
from gpt2c.support.version import __version__

_settings: dict[str, Any] = {}
MOST_THREADS = max(1024, 4 * cores())  # some tens of thousands overflow the stack of the thread that starts them
_forked = False  # from a process with threads


def set_num_threads(n: int) -> None:
    """Threads that kernels may use, from the next run on; more than there are cores is allowed."""
    if not 1 <= n <= MOST_THREADS:
        raise UsageError(f"the number of threads is {n}, expected 1 to {MOST_THREADS}")
    if _forked and n > 1:
        raise UsageError(
            f"the number of threads is {n}, expected 1: this process was forked from one whose kernels had run on several "
            "threads, which fork does not copy; start it with spawn to have more"
        )
    _core.use_threads(n)
    _settings["threads"] = n


def set_isa(name: str) -> None:
    """The instruction set that kernels use, from the next run on: one of info()["isas"]."""
    try:
        _core.use_isa(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _settings["isa"] = name


def set_matmul_precision(name: str) -> None:
    """fp32, or bf16: operands of matrix products are rounded to bf16, their sums stay float32. From the next run on."""
    if name not in ("fp32", "bf16"):
        raise UsageError(f"unknown matmul precision {name!r}, expected fp32 or bf16")
    _core.use_matmul_bf16(name == "bf16")
    _settings["matmul_precision"] = name


def info() -> dict[str, Any]:
    """This machine and this build: isas (usable, best last), isa, threads,
    matmul_precision, cores, openmp, compiler, version, cpu."""
    return {"isas": _core.isas(), **_settings, "cores": cores(), **_core.build_info(), "version": __version__, "cpu": cpu_name()}


def _default_threads():
    """One per core; OMP_NUM_THREADS can only lower it."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(cores(), int(wanted)) if wanted.isdecimal() and int(wanted) else cores()


def _after_fork():
    """OpenMP would wait for threads that are the parent's alone. One thread gives the same bits."""
    global _forked
    if _core.has_had_threads():
        set_num_threads(1)
        _forked = True


os.register_at_fork(after_in_child=_after_fork)
set_num_threads(_default_threads())
set_matmul_precision("fp32")
try:
    set_isa(os.environ.get("GPT2C_ISA") or _core.isas()[-1])
except UsageError as error:
    raise UsageError(f"GPT2C_ISA: {error}") from None
