"""What becomes of a checkpoint on its way out: ONNX, 8-bit weights, pruning; accuracy and speed.

    python -m benchmarks.export_speed vit.pth kan.pth --data val --other-data train

For each checkpoint a row for torch (float32), for its ONNX file and for the same with 8-bit weights
in onnxruntime, and for torch again with a share of the hidden units pruned: megabytes, photos per
second of the model alone (best of --turns over --photos photos in batches of 16), accuracy over the
class folders of --data, and the largest difference of logits from the first row's. Which units
matter is found on photos of --other-data.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import export
from explaining.kan_vit import sample_images
from explaining.pruning import prune
from formats import onnx_files
from formats.portable import portable
from predicting.classifier import Classifier, photos_per_second
from predicting.inputs import find_photos
from predicting.predictor import Predictor
from pretrained import LoadedModel, load_model


class Form(NamedTuple):
    """One way to compute a checkpoint's logits, and its size in bytes."""

    name: str
    forward: Callable[[Tensor], Tensor]
    size: int


def forms(loaded: LoadedModel, options: argparse.Namespace) -> Iterator[Form]:
    """The checkpoint as it is, exported, with 8-bit weights, and pruned."""
    yield Form("torch", loaded.model, size_of(loaded.model))
    images = export.sample_images(loaded, 2)
    data = onnx_files.onnx_bytes(portable(loaded.model), images, export.facts_of(loaded))
    yield Form("onnxruntime", onnx_files.session_forward(onnx_files.onnx_session(data)), len(data))
    small = onnx_files.quantized(data)
    yield Form(
        "onnxruntime, int8", onnx_files.session_forward(onnx_files.onnx_session(small)), len(small)
    )
    photos = list(find_photos([options.other_data]))
    calibration = sample_images(photos, options.prune_photos, loaded.preprocess)
    for share in options.prune:
        pruned = prune(loaded.model, calibration, share)
        yield Form(f"torch, {share:.0%} pruned", pruned, size_of(pruned))


def size_of(model: torch.nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


@torch.no_grad()
def report(checkpoint: str, options: argparse.Namespace) -> None:
    """Prints the rows of one checkpoint."""
    loaded = load_model(checkpoint)
    classifier = Classifier.of(loaded)
    photos = [p for p in find_photos([options.data], loaded.classes) if p.truth is not None]
    images = sample_images(photos, options.photos, loaded.preprocess)
    wanted = loaded.model(images)
    print(f"{classifier.title} ({checkpoint})")
    print("form                      MB  photos a second  accuracy        logits differ by")
    for form in forms(loaded, options):
        rate = photos_per_second(form.forward, images, turns=options.turns)
        known = "not measured"
        if not options.speed_only:
            score = Predictor(classifier.computing_with(form.forward), device="cpu").score(photos)
            known = f"{score.word} of {score.total}"
        away = float((form.forward(images) - wanted).abs().max())
        print(f"{form.name:20s}  {form.size / 1e6:6.1f}  {rate:15.1f}  {known:14s}  {away:.1e}",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT")
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders to score")
    parser.add_argument("--other-data", required=True, metavar="DIR", help="photos to prune by")
    parser.add_argument("--prune", type=float, nargs="*", default=[0.25, 0.5], metavar="P")
    parser.add_argument("--prune-photos", type=int, default=48)
    parser.add_argument("--photos", type=int, default=32, help="for the speed (32)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--speed-only", action="store_true", help="without the accuracy")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    for checkpoint in options.checkpoints:
        report(checkpoint, options)


if __name__ == "__main__":
    main()
