"""Models of pykan (MultKAN, 0.2 and later), read without it: what `KAN.from_pykan` is made of.

pykan keeps edges as (in, out), where this project has (out, in), knots as (in, G + 2k + 1) with
their extension, and behind each layer two affine maps, of subnodes and of nodes, between which
multiplication nodes would stand.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Source = nn.Module | Mapping[str, Tensor]
AFFINE = ("subnode_scale", "subnode_bias", "node_scale", "node_bias")


class Edges(NamedTuple):
    """A layer: sum over inputs of base_weight activation(x) + scaler spline(x), plus bias."""

    grid: Tensor  # (I, G + 2k + 1)
    order: int
    coef: Tensor  # (O, I, K)
    scaler: Tensor  # (O, I)
    base_weight: Tensor  # (O, I)
    bias: Tensor  # (O,)


def read_layers(source: Source) -> list[Edges]:
    """Returns the layers of a MultKAN or of its state dict.

    Raises ValueError for what is neither, and for active symbolic edges, multiplication nodes and
    knots that do not increase, none of which a layer of splines can be.
    """
    state = source if isinstance(source, Mapping) else _state_of(source)
    if state.get("act_fun.0.coef", torch.empty(0)).ndim != 3:
        raise ValueError(
            "from_pykan wants a MultKAN of pykan 0.2 or later, or its state_dict(), in which "
            "act_fun.0.coef has three dimensions"
        )
    depth = sum(re.fullmatch(r"act_fun\.\d+\.coef", name) is not None for name in state)
    return [_layer(state, number) for number in range(depth)]


def base_function(source: Source) -> nn.Module | None:
    """Returns the base function of a MultKAN, None for "zero"; a state dict does not tell: SiLU.

    Raises ValueError for a function that is no module.
    """
    function = nn.SiLU() if isinstance(source, Mapping) else source.base_fun
    if not isinstance(source, Mapping) and source.base_fun_name == "zero":
        return None
    if not isinstance(function, nn.Module):
        raise ValueError(
            f"from_pykan: the base function {function!r} is no nn.Module: name one that does the "
            "same with base_activation"
        )
    return function


def _state_of(model: Any) -> dict[str, Tensor]:
    """A model's state as it computes: pykan does not register all of it."""
    if not isinstance(model, nn.Module) or not hasattr(model, "act_fun"):
        return {}
    state = dict(model.state_dict())
    for name in AFFINE:
        state |= {f"{name}_{i}": value.detach() for i, value in enumerate(getattr(model, name))}
    if not model.symbolic_enabled:
        state = {name: value for name, value in state.items() if "symbolic_fun" not in name}
    return state


def _layer(state: Mapping[str, Tensor], number: int) -> Edges:
    names = ("grid", "coef", "mask", "scale_base", "scale_sp")
    grid, coef, mask, scale_base, scale_sp = (
        _required(state, f"act_fun.{number}.{name}") for name in names
    )
    _refuse_symbolic(state, number)
    outputs = coef.shape[1]
    one, zero = coef.new_ones(outputs), coef.new_zeros(outputs)
    a, b, c, d = (
        state.get(f"{name}_{number}", one if "scale" in name else zero) for name in AFFINE
    )
    if not a.shape == b.shape == c.shape == d.shape == one.shape:
        raise ValueError(
            f"from_pykan: layer {number} has multiplication nodes, which a layer of splines cannot "
            "be; only addition nodes are converted"
        )
    grid, coef = _increasing(grid, coef, number)
    scale = (a * c)[:, None]
    edges = (coef.transpose(0, 1), scale * (mask * scale_sp).t(), scale * (mask * scale_base).t())
    return Edges(grid, grid.shape[1] - coef.shape[2] - 1, *edges, c * b + d)


def _required(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"from_pykan: the state has no {name}, which every layer of pykan has")
    return state[name]


def _refuse_symbolic(state: Mapping[str, Tensor], number: int) -> None:
    mask = state.get(f"symbolic_fun.{number}.mask")  # (out, in)
    if mask is not None and mask.any():
        output, feature = mask.nonzero()[0].tolist()
        raise ValueError(
            f"from_pykan: layer {number} has a symbolic edge, from input {feature} to output "
            f"{output}, which no spline is; make it a spline again first (model.unfix_symbolic)"
        )


def _increasing(grid: Tensor, coef: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Grid and coefficients, for an input that never varied other ones of the same value: zero."""
    constant = (grid[:, :1] == grid).all(1)
    steps = torch.arange(grid.shape[1]).to(grid)
    grid = torch.where(constant[:, None], grid[:, :1] + steps, grid)
    coef = torch.where(constant[:, None, None], 0, coef)
    if not bool((grid.diff(dim=1) > 0).all()):
        feature = (grid.diff(dim=1) > 0).all(1).logical_not().nonzero()[0].item()
        raise ValueError(
            f"from_pykan: the knots of input {feature} of layer {number} do not increase; give "
            "them room first (model.update_grid with grid_eps above 0)"
        )
    return grid, coef
