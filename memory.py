"""How much memory there is to take, as the system and a container's limits say."""

import contextlib
import os
from collections.abc import Iterator
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


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` is that of an allocation, on a CPU or on a GPU."""
    if isinstance(error, RuntimeError):  # torch.OutOfMemoryError is one
        return any(words in str(error) for words in OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def advice_on_memory(args) -> Iterator[None]:
    """Turns running out of memory into a ValueError that says which flags of train.py help.

    So does the death of a loader's worker, which the system kills when memory ends.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "DataLoader worker" in str(error):
            raise ValueError(
                f"a process that loads photos died ({' '.join(str(error).split())}), as it happens "
                f"when memory runs out: try fewer --workers than {args.workers}; what was saved "
                f"before is whole"
            ) from None
        if not out_of_memory(error):
            raise
        advice = [] if args.grad_checkpointing else ["--grad-checkpointing"]
        if args.resume:
            start = "resume it on more processes" if args.fsdp else "resume it on more with --fsdp"
            advice += [f"the same total batch on more devices (torchrun, {start})"]
        else:
            size = f" than {args.batch_size}" if isinstance(args.batch_size, int) else ""
            advice += [
                f"a smaller --batch-size{size} (auto finds the largest that fits)",
                "--accum-steps N for the same total in N parts",
            ]
            advice += [] if args.fsdp else ["several devices with torchrun and --fsdp"]
        raise ValueError(
            f"out of memory: try {', or '.join(advice)}; what was saved before is whole"
        ) from None
