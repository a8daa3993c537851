"""Why one photo was answered so, in numbers: where the model looked, which splines moved it.

The map of a photo is that of the method which `methods` names; the curves of a KAN-ViT are those of
curves.py. `photo_figure` draws a story, serving/ sends it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from explaining import curves
from explaining.attribution import Removed, Strengths, name_curves
from explaining.covering import Covered, cover
from explaining.curves import Curve, LayerRecord, Place
from explaining.methods import METHODS, serving

CURVES = 6  # told of a photo


@dataclass
class DrawnCurve:
    """A learned spline as it is drawn: its line, the values it met, where it acted most."""

    curve: Curve
    place: Place
    x: Tensor
    y: Tensor
    sample: Tensor  # what the curve was given in all photos
    here: tuple[float, float]  # on the curve, where this photo's strongest token lies
    patch: int | None  # that token's patch, None for the class token


@dataclass
class Story:
    """What is drawn for one photo and one class."""

    target: int
    heat: Tensor  # (side, side), in [0, 1]
    half: int  # so many patches carry half of the relevance; 0: none speaks for the class
    method: str  # by which the heat was found
    curves: list[DrawnCurve] = field(default_factory=list)
    by_block: dict[int, float] = field(default_factory=dict)  # sum of all contributions
    unlearned: bool = False  # whether there are splines, and all as they were before training
    covered: Covered | None = None  # what the heat is worth for this photo, where it was measured
    named: list[Curve] = field(default_factory=list)  # the first 1 %, of the model as it is stored
    removed: Removed | None = None  # what these are worth for this photo


def explain(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    stored: nn.Module | None = None,
    probabilities: Callable[[Tensor], Tensor] | None = None,
) -> list[Story]:
    """A Story for each of the images (B, 3, S, S) and its target class (B,).

    stored: the model as its file has it, whose curves are named by their places in the file.
    probabilities: of images (B, 3, S, S) all classes' (B, K), to measure what the heat is worth.
    """
    stories = []
    name = serving(model)
    for image, target in zip(images, targets, strict=True):
        patches = METHODS[name](model, image[None], target[None])[0].float().cpu()
        story = Story(int(target), heat_map(patches), patches_for_half(patches), name)
        if probabilities and story.half:  # what speaks against the class is marked last
            story.covered = cover(probabilities, image, story.target, as_square(patches))
        stories.append(story)
    if curves.kan_layers(model):
        tell_of_splines(model, images, stories, stored)
    return stories


def tell_of_splines(
    model: nn.Module, images: Tensor, stories: list[Story], stored: nn.Module | None
) -> None:
    """Adds to the story of each image which splines moved the answer, or that none could."""
    layers = curves.kan_layers(model)
    if not curves.anything_learned(model):
        for story in stories:
            story.unlearned = True
        return
    strengths = Strengths(stored) if stored is not None else None
    for image, story in zip(images, stories, strict=True):
        records = curves.trace(model, image, story.target)
        story.by_block = totals_by_block(records)
        if strengths:
            story.named, story.removed = name_curves(strengths, image, story.target)
        for curve in curves.strongest(records, CURVES):
            story.curves.append(
                prepare(curve, layers[curve.layer_name], records, model.num_prefix_tokens)
            )
    add_samples(model, images, layers, [one for story in stories for one in story.curves])


def as_square(patches: Tensor) -> Tensor:
    """Values of patches (P,) as they lie in the photo, (side, side)."""
    side = round(len(patches) ** 0.5)
    return patches.view(side, side)


def heat_map(patches: Tensor) -> Tensor:
    """What speaks for a class in the relevance of patches (P,): a square of values in [0, 1]."""
    spoken = patches.clamp_min(0)
    return as_square(spoken / spoken.max().clamp_min(1e-12))


def patches_for_half(patches: Tensor) -> int:
    """How many of the strongest patches together hold half of what speaks for the class.

    0 where none does.
    """
    spoken = patches.double().clamp_min(0).sort(descending=True).values
    total = spoken.sum()
    return int((spoken.cumsum(0) < total / 2).sum()) + 1 if total > 0 else 0


def totals_by_block(records: dict[str, LayerRecord]) -> dict[int, float]:
    totals: dict[int, float] = {}
    for name, record in records.items():
        block = curves.block_of(name)
        totals[block] = totals.get(block, 0.0) + float(record.contributions.sum())
    return totals


def prepare(curve: Curve, layer: nn.Module, records, prefix_tokens: int) -> DrawnCurve:
    """Everything that is drawn of `curve` but the values of other photos."""
    x, y = curves.per_token(curve, layer, records[curve.layer_name])
    token, feature = divmod(int(y.abs().argmax()), x.shape[1])
    here = x[token, feature]
    return DrawnCurve(
        curve,
        curve.place(layer),
        x=torch.empty(0),
        y=torch.empty(0),
        sample=torch.empty(0),
        here=(float(here), float(curves.evaluate(curve, layer, here[None])[0])),
        patch=token - prefix_tokens if token >= prefix_tokens else None,
    )


@torch.no_grad()
def add_samples(
    model, images: Tensor, layers: dict[str, nn.Module], drawn: list[DrawnCurve]
) -> None:
    """Fills in what each curve met in all the images, and its line over that range."""
    met: list[list[Tensor]] = [[] for _ in drawn]
    with curves.recording(layers) as records:
        for chunk in images.split(curves.CHUNK):
            model(chunk)
            for one, values in zip(drawn, met, strict=True):
                name = one.curve.layer_name
                inputs = curves.acting_on(one.curve, layers[name], records[name].inputs)
                values.append(inputs.flatten().float().cpu())
    for one, values in zip(drawn, met, strict=True):
        one.sample = torch.cat(values)
        layer = layers[one.curve.layer_name]
        line = torch.linspace(float(one.sample.min()), float(one.sample.max()), 200)
        one.x, one.y = line, curves.evaluate(one.curve, layer, line.to(images.device)).cpu()
