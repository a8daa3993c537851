"""What a run hears and shows while it trains: signals, a progress bar, the time spent waiting."""

import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tqdm import tqdm

from parallel.world import World
from utils import Meter


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into `signal`, a number that the loop looks at.

    The step under way ends and is saved; a second Ctrl-C ends the program at once. (A SIGTERM after
    a Ctrl-C may be torchrun's, which passes on the end of the launch in its own way.)
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal = 0

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.signal:
            print("\nfinishing the step, then saving; Ctrl-C again ends at once", file=sys.stderr)
        self.signal = self.signal or number

    def agreed(self) -> int:
        """Returns the signal that any of the processes got, so that all stop at the same step."""
        self.signal = self.world.highest(self.signal)
        return self.signal


class Progress:
    """The progress bar of one pass: photos, loss, accuracy, learning rate, speed, time left."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.bar = tqdm(
            desc=title,
            total=total,
            initial=start,
            unit="img",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # not a terminal, no bar: logs keep clean lines
        )
        self.shown = 0.0

    def update(self, meter: Meter, lr: float | None = None) -> None:
        # Reading the meter waits for the device: a few times a second is enough.
        if self.bar.disable or time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        self.bar.set_postfix_str(
            f"loss {meter.loss:.3f}, acc {meter.accuracy:.3f}" + (f", lr {lr:.2g}" if lr else ""),
            refresh=False,
        )
        self.bar.update(meter.samples - self.bar.n)

    def close(self) -> None:
        self.bar.close()


@dataclass
class Timer:
    """Seconds of a pass, and how many of them it waited for data.

    photos_before: of all processes, which were counted before it started, in a resumed epoch.
    """

    waited: float = 0.0
    photos_before: int = 0
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def over(self, batches: Iterator) -> Iterator:
        batches = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch
