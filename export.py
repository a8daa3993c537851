"""Writes a trained model for other programs.

    python export.py weights/run/best.pth                                # model.onnx beside it
    python export.py weights/run/best.pth --format pt2 --output m.pt2    # torch.export's archive
    python export.py weights/run/best.pth --format safetensors
    python export.py weights/run/best.pth --int8 --data flower_photos    # 8-bit weights, ONNX
    python export.py weights/run/best.pth --format web --output page     # a page that runs it

The page is a folder for any host of static files: see docs/export.md. Every other export is one
file, is checked against the checkpoint at once, and carries what a program needs to use it:
`classes`, `preprocess` (size, resize mode, mean, std), `config`, `metrics`, `temperature` and
`trained_on`, as JSON: in ONNX's metadata_props, in pt2's extra file `facts.json`, in the header of
safetensors. `images` (batch, 3, S, S), normalised, go in, `logits` (batch, classes) come out; the
batch may have any size. ONNX and pt2 have divided them by the temperature: their softmax is what
predict.py prints. predict.py reads ONNX and safetensors, but no pt2: torch.export unpickles
whatever is in it.
"""

import io
import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.finding import check_output, place_of, weights_name
from formats.known import UNTOLD
from formats.onnx_files import (
    FACT_KEYS,
    onnx_bytes,
    onnx_session,
    quantized,
    quietly,
    session_forward,
    weights_in_bytes,
)
from formats.portable import norms_folded, portable
from imaging.preprocess import eval_transform
from imaging.sample_flowers import FLOWERS, draw_flower
from predicting.classifier import (
    AtTemperature,
    Classifier,
    Looking,
    photos_per_second,
)
from predicting.inputs import Photo, find_photos
from predicting.predictor import Predictor
from pretrained import LoadedModel, check_names, load_model, save_weights
from serving import web
from serving.models import names_of
from serving.rounding import changes, own_photos
from serving.runtime import runtime_files
from system.files import write_bytes
from system.flags import REQUIRED, Given, Need, Section, existing, on_off, parse
from system.terminal import command, run_cli, table

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
WEB = "web"  # a folder
FACTS = "facts.json"  # in a .pt2
OUTPUTS = "logits", "features"  # of ONNX: what the head reads tells unlike photos and near ones
PICTURES, BATCH = 48, 16  # on which the answers of 8 bits are compared
MOST_CHANGED = 0.05  # the share of other answers from which on 8 bits are advised against
TOLERANCE = 1e-4  # of logits of up to 1; both sides compute in float32, in another order


CHECKPOINT, OUTPUT, CLASSES = Section(""), Section("output"), Section("classes")


@dataclass(frozen=True)
class Options(Given):
    """What a command line of export.py says, a row for each flag: see `system.flags`."""

    checkpoint: str = CHECKPOINT.row(
        REQUIRED,
        "a checkpoint of any format, or a name to download it by",
        "checkpoint",
        type=weights_name,
        metavar="CKPT",
    )
    format: str | None = OUTPUT.row(
        None,
        "of the file, or web: a folder with a page that runs the model (default: as --output ends, "
        "else onnx)",
        choices=(*FORMATS, WEB),
    )
    output: str | None = OUTPUT.row(
        None,
        "the file, or the page's folder (default: beside the checkpoint, with the format's ending)",
        metavar="FILE",
    )
    int8: bool | None = OUTPUT.row(
        None,
        "8-bit weights in ONNX: a quarter of the size (default: for web alone)",
        kind="maybe",
        type=on_off,
        metavar="true|false",
    )
    runtime: str | None = OUTPUT.row(
        None,
        "with --format web: the npm package onnxruntime-web, unpacked (default: downloaded)",
        type=existing,
        metavar="DIR",
        needs=Need("--format web, which holds it", lambda options, _: options.kind == WEB),
    )
    data: str | None = CLASSES.row(
        None,
        "with --int8 or web: class folders to measure on what 8 bits change",
        type=existing,
        metavar="DIR",
        needs=Need("--int8, whose accuracy it measures", lambda options, _: options.small),
    )
    without_photos: bool = OUTPUT.row(
        False,
        "keep nothing of the training photos, neither their features nor digests (SECURITY.md)",
        kind="switch",
    )
    class_indices: str | None = CLASSES.row(
        None,
        "names for weights that hold none (default: numbers)",
        type=existing,
        metavar="FILE",
    )

    @property
    def kind(self) -> str:
        """The format, as said or as the output ends."""
        endings = {ending: kind for kind, ending in FORMATS.items()}
        return self.format or endings.get(Path(self.output or "").suffix.lower(), "onnx")

    @property
    def small(self) -> bool:
        """Whether weights are stored in 8 bits."""
        return self.kind == WEB if self.int8 is None else self.int8

    @property
    def path(self) -> Path:
        """The file or folder to write."""
        place = place_of(self.checkpoint)
        name = f"{place.stem}{'_int8' if self.small else ''}{FORMATS.get(self.kind)}"
        return Path(self.output or place.with_name("page" if self.kind == WEB else name))

    def check(self) -> None:
        if self.kind == WEB:
            return
        ending = Path(self.output or "").suffix.lower()
        endings = FORMATS.values()
        if self.output and ending not in endings:
            ways = ", ".join(endings)
            raise ValueError(f"--output {self.output} must end in {ways}: readers go by it")
        if self.output and ending != FORMATS[self.kind]:
            raise ValueError(
                f"--format {self.format} and --output {self.output} contradict each other"
            )
        if self.small and self.kind != "onnx":
            raise ValueError(f"--int8 writes ONNX, not {self.kind}")


def parse_args(argv: Sequence[str] | None = None) -> Options:
    about = "Write a trained model for other programs."
    return parse(Options, argv, prog="export.py", description=about)


def facts_of(loaded: LoadedModel) -> dict:
    """What travels with every export, as plain Python."""
    return {key: loaded.facts[key] for key in FACT_KEYS}


def sample_images(loaded: LoadedModel, batch: int, seed: int = 0) -> Tensor:
    size = loaded.preprocess.img_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pictures(loaded: LoadedModel) -> Tensor:
    """Images (PICTURES, 3, S, S) to compare answers on: drawn flowers, then as much noise."""
    transform, half = eval_transform(loaded.preprocess), PICTURES // 2
    names = itertools.islice(itertools.cycle(FLOWERS), half)
    drawn = [transform(draw_flower(name, number=n)) for n, name in enumerate(names)]
    return torch.cat([torch.stack(drawn), sample_images(loaded, PICTURES - half)])


def pt2_bytes(model: nn.Module, images: Tensor, facts: dict) -> bytes:
    """The model as an archive of torch.export."""
    with quietly():
        program = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # which names this machine's folders
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
    return buffer.getvalue()


def pt2_forward(data: bytes) -> Callable[[Tensor], Tensor]:
    """What an archive of our own computes; of others' it would run the code."""
    with quietly():
        return torch.export.load(io.BytesIO(data)).module()


@torch.inference_mode()
def checked_difference(loaded: LoadedModel, forward: Callable[[Tensor], Tensor]) -> float:
    """Returns how far logits differ at most from the checkpoint's, in batches of one and three.

    Raises ValueError where that is above TOLERANCE, for logits of more than 1 that share of them.
    """
    wanted, differences, largest = Classifier.of(loaded).forward, [], 1.0
    for batch in (1, 3):
        images = sample_images(loaded, batch, seed=batch)
        logits = wanted(images)
        differences.append(float((logits - forward(images)).abs().max()))
        largest = max(largest, float(logits.abs().max()))
    difference = max(differences)
    if not difference <= TOLERANCE * largest:
        raise ValueError(
            f"the exported model's logits differ by {difference:.2g} from the checkpoint's, which "
            f"are at most {largest:.3g}; nothing was written"
        )
    return difference


def labelled(folder: str, classes: Sequence[str]) -> list[Photo]:
    """The photos of a folder of class folders; raises ValueError where none is of a class."""
    photos = list(find_photos([folder], classes))
    if all(photo.truth is None for photo in photos):
        raise ValueError(f"--data {folder} holds no folder named after one of the model's classes")
    return photos


def export(loaded: LoadedModel, kind: str, path: Path) -> float:
    """Writes the model as `kind` and returns the largest difference of logits when read again.

    Raises ValueError, and leaves what was at `path`, where that is too large.
    """
    if kind == "safetensors":
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder, path.name)
            save_weights(draft, loaded)
            difference = checked_difference(loaded, Classifier.of(load_model(draft)).forward)
        save_weights(path, loaded)
        return difference
    rest = portable(loaded.model), loaded.temperature
    images, facts = sample_images(loaded, 2), facts_of(loaded)
    if kind == "onnx":
        data = onnx_bytes(Looking(*rest), images, facts, OUTPUTS)
        forward = session_forward(onnx_session(data))
    else:
        data = pt2_bytes(AtTemperature(*rest), images, facts)
        forward = pt2_forward(data)
    difference = checked_difference(loaded, forward)
    write_bytes(path, data)
    return difference


def export_int8(loaded: LoadedModel, path: Path, data: str | None) -> None:
    """Writes ONNX with 8-bit weights and prints what that changes.

    Raises ValueError, before anything is written, where `data` holds no photo of a class.
    """
    photos = labelled(data, loaded.classes) if data else []
    model = Looking(norms_folded(portable(loaded.model)), loaded.temperature)
    full = onnx_bytes(model, sample_images(loaded, 2), facts_of(loaded), OUTPUTS)
    small = quantized(full)
    write_bytes(path, small)
    images = pictures(loaded)
    with torch.inference_mode():
        answers = torch.cat([loaded.model(some).argmax(1) for some in images.split(BATCH)])
    rows = [("", "size, MB", "photos a second", "answers changed", "accuracy")]
    for name, content in (("float32", full), ("int8", small)):
        forward = session_forward(onnx_session(content))
        speed = photos_per_second(forward, images[:BATCH])
        classifier = Classifier.of(loaded).computing_with(forward)
        score = Predictor(classifier, device="cpu").score(photos) if photos else None
        known = score.word if score else "unknown (no --data)"
        found = torch.cat([forward(some).argmax(1) for some in images.split(BATCH)])
        changed = int((found != answers).sum())
        told = f"{changed} of {len(images)}"
        rows.append((name, f"{len(content) / 1e6:.1f}", f"{speed:.1f}", told, known))
    print(*table(rows, "<>>><"), *(score.caveats() if score else []), sep="\n")
    if changed > MOST_CHANGED * len(images):
        print(
            f"8 bits change {told} answers, on drawn flowers and noise: find out with --data what "
            f"they change on photos before {path} is used, or export without --int8"
        )


def web_bytes(loaded: LoadedModel, small: bool) -> bytes:
    """The model of a page as ONNX, in 8 bits or not, without the digests of its training photos.

    Raises ValueError where the model in floats does not give the checkpoint's logits.
    """
    # What the page must know of training photos stands in its facts; who has its files may not
    # learn whether a photo was among them.
    facts = facts_of(loaded) | {"trained_on": "", "known": {}}
    model = Looking(portable(loaded.model), loaded.temperature)
    data = onnx_bytes(model, sample_images(loaded, 2), facts, OUTPUTS)
    checked_difference(loaded, session_forward(onnx_session(data)))
    return weights_in_bytes(data) if small else data


def export_web(loaded: LoadedModel, options: Options) -> None:
    """Writes the page and prints its sizes, and what 8 bits change."""
    folder = options.path
    runtime = runtime_files(options.runtime)
    model, classifier = web_bytes(loaded, options.small), Classifier.of(loaded)
    facts = web.facts_of_page(classifier, *names_of([options.checkpoint]), model)
    size = web.write_page(folder, model, facts, runtime)
    if options.small:
        photos = own_photos(options.checkpoint, options.data, classifier)
        found = changes(classifier, session_forward(onnx_session(model)), photos)
        unknown = (
            "what 8 bits change is not known: no photo is here that the model was not trained on "
            "(--data DIR)"
        )
        print(*filter(None, [found.words, found.advice] if found else [unknown]), sep="\n")
    rest = sum(map(len, runtime.values()))
    print(f"written: {folder} ({size / 1e6:.1f} MB, and {rest / 1e6:.1f} MB of onnxruntime-web)")
    serve = command("python", "-m", "http.server", "--directory", folder)
    print(f"try: {serve}, then open http://localhost:8000")
    print("or put the folder on any host of static files; photos never leave the visitor's device")


def main() -> None:
    options = parse_args()
    path = options.path
    check_output("--output", path, options.checkpoint)
    if options.kind == WEB:
        web.check_folder(path)
    loaded = load_model(options.checkpoint, class_indices=options.class_indices, merge=True)
    loaded = loaded.without_photos() if options.without_photos else loaded
    check_names(options.checkpoint, loaded.classes, options.class_indices)
    untold = [UNTOLD] * (loaded.weights.format == "ours" and not loaded.facts["known"])
    print(*loaded.notes, *untold, sep="\n", end="\n" * bool(loaded.notes or untold))
    if options.kind == WEB:
        export_web(loaded, options)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.small:
        export_int8(loaded, path, options.data)
    else:
        difference = export(loaded, options.kind, path)
        print(f"checked: logits differ by at most {difference:.1e} from the checkpoint's")
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if options.kind != "pt2":
        print(f"try: {command('python', 'predict.py', 'PHOTO', '--weights', path)}")


if __name__ == "__main__":
    run_cli(main)
