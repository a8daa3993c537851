"""How much memory there is to take, as the system and a container's limits say."""

import contextlib
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 8 << 30
# What torch's RuntimeErrors say when memory ends: its own allocators and CUDA's libraries.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED")


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
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return int(kib) << 10


def _below_limit() -> int:
    """Returns what a container (control groups, version 2) leaves; without a limit, plenty."""
    try:
        limit = int((CGROUP / "memory.max").read_text("utf-8"))
        used = int((CGROUP / "memory.current").read_text("utf-8"))
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return 1 << 62
    return max(0, limit - used)


def take_room(descriptor: int, size: int) -> None:
    """Gives an open file `size` bytes now; OSError where the disk has no room.

    A disk that fills up later would kill whoever writes to a mapping of the file.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is that of an allocation, on a CPU or on a GPU."""
    if isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        return any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, MemoryError)
