"""Several processes that train one model: how they begin and end together.

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
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.world import World, number_from

# The first process may check a large data set while the others wait; see `join_launch` for errors.
TIMEOUT = timedelta(days=1)
POLL_SECONDS = 0.2
FAREWELL_SECONDS = 5.0  # how long a failing process waits for the others to hear of it


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
                "is whole: go on with torchrun ... train.py --resume RUN"
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
            f"train/{number_from('TORCHELASTIC_RESTART_COUNT', 0)}", store
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
