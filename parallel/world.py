"""This process among those that train together: its number, and how they agree."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
        size = number_from("WORLD_SIZE", 1)
        if size == 1 or "RANK" not in os.environ:
            return cls()
        rank, local_rank = number_from("RANK", 0), number_from("LOCAL_RANK", 0)
        return cls(rank, size, local_rank, number_from("LOCAL_WORLD_SIZE", 1))

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


def number_from(variable: str, default: int) -> int:
    return int(os.environ.get(variable, str(default)))


ALONE = World()
