"""How much memory there is to take, as the system and a container's limits say."""

import contextlib
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 8 << 30


def free_memory() -> int:
    """Returns the bytes that a process can still take, or 8 GiB where the system does not tell.

    On Linux that counts what caches of files would give back, and heeds a container's limit.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        return min(_available(), _below_limit())
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) << 10


def _below_limit() -> int:
    """Returns what a container (control groups, version 2) leaves; without a limit, plenty."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return 1 << 62
    return max(0, limit - used)
