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

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from explaining import curves
from explaining.kan_vit import PHOTOS, explain_layers, sample_images
from explaining.plain_kan import read_network
from explaining.plain_report import explain_network
from explaining.pruning import prune
from formats.opening import open_weights
from predicting.classifier import Classifier, photos_per_second
from predicting.inputs import find_photos
from predicting.predictor import score_photos
from pretrained import load_model, save_weights
from system.devices import pick_device
from system.files import make_output_folder
from system.flags import DEVICES, Parser, existing, number
from system.terminal import run_cli, table


def prune_and_report(loaded, images, photos, args: Namespace, device) -> None:
    """Removes units, prints what it cost and brought, saves the smaller checkpoint."""
    small = prune(loaded.model, images, args.prune)
    rows, right = [("", "parameters", "accuracy", "photos a second")], {}
    for name, model in (("before", loaded.model), ("after", small)):
        classifier = Classifier.of(loaded).computing_with(model)
        score = score_photos(classifier, photos, device)
        right[name] = score.right / score.total if score.total else None
        known = "unknown" if right[name] is None else f"{right[name]:.4f}"
        size = sum(parameter.numel() for parameter in model.parameters())
        speed = photos_per_second(model, images[:32])
        rows.append((name, f"{size / 1e6:.2f} M", known, f"{speed:.1f}"))
    print(*table(rows, "<>>>"), sep="\n")
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
    has_kan = bool(curves.kan_layers(loaded.model))
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
    make_output_folder(args.output)
    explain_network(network, args)


if __name__ == "__main__":
    run_cli(main)
