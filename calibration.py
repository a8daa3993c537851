"""Fits the grids of a KAN-ViT's splines to the activations that real photos cause."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kan import SplineLayer, measure_ranges
from vit_model import VisionTransformer

# Without a share left outside, a ViT's few large activations would stretch every cell of a grid.
OUTSIDE_SHARE = 0.01


@dataclass
class CalibrationReport:
    """What `calibrate` did: the lowest low and highest high of each layer, and who was left out."""

    ranges: dict[str, tuple[float, float]]
    skipped: list[str]
    images: int

    def lines(self) -> list[str]:
        """The report in words, for printing."""
        lines = []
        if self.ranges:
            low = min(low for low, _ in self.ranges.values())
            high = max(high for _, high in self.ranges.values())
            lines.append(
                f"calibrated the grids of {len(self.ranges)} KAN layers on {self.images} photos, "
                f"each feature its own: from {low:.3g} at the lowest to {high:.3g} at the highest"
            )
        if self.skipped:
            lines.append(f"left {len(self.skipped)} KAN layers alone: their splines are trained")
        return lines


@torch.no_grad()
def calibrate(model: VisionTransformer, batches: Iterable[Tensor]) -> CalibrationReport:
    """Sets the grid range of every KAN layer whose splines are still zero from real photos.

    batches: images (B, C, S, S), prepared as for prediction. All layers are measured in one pass,
    since zero splines change nothing whatever their range. Layers with trained splines keep theirs.
    Raises ValueError without a photo.
    """
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, SplineLayer)}
    fresh = {name: layer for name, layer in layers.items() if layer.splines_are_zero}
    photos = [batch.to(model.cls_token) for batch in batches if len(batch)]
    if not photos:
        raise ValueError("there is no photo to calibrate the KAN layers on")
    measured = measure_ranges(model, fresh, photos, OUTSIDE_SHARE)
    for name, (low, high) in measured.items():
        fresh[name].set_range(low, high)
    ranges = {name: (low.min().item(), high.max().item()) for name, (low, high) in measured.items()}
    skipped = [name for name in layers if name not in fresh]
    return CalibrationReport(ranges, skipped, sum(map(len, photos)))
