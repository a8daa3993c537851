"""What the splines of a KAN-ViT do, block by block: pictures and a table."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from explaining import curves
from explaining.curves import Curve
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import Preprocess, eval_transform
from predicting.inputs import Photo
from pretrained import LoadedModel
from reporting.palette import LIGHT
from system.fonts import use_fonts

PHOTOS = 64  # looked at unless --photos says otherwise
CURVES = 6  # drawn per layer
VALUES = 1024  # inputs of each layer that are looked at
GREY, LEARNED = LIGHT.other, LIGHT.for_


@dataclass
class LayerSurvey:
    """What one KAN layer does on a sample of inputs."""

    values: Tensor  # some of its inputs (N, I)
    used: Tensor  # how much each curve varies, (O, I), (R, I) or (G,)
    share: float  # of the variation of its output that splines make
    outside: float  # share of its inputs beyond the grid


def sample_images(photos: Sequence[Photo], count: int, preprocess: Preprocess) -> Tensor:
    """Up to `count` readable photos, drawn evenly by a fixed seed, as a batch (B, 3, S, S)."""
    transform = eval_transform(preprocess)
    images: list[Tensor] = []
    for photo in random.Random(0).sample(list(photos), len(photos)):
        try:
            image = load_image(photo.path, transform.min_size, transform.reading)
            images.append(transform(image))
        except PhotoError:
            continue
        if len(images) == count:
            break
    if not images:
        raise ValueError("none of the photos in --data can be read")
    return torch.stack(images)


@torch.no_grad()
def layer_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """For each KAN layer up to VALUES of the inputs (N, I) that the images bring, drawn evenly."""
    layers = curves.kan_layers(model)
    each = max(1, VALUES // len(images))
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(0)
    with curves.recording(layers) as records:
        for chunk in images.split(curves.CHUNK):
            model(chunk)
            for name, record in records.items():
                rows = record.inputs.flatten(0, -2)
                some = torch.randperm(len(rows), generator=generator)[: each * len(chunk)]
                found[name].append(rows[some.to(rows.device)])
    return {name: torch.cat(rows) for name, rows in found.items()}


def grid_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Without photos: values spread evenly over each layer's grid."""
    drawn, generator = {}, torch.Generator().manual_seed(0)
    for name, layer in curves.kan_layers(model).items():
        size = layer.in_features // layer.curves
        low, high = (v.repeat_interleave(size) for v in (layer.low, layer.high))
        values = torch.rand(256, layer.in_features, generator=generator).to(low)
        drawn[name] = low + (high - low) * values
    return drawn


@torch.no_grad()
def survey(layer: nn.Module, values: Tensor) -> LayerSurvey:
    base = layer.compute_base_output(values)
    whole = layer(values)
    share = (whole - base).var(0).sum() / whole.var(0).sum().clamp_min(1e-12)
    outside = 1 - layer.coverage(values)
    return LayerSurvey(values, curves.usage(layer, values), float(share), outside)


@contextmanager
def without_splines(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, the layers compute their base terms alone."""

    def base_alone(layer, args, output):
        rows = args[0].reshape(-1, layer.in_features)
        return layer.compute_base_output(rows).view_as(output)

    hooks = [layer.register_forward_hook(base_alone) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def block_effects(model: nn.Module, images: Tensor) -> dict[int, tuple[float, float]]:
    """By block, what removing its splines does: mean |change| of a logit, share of new answers."""
    by_block: dict[int, list[nn.Module]] = {}
    for name, layer in curves.kan_layers(model).items():
        by_block.setdefault(curves.block_of(name), []).append(layer)
    before = in_chunks(model, images)
    effects = {}
    for block, layers in by_block.items():
        with without_splines(layers):
            after = in_chunks(model, images)
        changed = (after.argmax(1) != before.argmax(1)).float().mean()
        effects[block] = (float((after - before).abs().mean()), float(changed))
    return effects


def in_chunks(model: nn.Module, images: Tensor, size: int = 16) -> Tensor:
    """Logits (B, K) of a batch that may be large."""
    return torch.cat([model(chunk) for chunk in images.split(size)])


def report(surveys: dict[str, LayerSurvey], effects: dict[int, tuple[float, float]]) -> list[str]:
    """The table of layers, with the effect of a block at its first layer."""
    lines = [
        "                    splines' share   outside   without the block's splines",
        "block  layer  curves     of output  the grid   logits move   new answers",
    ]
    seen = set()
    for name, one in surveys.items():
        block = curves.block_of(name)
        line = (
            f"{block + 1:5d}  {curves.part_of(name):5s}  {one.used.numel():6d}  {one.share:11.2%}"
            f"  {one.outside:8.2%}"
        )
        if block not in seen:
            moved, changed = effects[block]
            line += f"   {moved:11.4f}   {changed:11.1%}"
        seen.add(block)
        lines.append(line)
    return lines


def most_used(name: str, one: LayerSurvey) -> list[Curve]:
    flat = one.used.flatten()
    places = flat.topk(min(CURVES, len(flat))).indices
    return [
        Curve(name, tuple(int(n) for n in torch.unravel_index(place, one.used.shape)), 0.0)
        for place in places
    ]


def draw_block(block: int, layers: dict[str, nn.Module], surveys: dict[str, LayerSurvey]):
    """A figure with the most used curves of each layer of a block, learned against initial."""
    from matplotlib.figure import Figure

    names = [name for name in surveys if curves.block_of(name) == block]
    figure = Figure(figsize=(15, 2.9 * len(names) + 0.6), layout="constrained")
    figure.suptitle(
        f"Block {block + 1}: the most used splines of each layer. "
        "Solid: learned; dashed: before training; grey: the values met.",
        fontsize=11,
    )
    rows = figure.subplots(len(names), CURVES, squeeze=False)
    for row, name in zip(rows, names, strict=True):
        drawn = most_used(name, surveys[name])
        for axes in row[len(drawn) :]:
            axes.axis("off")
        for axes, curve in zip(row, drawn, strict=False):
            draw_curve(axes, curve, layers[name], surveys[name].values)
    return figure


def draw_curve(axes, curve: Curve, layer: nn.Module, values: Tensor) -> None:
    met = curves.acting_on(curve, layer, values).flatten().float()
    x = torch.linspace(*(float(end) for end in (met.min(), met.max())), 200, device=met.device)
    initial = curves.base_of(curve, layer, x)
    learned = initial + curves.evaluate(curve, layer, x)
    spread = axes.twinx()
    spread.hist(met.cpu(), bins=40, color=GREY, alpha=0.35)
    spread.set_yticks([])
    axes.set_zorder(spread.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(x.cpu(), initial.cpu(), "--", color="black", linewidth=1)
    axes.plot(x.cpu(), learned.cpu(), color=LEARNED, linewidth=2)
    axes.set_title(curve.describe(layer).split(", ", 1)[1], fontsize=9)
    axes.tick_params(labelsize=7)


def draw_importance(surveys: dict[str, LayerSurvey], effects: dict[int, tuple[float, float]]):
    """A figure of what the table says: three bar charts over blocks and layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    names = [f"{curves.block_of(name) + 1}.{curves.part_of(name)}" for name in surveys]
    first.bar([block + 1 for block in effects], [moved for moved, _ in effects.values()])
    first.set(title="logits move by, without a block's splines", xlabel="block")
    second.bar(names, [100 * one.share for one in surveys.values()])
    second.set(title="splines' share of the output, %", xlabel="block.layer")
    third.bar(names, [100 * one.outside for one in surveys.values()])
    third.set(title="activations outside the grid, %", xlabel="block.layer")
    for axes in (first, second, third):
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    for axes in (second, third):
        axes.tick_params(axis="x", rotation=90)
    return figure


def explain_layers(loaded: LoadedModel, images: Tensor | None, folder: Path) -> None:
    """Prints the table and writes the pictures of a KAN-ViT."""
    use_fonts()
    model, layers = loaded.model, curves.kan_layers(loaded.model)
    inputs = grid_inputs(model) if images is None else layer_inputs(model, images)
    surveys = {name: survey(layers[name], values) for name, values in inputs.items()}
    if images is None:
        print("curves are drawn over their grids; --data FOLDER shows where photos use them")
    else:
        effects = block_effects(model, images)
        print(*report(surveys, effects), sep="\n")
        draw_importance(surveys, effects).savefig(folder / "importance.png", dpi=110)
    for block in sorted({curves.block_of(name) for name in layers}):
        figure = draw_block(block, layers, surveys)
        figure.savefig(folder / f"block_{block + 1:02d}.png", dpi=90)
    print(f"pictures: {folder}")
