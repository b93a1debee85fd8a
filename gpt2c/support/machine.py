"""The cores and the memory of this machine that this process may use."""

import math
import os
from pathlib import Path

from gpt2c.errors import ResourceError


def _read(path):
    """The words of a system file; none where there is no such file."""
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _cgroup_files(name):
    """Where a limit of this process's control groups is written (version 1 and 2), from its group up to the root."""
    for line in _read("/proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        root = Path("/sys/fs/cgroup")
        if controllers:  # version 1: one hierarchy per controller
            if name.split(".")[0] not in controllers.split(","):
                continue
            root /= name.split(".")[0]
        folder = root / group.lstrip("/")
        for parent in (folder, *folder.parents):
            yield parent / name
            if parent == root:
                break


def allowed_cores():
    """The numbers of the logical cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores(allowed=None):
    """Cores worth a thread each: physical ones, of those this process may run on or the `allowed`, within its CPU quota."""
    import psutil

    allowed = allowed_cores() if allowed is None else allowed
    count = min(len(allowed), psutil.cpu_count(logical=False) or len(allowed))
    limits = [_read(path) for path in _cgroup_files("cpu.max")]
    limits += [_read(path) + _read(path.with_name("cpu.cfs_period_us")) for path in _cgroup_files("cpu.cfs_quota_us")]
    for limit in limits:
        if len(limit) == 2 and limit[0] not in ("max", "-1"):
            count = min(count, math.ceil(int(limit[0]) / int(limit[1])))
    return max(1, count)


def available_memory():
    """Bytes that can still be allocated: available memory, within the cgroup's limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit, used in (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")):
        for path in _cgroup_files(limit):
            most, now, stat = _read(path), _read(path.with_name(used)), _read(path.with_name("memory.stat"))
            if most and now and most[0] != "max":
                cached = dict(zip(stat[::2], stat[1::2])).get("inactive_file", 0)  # given up when memory runs short
                available = min(available, int(most[0]) - int(now[0]) + int(cached))
    return max(0, available)


def require_memory(size, what, hint):
    """An error, before anything is allocated, if `size` bytes are more than there are."""
    available = available_memory()
    if size > available:
        raise ResourceError(f"{what} needs {in_units(size)} of memory and {in_units(available)} are available; {hint}")


def in_units(size):
    """A number of bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.{0 if unit == 'B' else 1}f} {unit}"
        size /= 1000


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()
