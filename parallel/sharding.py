"""One model on several devices: copied to each (DDP), or cut into shards of which each holds one.

`fully_shard` (FSDP) turns parameters into DTensors, of which each process keeps a slice; a block's
are put together for its forward and backward pass and let go afterwards. Checkpoints know nothing
of this: `whole` puts values together for one, `like` cuts those of one.
"""

import contextlib
import inspect
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parallel.world import World
from vit_model import VisionTransformer


def replicate(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """Returns `model` wrapped so that gradients are averaged over the processes."""
    if world.size == 1:
        return model
    # About gradients of odd layout, which small models have: slower by nothing that counts.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # Newer versions of torch renamed what copies buffers at every step; ours are grids, which stay.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # else every gradient is held twice
        **{buffers: False},
    )


def shard(model: VisionTransformer, device: torch.device, world: World) -> None:
    """Cuts the parameters of `model` in place, each block's apart from the others'."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    # Cut again after a forward pass: between epochs, parameters are read for average and checkpoint
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def gradient_sync(model: nn.Module, on: bool) -> contextlib.AbstractContextManager:
    """Returns the context of a forward and backward pass; off, gradients wait for the next one."""
    if hasattr(model, "set_requires_gradient_sync"):  # sharded
        model.set_requires_gradient_sync(on)
    elif not on and hasattr(model, "no_sync"):  # replicated
        return model.no_sync()
    return contextlib.nullcontext()


def whole(value, keep: bool = True):
    """Returns `value`, any nesting of dicts and lists, with every DTensor put together on the CPU.

    All processes must call it; only where `keep` is true the tensors are held, else they are None.
    """
    if isinstance(value, dict):
        return type(value)((key, whole(item, keep)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep) for item in value)
    if is_sharded(value):
        value = value.full_tensor()
        return value.cpu().clone() if keep else None  # else a view of padded shards may be kept
    return value


def like(tensor, target: Tensor):
    """Returns whole `tensor` cut as `target` of the same shape is; anything else as it came.

    Every process must hold the same tensor.
    """
    if not is_sharded(target) or getattr(tensor, "shape", None) != target.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(target.device, target.dtype)
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state dict of whole tensors into a model, sharded or not."""
    targets = model.state_dict()
    model.load_state_dict({k: like(v, targets[k]) if k in targets else v for k, v in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads an optimiser's state dict of whole tensors, its parameters sharded or not."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        number: {key: like(value, parameters[number]) for key, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": cut})


def local(value: Tensor) -> Tensor:
    """Returns the part of a tensor that this process holds: all of it, where it is not sharded."""
    return value.to_local() if is_sharded(value) else value


def is_sharded(value) -> bool:
    return hasattr(value, "full_tensor")
