"""Small algebra in float64, also for devices that have none."""

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """x in float64, on its device or, where that has no float64 (MPS, some XPU), on the CPU.

    What comes of it goes back with `.to(x)`.
    """
    return (x if has_float64(x.device) else x.cpu()).double()


def has_float64(device: torch.device) -> bool:
    if device.type == "xpu":
        return getattr(torch.xpu.get_device_properties(device), "has_fp64", True)
    return device.type != "mps"
