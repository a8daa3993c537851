"""Shows what a trained model is made of, and makes it smaller.

    python explain.py weights/run/best.pth                           # a page on its splines
    python explain.py weights/run/best.pth --data flower_photos      # ... on these photos
    python explain.py weights/run/best.pth --data flower_photos --prune 0.3

For a KAN-ViT explain.html shows what its splines do on the photos that its run kept for validation
(or those of --data): of each block the ten that matter most, the photos at both ends of each one's
axis, the classes that it speaks for and against. A table says what each block's splines do: how
much of a layer's output they make, how many activations leave the grid, how the answers change
without them; one picture per block shows the most used ones, learned against initial. --prune
removes the least important hidden units of every block and saves a checkpoint that is really
smaller, and that calls no photo unknown before it is trained further.

A network of plain KAN layers (kan.KAN, saved by plain_kan.save_network, or a state dict of
efficient-kan) is drawn as a graph of curves and read as a formula; --data then is a CSV file of
points, and --prune P removes the nodes whose edges vary less than the share P of the largest, but
for what they give on average, which biases keep:

    python explain.py kan.pth --data points.csv --prune 0.03

Predictions are explained by `predict.py --explain`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from explaining import curves
from explaining.kan_vit import PHOTOS, explain_layers, sample_photos
from explaining.page_words import page_words
from explaining.parts import told_apart
from explaining.plain_kan import read_network
from explaining.plain_report import explain_network
from explaining.pruning import prune
from explaining.spline_page import PAGE, Seen, require_own, write_page, write_unlearned
from formats.finding import find_weights, place_of, weights_name
from formats.opening import open_weights
from imaging.digests import TrainedOn
from predicting.classifier import Classifier, photos_per_second
from predicting.inputs import find_photos
from predicting.predictor import Predictor
from predicting.run_photos import RunPhotos, run_photos
from pretrained import LoadedModel, load_model, save_weights
from system.devices import pick_device
from system.files import make_output_folder
from system.flags import DEVICES, REQUIRED, Given, Need, Section, existing, number, parse
from system.terminal import command, counted, printable, run_cli, table

CHECKPOINT, LOOK, MAKE = Section(""), Section("what to look at"), Section("what to make")


@dataclass(frozen=True)
class Options(Given):
    """What a command line of explain.py says, a row for each flag: see `system.flags`."""

    checkpoint: str = CHECKPOINT.row(
        REQUIRED,
        "a checkpoint of any format, or a name to download it by",
        "checkpoint",
        type=weights_name,
        metavar="CKPT",
    )
    data: str | None = LOOK.row(
        None,
        "photos to look at (default: those that the checkpoint's run kept for validation); with "
        "class folders, accuracy is told before and after --prune (for a plain KAN: a CSV file of "
        "points, a column per input, then per output)",
        type=existing,
        metavar="DIR",
    )
    photos: int | None = LOOK.row(
        None,
        f"how many photos are looked at (default: {PHOTOS})",
        type=number(int, 1),
        metavar="N",
        needs=Need(
            "a Vision Transformer (of a plain KAN all points are used)",
            lambda options, known: not known.get("plain"),
        ),
    )
    device: str = LOOK.row("auto", DEVICES, metavar="NAME")
    output: str | None = MAKE.row(
        None, "for the page and pictures (default: explain/ beside the checkpoint)", metavar="DIR"
    )
    prune: float | None = MAKE.row(
        None,
        "remove this share of the hidden units of every block, those that matter least (of a "
        "plain KAN: the nodes with edges that vary less than this, compared to the largest)",
        type=number(float, 0, 0.99),
        metavar="P",
        needs=Need(
            "--data DIR: photos tell which units matter",
            lambda options, known: bool(options.data) or known.get("plain"),
        ),
        idle=(0.0,),
    )

    @property
    def folder(self) -> Path:
        """Where the pictures go."""
        return Path(self.output or place_of(self.checkpoint).parent / "explain")


def parse_args(argv: Sequence[str] | None = None) -> Options:
    about = "Show what a trained model is made of, and make it smaller."
    return parse(Options, argv, prog="explain.py", description=about)


def prune_and_report(loaded, images, photos, share: float, folder: Path, device) -> None:
    """Removes units, prints what it cost and brought, saves the smaller checkpoint."""
    small = prune(loaded.model, images, share)
    rows, right = [("", "parameters", "accuracy", "photos a second")], {}
    for name, model in (("before", loaded.model), ("after", small)):
        classifier = Classifier.of(loaded).computing_with(model)
        score = Predictor(classifier, device=device).score(photos)
        right[name] = score.accuracy
        size = sum(parameter.numel() for parameter in model.parameters())
        speed = photos_per_second(model, images[:32])
        rows.append((name, f"{size / 1e6:.2f} M", score.word, f"{speed:.1f}"))
    print(*table(rows, "<>>>"), *score.caveats(), sep="\n")
    # What the file knows of training photos is of the model before. Its temperature stays: of a
    # KAN-ViT the likeliest went from 0.65 to 0.66 at most, with up to 0.7 of the units removed.
    told = {"metrics": {"pruned": share, "accuracy_on_data": right["after"]}, "known": {}}
    weights = replace(loaded.weights, meta=loaded.weights.meta | told)
    path = folder / "pruned.pth"
    save_weights(path, replace(loaded, model=small, weights=weights))
    further = command("python", "train.py", "--weights", path)
    print(f"saved: {path}; to train it further: {further}")
    if loaded.facts["known"]:
        print("until then it calls no photo unknown: its features are no longer those of the file")


def tell_zeros(model) -> None:
    """Says where no spline has learned anything: its curves are flat."""
    layers = curves.kan_layers(model).values()
    if zero := sum(layer.splines_are_zero for layer in layers):
        print(f"the splines of {zero} of {counted(len(layers), 'KAN layer')} are zero: not trained")


def photos_to_see(options: Options, classes: Sequence[str]) -> RunPhotos | None:
    """Returns the photos of --data, else of the checkpoint's run; None, and says why, without any.

    Raises FileNotFoundError where --photos was typed and there are none.
    """
    try:
        return photos_of(options.data, options.checkpoint, classes)
    except FileNotFoundError as error:
        if options.photos:
            raise FileNotFoundError(f"--photos {options.photos}: {error}") from None
        print(f"no {PAGE}: {error}")
        return None


def see(options: Options, loaded: LoadedModel, found: RunPhotos) -> Seen:
    """Returns some of the photos as images, and which they are in words."""
    say = page_words(loaded.classes)[1]
    count = options.photos or PHOTOS
    photos, images = sample_photos(found.photos, count, loaded.preprocess)
    if options.data:
        where = [say("of_data", len(photos), printable(options.data))]
    else:
        key = "of_folds" if found.in_folds else "of_run"
        where = [say(key, len(photos), found.listed)]
    known = TrainedOn(loaded.facts["trained_on"]).among(photo.path for photo in photos)
    if any(known) and not found.in_folds:
        where.append(say("trained", sum(known)))
    return Seen(photos, images, where)


def photos_of(data: str | None, checkpoint: str, classes: Sequence[str]) -> RunPhotos:
    if data is None:
        return run_photos(checkpoint, classes)
    photos = [photo for photo in find_photos([data], classes) if not photo.error]
    return RunPhotos(photos, len(photos))


def explain_splines(options: Options, loaded: LoadedModel, seen: Seen | None) -> None:
    """Prints and draws what the splines are, and writes the page on what they do."""
    tell_zeros(loaded.model)
    model, folder = told_apart(loaded.model), options.folder
    surveys, effects = explain_layers(
        replace(loaded, model=model), seen and seen.images, options.folder
    )
    place = place_of(options.checkpoint)
    name = printable("/".join(place.parts[-2:]))  # of the run and its file
    if not curves.anything_learned(model):
        print(page_words(loaded.classes)[1]("unlearned"))
        print(f"page: {write_unlearned(folder, name, model, loaded.classes)}")
    elif seen:
        facts = (name, model, loaded.classes, loaded.preprocess)
        print(f"page: {write_page(folder, *facts, seen, surveys, effects)}")


def explain_vit(options: Options) -> None:
    """Explains the KAN layers of a Vision Transformer, and with --prune makes it smaller."""
    device = pick_device(options.device)
    loaded = load_model(options.checkpoint, device=device, merge=True)
    print(*loaded.notes, sep="\n", end="\n" * bool(loaded.notes))
    has_kan = bool(curves.kan_layers(loaded.model))
    prunes = options.prune is not None and options.data is not None
    if not has_kan and not prunes:
        raise ValueError(
            f"{options.checkpoint} has no KAN layers to draw; predict.py --explain shows where it "
            "looks, and --prune makes it smaller"
        )
    make_output_folder(options.folder)
    require_own(options.folder)
    found = photos_to_see(options, loaded.classes)
    seen = found and see(options, loaded, found)
    if seen:
        seen.images = seen.images.to(device)
    if has_kan:
        explain_splines(options, loaded, seen)
    if prunes:
        prune_and_report(loaded, seen.images, found.photos, options.prune, options.folder, device)


def main() -> None:
    options = parse_args()
    network = read_network(options.checkpoint, open_weights(find_weights(options.checkpoint)))
    options.refuse_idle(plain=network is not None)
    if network is None:
        explain_vit(options)
        return
    make_output_folder(options.folder)
    explain_network(network, options.data, options.folder, options.prune)


if __name__ == "__main__":
    run_cli(main)
