"""What a run advises its user to do."""

import contextlib
from collections.abc import Iterator

from system.memory import out_of_memory


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
