"""The same function with its splines in a form that says what they do, for pictures.

Of low rank the coefficients are a product, `spline_up` times `spline_down`, and many pairs make one
product: with `spline_up` at zero, as at the start, any `spline_down` does. So its curves, drawn as
they are stored, show what is not there. Here the parts are those of the singular value
decomposition, the largest first: `spline_up` has columns of length one, and a part's curves are as
large as what they add. The factor of each edge (`spline_scaler`) moves into its curve likewise.
"""

import copy

import torch
from torch import nn

from explaining.curves import kan_layers
from kan import KANLinear


def told_apart(model: nn.Module) -> nn.Module:
    """Returns `model`, or a copy that computes the same, whose stored curves say what they add."""
    if not any(_is_product(layer) for layer in kan_layers(model).values()):
        return model
    model = copy.deepcopy(model)
    for layer in kan_layers(model).values():
        if _is_product(layer):
            _tell_apart(layer)
    return model


def _is_product(layer: nn.Module) -> bool:
    is_linear = isinstance(layer, KANLinear)
    return is_linear and (layer.spline_rank is not None or layer.spline_scaler is not None)


@torch.no_grad()
def _tell_apart(layer: KANLinear) -> None:
    if layer.spline_rank is None:
        layer.spline_weight.mul_(layer.spline_scaler[..., None])
        layer.spline_scaler.fill_(1.0)
        return
    up, down = layer.spline_up.double().cpu(), layer.spline_down.double().cpu()  # (O, R), (R, I, K)
    left, small = torch.linalg.qr(up)
    right, other = torch.linalg.qr(down.flatten(1).t())  # (I * K, R)
    first, sizes, second = torch.linalg.svd(small @ other.t(), full_matrices=False)
    parts, curves = left @ first, sizes[:, None] * (second @ right.t())
    largest = parts.gather(0, parts.abs().argmax(0, keepdim=True))  # of either sign, (1, R)
    sign = torch.where(largest < 0, -1.0, 1.0)
    count = len(sizes)
    layer.spline_up.zero_()[:, :count] = (parts * sign).to(layer.spline_up)
    layer.spline_down.zero_()[:count] = (
        (curves * sign.t()).unflatten(1, down.shape[1:]).to(layer.spline_down)
    )
