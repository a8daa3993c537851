"""What the splines of a KAN-ViT do, block by block: pictures and a table."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from explaining import curves
from explaining.curves import Curve
from explaining.page_words import page_words
from explaining.words import Say, place_in_words
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import Preprocess, eval_transform
from predicting.inputs import Photo
from pretrained import LoadedModel
from reporting.palette import LIGHT
from reporting.plots import save
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


def sample_photos(
    photos: Sequence[Photo], count: int, preprocess: Preprocess
) -> tuple[list[Photo], Tensor]:
    """Up to `count` photos that can be read, drawn evenly by a fixed seed, and (B, 3, S, S).

    Of photos that are the same to the model, one.
    """
    transform = eval_transform(preprocess)
    found: dict[bytes, tuple[Photo, Tensor]] = {}
    for photo in random.Random(0).sample(list(photos), len(photos)):
        try:
            image = transform(load_image(photo.path, transform.min_size, transform.reading))
        except PhotoError:
            continue
        found.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), (photo, image))
        if len(found) == count:
            break
    if not found:
        raise ValueError("none of the photos can be read: give others with --data DIR")
    chosen, images = zip(*found.values(), strict=True)
    return list(chosen), torch.stack(images)


def sample_images(photos: Sequence[Photo], count: int, preprocess: Preprocess) -> Tensor:
    """The images (B, 3, S, S) of `sample_photos`."""
    return sample_photos(photos, count, preprocess)[1]


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


class Effect(NamedTuple):
    """What a change does to answers: mean |change| of a logit, share of photos answered anew."""

    moved: float
    changed: float

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> "Effect":
        """Of logits (B, K) before and after."""
        changed = (after.argmax(1) != before.argmax(1)).float().mean()
        return cls(float((after - before).abs().mean()), float(changed))


def layers_by_block(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The KAN layers of each block that has some."""
    found: dict[int, list[nn.Module]] = {}
    for name, layer in curves.kan_layers(model).items():
        found.setdefault(curves.block_of(name), []).append(layer)
    return found


def block_effects(model: nn.Module, images: Tensor) -> dict[int, Effect]:
    """By block, what removing its splines does."""
    found = layers_by_block(model)
    return effects_of(model, images, {n: partial(without_splines, found[n]) for n in found})


@torch.no_grad()
def effects_of(
    model: nn.Module, images: Tensor, changes: dict[int, Callable[[], AbstractContextManager]]
) -> dict[int, Effect]:
    """What each change does to the answers. changes: by block, what changes this block within it.

    The blocks before the changed one are computed once for all.
    """
    before, after = [], {block: [] for block in changes}
    for chunk in images.split(16):
        tokens = model.embed(chunk)
        for block in range(len(model.blocks)):
            if block in changes:
                with changes[block]():
                    after[block].append(model.forward_rest(tokens, block))
            tokens = model.forward_blocks(tokens, block, block + 1)
        before.append(model.forward_head(model.norm(tokens)))
    before = torch.cat(before)
    return {block: Effect.of(before, torch.cat(logits)) for block, logits in after.items()}


@torch.no_grad()
def in_chunks(model: nn.Module, images: Tensor, size: int = 16) -> Tensor:
    """Logits (B, K) of a batch that may be large."""
    return torch.cat([model(chunk) for chunk in images.split(size)])


def report(surveys: dict[str, LayerSurvey], effects: dict[int, Effect]) -> list[str]:
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


def draw_block(
    block: int, layers: dict[str, nn.Module], surveys: dict[str, LayerSurvey], say: Say, note: str
):
    """A figure with the most used curves of each layer of a block, learned against initial."""
    from matplotlib.figure import Figure

    names = [name for name in surveys if curves.block_of(name) == block]
    height = 2.9 * len(names) + 0.6  # inches
    figure = Figure(figsize=(15, height))
    figure.subplots_adjust(0.03, 0.35 / height, 0.99, 1 - 0.95 / height, 0.18, 0.3)
    figure.suptitle(say("most_used", block + 1) + note, fontsize=11)
    rows = figure.subplots(len(names), CURVES, squeeze=False)
    for row, name in zip(rows, names, strict=True):
        drawn = most_used(name, surveys[name])
        for axes in row[len(drawn) :]:
            axes.axis("off")
        for axes, curve in zip(row, drawn, strict=False):
            draw_curve(axes, curve, layers[name], surveys[name].values, say)
    return figure


def draw_curve(axes, curve: Curve, layer: nn.Module, values: Tensor, say: Say) -> None:
    met = curves.acting_on(curve, layer, values).flatten().float()
    x = torch.linspace(*(float(end) for end in (met.min(), met.max())), 200, device=met.device)
    initial = curves.base_of(curve, layer, x)
    learned = initial + curves.evaluate(curve, layer, x)
    counts, edges = torch.histogram(met.cpu(), 40)
    high = counts / counts.max()
    axes.stairs(
        high, edges, fill=True, color=GREY, alpha=0.35, transform=axes.get_xaxis_transform()
    )
    axes.plot(x.cpu(), initial.cpu(), "--", color="black", linewidth=1)
    axes.plot(x.cpu(), learned.cpu(), color=LEARNED, linewidth=2)
    axes.set_title(place_in_words(curve.place(layer), say), fontsize=9)
    axes.tick_params(labelsize=7)


def draw_importance(surveys: dict[str, LayerSurvey], effects: dict[int, Effect], say: Say):
    """A figure of what the table says: three bar charts over blocks and layers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    names = [f"{curves.block_of(name) + 1}.{curves.part_of(name)}" for name in surveys]
    first.bar([str(block + 1) for block in effects], [one.moved for one in effects.values()])
    first.set(title=say("moved_bars"), xlabel=say("block"))
    second.bar(names, [100 * one.share for one in surveys.values()])
    second.set(title=say("share_bars"), xlabel=say("block_layer"))
    third.bar(names, [100 * one.outside for one in surveys.values()])
    third.set(title=say("outside_bars"), xlabel=say("block_layer"))
    for axes in (first, second, third):
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    for axes in (second, third):
        axes.tick_params(axis="x", rotation=90)
    return figure


def note_on(model: nn.Module, say: Say) -> str:
    """What a title adds where splines are as before training."""
    return "" if curves.anything_learned(model) else "\n" + say("unlearned")


def explain_layers(
    loaded: LoadedModel, images: Tensor | None, folder: Path
) -> tuple[dict[str, LayerSurvey], dict[int, Effect]]:
    """Prints the table and writes the pictures of a KAN-ViT; returns what each layer, block does.

    Without images nothing is known of blocks.
    """
    use_fonts()
    model, layers = loaded.model, curves.kan_layers(loaded.model)
    say = page_words(loaded.classes)[1]
    inputs = grid_inputs(model) if images is None else layer_inputs(model, images)
    surveys = {name: survey(layers[name], values) for name, values in inputs.items()}
    effects: dict[int, Effect] = {}
    if images is None:
        print("curves are drawn over their grids; --data FOLDER shows where photos use them")
    else:
        effects = block_effects(model, images)
        print(*report(surveys, effects), sep="\n")
        save(draw_importance(surveys, effects, say), folder / "importance.png")
    note = note_on(model, say)
    for block in layers_by_block(model):
        figure = draw_block(block, layers, surveys, say, note)
        save(figure, folder / f"block_{block + 1:02d}.png")
    print(f"pictures: {folder}")
    return surveys, effects
