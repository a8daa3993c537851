"""Shows what a trained model is made of, and makes it smaller.

    python explain.py weights/run/best.pth                           # curves and a table
    python explain.py weights/run/best.pth --data flower_photos      # ... and where they are used
    python explain.py weights/run/best.pth --data flower_photos --prune 0.3

For a KAN-ViT one picture per block shows the most used splines of its two layers, learned against
initial, and a table says what each block's splines do: how much of a layer's output they make, how
many activations leave the grid, how the answers change without them. --prune removes the least
important hidden units of every block and saves a checkpoint that is really smaller.

A network of plain KAN layers (kan.KAN, saved by plain_kan.save_network, or a state dict of
efficient-kan) is drawn as a graph of curves and read as a formula; --data then is a CSV file of
points, and --prune P removes the nodes whose edges vary less than the share P of the largest:

    python explain.py kan.pth --data points.csv --prune 0.03

Predictions are explained by `predict.py --explain`.
"""

import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import edges
from answers import make_output_folder
from classifier import Classifier, photos_per_second
from edges import Curve
from find_photos import Photo, find_photos
from my_dataset import PhotoError, Preprocess, eval_transform, load_image
from options import DEVICES, Parser, existing, number, pick_device, run_cli
from plain_kan import read_network
from predict import score_photos
from pretrained import LoadedModel, load_model, save_weights
from pruning import prune
from weight_files import open_weights

PHOTOS = 64  # looked at unless --photos says otherwise
CURVES = 6  # drawn per layer
VALUES = 1024  # inputs of each layer that are looked at
GREY, LEARNED = "#9aa5b1", "#c0392b"


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
            images.append(transform(load_image(photo.path, transform.min_size)))
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
    layers = edges.kan_layers(model)
    each = max(1, VALUES // len(images))
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(0)
    with edges.recording(layers) as records:
        for chunk in images.split(edges.CHUNK):
            model(chunk)
            for name, record in records.items():
                rows = record.inputs.flatten(0, -2)
                some = torch.randperm(len(rows), generator=generator)[: each * len(chunk)]
                found[name].append(rows[some.to(rows.device)])
    return {name: torch.cat(rows) for name, rows in found.items()}


def grid_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Without photos: values spread evenly over each layer's grid."""
    drawn = {}
    for name, layer in edges.kan_layers(model).items():
        size = layer.in_features // layer.curves
        low, high = (v.repeat_interleave(size) for v in (layer.low, layer.high))
        drawn[name] = low + (high - low) * torch.rand(256, layer.in_features, device=low.device)
    return drawn


@torch.no_grad()
def survey(layer: nn.Module, values: Tensor) -> LayerSurvey:
    base = layer.linear(values)
    whole = layer(values)
    share = (whole - base).var(0).sum() / whole.var(0).sum().clamp_min(1e-12)
    outside = 1 - layer.coverage(values)
    return LayerSurvey(values, edges.usage(layer, values), float(share), outside)


@contextmanager
def without_splines(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, the layers compute their base terms alone."""

    def base_alone(layer, args, output):
        rows = args[0].reshape(-1, layer.in_features)
        return layer.linear(rows).view_as(output)

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
    for name, layer in edges.kan_layers(model).items():
        by_block.setdefault(edges.block_of(name), []).append(layer)
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
        block = edges.block_of(name)
        line = (
            f"{block + 1:5d}  {name[-3:]:5s}  {one.used.numel():6d}  {one.share:11.2%}"
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

    names = [name for name in surveys if edges.block_of(name) == block]
    figure = Figure(figsize=(15, 2.9 * len(names) + 0.6), layout="constrained")
    figure.suptitle(
        f"Block {block + 1}: the most used splines of each layer. "
        "Red: learned; dashed: before training; grey: the values met.",
        fontsize=11,
    )
    rows = figure.subplots(len(names), CURVES, squeeze=False)
    for row, name in zip(rows, names, strict=True):
        curves = most_used(name, surveys[name])
        for axes in row[len(curves) :]:
            axes.axis("off")
        for axes, curve in zip(row, curves, strict=False):
            draw_curve(axes, curve, layers[name], surveys[name].values)
    return figure


def draw_curve(axes, curve: Curve, layer: nn.Module, values: Tensor) -> None:
    met = edges.acting_on(curve, layer, values).flatten().float()
    x = torch.linspace(*(float(end) for end in (met.min(), met.max())), 200, device=met.device)
    initial = edges.base_of(curve, layer, x)
    learned = initial + edges.evaluate(curve, layer, x)
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
    names = [f"{edges.block_of(name) + 1}.{name[-1]}" for name in surveys]
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
    from fonts import use_fonts

    use_fonts()
    model, layers = loaded.model, edges.kan_layers(loaded.model)
    inputs = grid_inputs(model) if images is None else layer_inputs(model, images)
    surveys = {name: survey(layers[name], values) for name, values in inputs.items()}
    if images is None:
        print("curves are drawn over their grids; --data FOLDER shows where photos use them")
    else:
        effects = block_effects(model, images)
        print(*report(surveys, effects), sep="\n")
        draw_importance(surveys, effects).savefig(folder / "importance.png", dpi=110)
    for block in sorted({edges.block_of(name) for name in layers}):
        figure = draw_block(block, layers, surveys)
        figure.savefig(folder / f"block_{block + 1:02d}.png", dpi=90)
    print(f"pictures: {folder}")


def prune_and_report(loaded, images, photos, args: Namespace, device) -> None:
    """Removes units, prints what it cost and brought, saves the smaller checkpoint."""
    small = prune(loaded.model, images, args.prune)
    lines, right = [], {}
    for name, model in (("before", loaded.model), ("after", small)):
        classifier = Classifier.of(loaded).computing_with(model)
        score = score_photos(classifier, photos, device)
        right[name] = score.right / score.total if score.total else None
        known = "unknown" if right[name] is None else f"{right[name]:.4f}"
        size = sum(parameter.numel() for parameter in model.parameters())
        speed = photos_per_second(model, images[:32])
        lines.append(f"{name:6s}  {size / 1e6:10.2f} M  {known:>8s}  {speed:15.1f}")
    print("        parameters    accuracy  photos a second", *lines, sep="\n")
    metrics = {"pruned": args.prune, "accuracy_on_data": right["after"]}
    weights = replace(loaded.weights, meta=loaded.weights.meta | {"metrics": metrics})
    path = args.output / "pruned.pth"
    save_weights(path, replace(loaded, model=small, weights=weights))
    print(f"saved: {path} (train.py --weights {path} trains it further)")


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(
        prog="explain.py",
        description="Show what a trained model is made of, and make it smaller.",
    )
    parser.add_argument(
        "checkpoint", type=existing, metavar="CKPT", help="a checkpoint of any format"
    )
    flag = parser.add_argument_group("what to look at").add_argument
    flag(
        "--data",
        type=existing,
        metavar="DIR",
        help="photos to look at; with class folders, accuracy is told before and after --prune "
        "(for a plain KAN: a CSV file of points, a column per input, then per output)",
    )
    flag(
        "--photos",
        type=number(int, 1),
        metavar="N",
        help=f"how many of --data are looked at (default: {PHOTOS})",
    )
    flag("--device", default="auto", metavar="NAME", help=DEVICES)
    flag = parser.add_argument_group("what to make").add_argument
    flag("--output", metavar="DIR", help="for pictures (default: explain/ beside the checkpoint)")
    flag(
        "--prune",
        type=number(float, 0, 0.99),
        metavar="P",
        help="remove this share of the hidden units of every block, those that matter least (of a "
        "plain KAN: the nodes with edges that vary less than this, compared to the largest)",
    )
    args = parser.parse_args(argv)
    if args.photos and not args.data:
        parser.error("--photos needs --data DIR")
    args.output = Path(args.output or Path(args.checkpoint).parent / "explain")
    return args


def explain_vit(args: Namespace) -> None:
    """Draws the KAN layers of a Vision Transformer, and with --prune makes it smaller."""
    if args.prune is not None and not args.data:
        raise ValueError("--prune needs --data DIR: photos tell which units matter")
    device = pick_device(args.device)
    loaded = load_model(args.checkpoint, device=device)
    has_kan = bool(edges.kan_layers(loaded.model))
    if not has_kan and args.prune is None:
        raise ValueError(
            f"{args.checkpoint} has no KAN layers to draw; predict.py --explain shows where it "
            "looks, and --prune makes it smaller"
        )
    make_output_folder(args.output)
    photos, images = [], None
    if args.data:
        photos = [p for p in find_photos([args.data], loaded.classes) if not p.error]
        images = sample_images(photos, args.photos or PHOTOS, loaded.preprocess).to(device)
    if has_kan:
        explain_layers(loaded, images, args.output)
    if args.prune is not None:
        prune_and_report(loaded, images, photos, args, device)


def main() -> None:
    args = parse_args()
    network = read_network(args.checkpoint, open_weights(args.checkpoint))
    if network is None:
        explain_vit(args)
        return
    from explain_plain import explain_network

    make_output_folder(args.output)
    explain_network(network, args)


if __name__ == "__main__":
    run_cli(main)
