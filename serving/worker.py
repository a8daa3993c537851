"""One thread that computes; photos that wait for the same model are answered in one batch."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Job:
    """A call of `run` with a list, in which `item` is one of at most `most`."""

    run: Callable[[Sequence], Sequence]
    item: Any
    most: int
    result: Future = field(default_factory=Future)


class Worker:
    """Takes the jobs in their order, each with those behind it that ask for the same."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    def submit(self, run: Callable[[Sequence], Sequence], item, most: int = 1) -> Future:
        """Returns the coming result of `run([..., item, ...])` for `item`; of at most `most`."""
        job = Job(run, item, most)
        with self.changed:
            self.jobs.append(job)
            self.changed.notify()
        return job.result

    def close(self) -> None:
        """Ends the thread behind the batch under way; what still waits is cancelled."""
        with self.changed:
            self.closed = True
            for job in self.jobs:
                job.result.cancel()
            self.jobs.clear()
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while batch := self._take():
            # A client may have given up meanwhile.
            if wanted := [job for job in batch if job.result.set_running_or_notify_cancel()]:
                _answer(wanted)

    def _take(self) -> list[Job]:
        """Waits for jobs and takes the next batch; [] at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.jobs or self.closed)
            if not self.jobs:
                return []
            first = self.jobs[0]
            batch = [job for job in self.jobs if job.run == first.run][: first.most]
            taken = set(map(id, batch))
            self.jobs = deque(job for job in self.jobs if id(job) not in taken)
            return batch


def _answer(batch: list[Job]) -> None:
    """Gives each job of a batch its result; where the batch fails, each is tried alone."""
    try:
        results = batch[0].run([job.item for job in batch])
    except Exception as error:
        if len(batch) == 1:
            batch[0].result.set_exception(error)
            return
        for job in batch:
            _answer([job])
        return
    for job, result in zip(batch, results, strict=True):
        job.result.set_result(result)
