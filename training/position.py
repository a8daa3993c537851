"""Where a run stands."""

from dataclasses import dataclass, field

import torch

from my_dataset import Failed
from parallel.world import World
from utils import Meter, pooled


@dataclass
class Position:
    """The epochs so far, and what was counted of the one under way.

    history: a row of metrics for each epoch; best: that of the best one. epoch: the one under way,
    or the next. batches_done, meter, failed: of an epoch that a resume goes on with. advised: what
    was said and is not said again.
    """

    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    epoch: int = 0
    batches_done: int = 0
    meter: Meter | None = None
    failed: list[Failed] = field(default_factory=list)
    advised: list[str] = field(default_factory=list)

    def begin_next(self, row: dict) -> None:
        """Takes the row of the epoch that has ended."""
        self.history.append(row)
        self.epoch += 1
        self.batches_done, self.meter, self.failed = 0, None, []

    def out_of_patience(self, patience: int, warmup: int) -> bool:
        """Whether none of the last `patience` epochs, those of warm-up left out, was the best."""
        since = len(self.history) - max(warmup, self.best.get("epoch", 0))
        return bool(patience) and since >= patience

    def state(self, device: torch.device, world: World) -> dict:
        """Returns what a checkpoint keeps of it, the sums being those of all processes."""
        meter, failed = pooled(self.meter or Meter(device), self.failed, world)
        return {
            "loader": {
                "epoch": self.epoch,
                "batches_done": self.batches_done,
                "processes": world.size,
                "sums": meter.sums.cpu(),
                "failed": [list(failure) for failure in failed],
            },
            "history": self.history,
            "best": self.best,
            "advised": self.advised,
        }

    @classmethod
    def of(cls, state: dict, device: torch.device, world: World) -> "Position":
        """Returns the position that `state` describes, for one of any number of processes."""
        loader, meter = state["loader"], Meter(device)
        failed = []
        if world.first:  # they are the sums over all processes
            meter.sums.copy_(loader["sums"])
            failed = [Failed(*failure) for failure in loader["failed"]]
        return cls(
            state["history"],
            state["best"],
            loader["epoch"],
            loader["batches_done"],
            meter,
            failed,
            state["advised"],
        )
