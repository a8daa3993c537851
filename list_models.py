"""The table of `train.py --list-models`: every variant's size, cost, input and weights."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_model import VARIANTS, create_model


def gmacs(name: str) -> float:
    """Returns the multiply-accumulates of one image, in 10^9, as torch's flop counter counts them.

    On the meta device: shapes alone are computed, so even the largest model takes no memory.
    """
    with torch.device("meta"):
        model = create_model(name).eval()
        size = VARIANTS[name].sizes["img_size"]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 2e9


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name).parameters())


def model_table() -> str:
    """Returns the table: name, parameters, GMACs, image size, normalisation, weights' address."""
    rows = [("name", "params", "GMACs", "image", "normalisation", "weights")]
    for name, variant in VARIANTS.items():
        rows.append(
            (
                name,
                f"{parameters(name) / 1e6:.1f} M",
                f"{gmacs(name):.2f}",
                str(variant.sizes["img_size"]),
                {"half": "0.5", "imagenet": "ImageNet"}[variant.family],
                variant.url or "(no known address)",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]:<{widths[4]}}  {row[5]}"
        for row in rows
    ]
    return "\n".join(lines)
