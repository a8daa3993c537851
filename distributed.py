"""Several processes that train one model: who they are, how they agree, how they end together.

    torchrun --nproc-per-node=2 train.py --data-path flower_photos

torchrun starts the processes and tells each its number in the environment; each runs the whole of
train.py. What must happen once is done by the first (`World.first_does`), what must be equal is
summed or compared (`World.total`, `World.highest`), and an error in one of them ends all of them
with its exit status, whatever the others were waiting for (`join_launch`).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from my_dataset import Batch

# The first process may check a large data set while the others wait; see `join_launch` for errors.
TIMEOUT = timedelta(days=1)
POLL_SECONDS = 0.2
FAREWELL_SECONDS = 5.0  # how long a failing process waits for the others to hear of it


@dataclass(frozen=True)
class World:
    """This process among `size` others: its number `rank`, and the same within its machine.

    With one process, each method gives back what it got. All processes must call the same methods
    in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """What torchrun (or another launcher that sets the same variables) says."""
        size = _number_from("WORLD_SIZE", 1)
        if size == 1 or "RANK" not in os.environ:
            return cls()
        rank, local_rank = _number_from("RANK", 0), _number_from("LOCAL_RANK", 0)
        return cls(rank, size, local_rank, _number_from("LOCAL_WORLD_SIZE", 1))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def own(self, device: torch.device) -> torch.device:
        """Returns which of several devices such as `device` is this process's.

        Raises ValueError where there is not one for each process of the machine.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        count = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
        if count < self.local_size:
            raise ValueError(
                f"{self.local_size} processes cannot share {count} device ({device}): give each "
                f"its own with --device cuda and torchrun --nproc-per-node, or --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device(device.type, self.local_rank)

    def first_does(self, function: Callable, *arguments) -> Any:
        """Returns what `function` returned in the first process, which alone calls it."""
        if self.size == 1:
            return function(*arguments)
        result = [function(*arguments) if self.first else None]
        dist.broadcast_object_list(result, src=0)
        return result[0]

    def joined(self, values: list) -> list:
        """Returns the lists of all processes, by rank, as one."""
        if self.size == 1:
            return values
        lists: list = [None] * self.size
        dist.all_gather_object(lists, values)
        return [value for part in lists for value in part]

    def numbers(self, number: int) -> list[int]:
        """Returns the whole numbers of all processes, by rank."""
        if self.size == 1:
            return [number]
        numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(numbers, torch.tensor([number]))
        return [int(n) for n in numbers]

    def highest(self, number: int) -> int:
        return max(self.numbers(number))

    def lowest(self, number: int) -> int:
        return min(self.numbers(number))

    def share_of(self, photos: int) -> float:
        """Returns the weight of this process's mean loss over `photos` in the mean of all.

        The average of (weight * mean) over the processes is the mean over all their photos. It is 1
        unless photos could not be read or an epoch's last batch is uneven.
        """
        return photos * self.size / max(1, sum(self.numbers(photos))) if self.size > 1 else 1.0

    def total(self, tensor: Tensor) -> Tensor:
        """Returns the sum of the processes' tensors, on their device."""
        if self.size == 1:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def copy_first(self, tensors: list[Tensor]) -> None:
        """Overwrites `tensors` with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def _number_from(variable: str, default: int) -> int:
    return int(os.environ.get(variable, str(default)))


def in_step(batches, count: int, shape: tuple[int, ...], world: World) -> Iterator[Batch]:
    """Yields exactly `count` batches, so that no process waits for one that has none left.

    Where a process has no photo, one of zeros of `shape` (3, S, S) takes its place, with empty
    `indices`: it goes through the model and counts nothing. Alone, the batches are as they were.
    """
    if world.size == 1:
        yield from batches
        return
    batches = iter(batches)
    nothing = Batch(torch.empty(0), torch.empty(0, dtype=torch.int64), [], torch.empty(0))
    for _ in range(count):
        batch = next(batches, nothing)
        if not len(batch.images):
            zero = torch.zeros(1, dtype=torch.int64)
            batch = Batch(torch.zeros(1, *shape), zero, batch.failed, zero[:0])
        yield batch


# --- beginning and end --------------------------------------------------------------------------


@contextlib.contextmanager
def join_launch() -> Iterator[World]:
    """Joins the processes of a launch, of which the first alone prints; without one, does nothing.

    An exception in any of them ends all of them with its exit status, also those that wait for a
    device or for each other; it leaves here in the process where it was raised first, and the
    others exit in silence. Raises ConnectionError when a process dies without a word.
    """
    world = World.from_environment()
    if world.size == 1:
        yield world
        return
    last_word = None
    try:
        with muted(not world.first):
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
            last_word = LastWord(world)
            yield world
            world.wait()  # none may hang up while another still talks
            last_word.hush()
            dist.destroy_process_group()
    except BaseException as error:
        if last_word is not None:
            last_word.say(exit_status(error))
        if lost_contact(error):
            raise ConnectionError(
                "another process of this training has ended without a word; the last checkpoint "
                "is whole: start the same command with --resume"
            ) from None
        raise


@contextlib.contextmanager
def muted(on: bool) -> Iterator[None]:
    """Sends what is printed nowhere; an exception's traceback is printed after it has left."""
    if not on:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def exit_status(error: BaseException) -> int:
    """The exit status in which `error` ends a command line (see options.run_cli)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, ValueError | OSError) or lost_contact(error) else 1


def lost_contact(error: BaseException) -> bool:
    """Whether `error` is a collective's that found the other end closed."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


class LastWord:
    """Spreads the exit status of the process that fails first.

    It travels through the launch's key-value store and not through a collective, for which the
    others might not be ready; a thread in each process looks for it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
        # torchrun may start a failed launch again, with the same store.
        self.store = dist.PrefixStore(
            f"train/{_number_from('TORCHELASTIC_RESTART_COUNT', 0)}", store
        )
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def hush(self) -> None:
        """Ends the listening: from here on nothing can fail."""
        self.over.set()
        self.thread.join()

    def say(self, status: int) -> None:
        """Tells the others to exit with `status`; if one of them spoke first, exits with its own.

        Returns once all have heard, for torchrun terminates the rest when the first has exited.
        """
        self.hush()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(RuntimeError):  # a store that is gone has nobody to tell
            said = self.store.compare_set("status", "", f"{self.world.rank} {status}").decode()
            rank, status = map(int, said.split())
            if rank != self.world.rank:
                self.store.add("heard", 1)
                raise SystemExit(status) from None
            end = time.monotonic() + FAREWELL_SECONDS
            while self.store.add("heard", 0) < self.world.size - 1 and time.monotonic() < end:
                time.sleep(POLL_SECONDS / 4)

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):
            while not self.over.wait(POLL_SECONDS):
                if self.store.check(["status"]):
                    status = int(self.store.get("status").decode().split()[1])
                    self.store.add("heard", 1)
                    sys.stdout.flush()
                    # The store may live in this process: let the speaker read the answer first.
                    time.sleep(POLL_SECONDS)
                    os._exit(status)  # the main thread may wait for ever, out of Python's reach
