"""Writes a trained model for other programs.

    python export.py weights/run/best.pth                                # model.onnx beside it
    python export.py weights/run/best.pth --format pt2 --output m.pt2    # torch.export's archive
    python export.py weights/run/best.pth --format safetensors
    python export.py weights/run/best.pth --int8 --data flower_photos    # 8-bit weights, ONNX

Every file is one file, is checked against the checkpoint at once, and carries what a program needs
to use it: `classes`, `preprocess` (size, resize mode, mean, std), `config` and `metrics`, as JSON:
in ONNX's metadata_props, in pt2's extra file `facts.json`, in the header of safetensors. `images`
(batch, 3, S, S), normalised, go in, `logits` (batch, classes) come out; the batch may have any
size. predict.py reads ONNX and safetensors, but no pt2: torch.export unpickles whatever is in it.
"""

import io
import json
import logging
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from classifier import Classifier, photos_per_second
from find_photos import find_photos
from options import Parser, existing, run_cli
from portable import portable
from predict import score_photos
from pretrained import LoadedModel, load_model, save_weights
from utils import CHECKPOINT_VERSION, atomic_file
from weight_files import parse_json
from weight_reader import checked_classes, checked_metrics, checked_preprocess

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
TOLERANCE = 1e-4  # of logits; both sides compute in float32, in another order
ONNX_LIMIT = 2**31  # bytes: what one protobuf message may hold
FACTS, FACT_KEYS = "facts.json", ("config", "classes", "preprocess", "metrics", "version")


def facts_of(loaded: LoadedModel) -> dict:
    """What travels with every export, as plain Python."""
    return {
        "config": loaded.model.config,
        "classes": loaded.classes,
        "preprocess": loaded.preprocess.to_dict(),
        "metrics": loaded.weights.meta.get("metrics") or {},
        "version": CHECKPOINT_VERSION,
    }


def sample_images(loaded: LoadedModel, batch: int, seed: int = 0) -> Tensor:
    size = loaded.preprocess.img_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def needs(package: str):
    """Returns the package; ValueError with what to type where it is not installed."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"the package {package} is not installed: pip install onnx onnxscript onnxruntime"
        ) from None


@contextmanager
def quietly():
    """Keeps the exporters' notes about themselves off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# ------------------------------------------------------------------------------ ONNX


def onnx_bytes(model: nn.Module, images: Tensor, facts: dict) -> bytes:
    """The model as one ONNX file, with its facts as metadata."""
    for package in ("onnx", "onnxscript"):
        needs(package)
    import onnx

    with quietly():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in facts.items()})
    if proto.ByteSize() >= ONNX_LIMIT:
        raise ValueError("the model is larger than the 2 GB that one ONNX file holds; use pt2")
    return proto.SerializeToString()


def quantized(data: bytes) -> bytes:
    """An ONNX file with 8-bit weights in its matrix products (onnxruntime, dynamic quantisation).

    Activations are quantised as they come, per tensor; weights per output channel.
    """
    needs("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quietly():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(data)
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


def onnx_session(source: str | bytes):
    return needs("onnxruntime").InferenceSession(source, providers=["CPUExecutionProvider"])


def session_forward(session) -> Callable[[Tensor], Tensor]:
    name = session.get_inputs()[0].name

    def forward(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])
        except Exception as error:  # the runtime raises classes of its own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the exported model cannot be run ({reason})") from None

    return forward


# ------------------------------------------------------------------------------ torch.export


def pt2_bytes(model: nn.Module, images: Tensor, facts: dict) -> bytes:
    """The model as an archive of torch.export."""
    with quietly():
        program = torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
    return buffer.getvalue()


def pt2_forward(data: bytes) -> Callable[[Tensor], Tensor]:
    """What an archive of our own computes; of others' it would run the code."""
    with quietly():
        return torch.export.load(io.BytesIO(data)).module()


# ------------------------------------------------------------------------------ reading


def open_exported(path: str) -> Classifier:
    """Opens an .onnx file that export.py wrote.

    Raises ValueError with a sentence for any other file; a .pt2 is refused unread, for torch.export
    would run the pickles that it may hold.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.lower().endswith(".pt2"):
        raise ValueError(
            f"{path} is a program of torch.export, which can run any code when it is opened; "
            f"predict from the checkpoint, or from .onnx or .safetensors of export.py"
        )
    try:
        session = onnx_session(path)
        metadata = session.get_modelmeta().custom_metadata_map
        facts = {key: parse_json(metadata[key]) for key in FACT_KEYS}  # tools add their own
        return _classifier(session, facts)
    except ValueError as error:
        if "not installed" in str(error):
            raise
        raise ValueError(f"{path} is not a file that export.py wrote ({error})") from None
    except Exception as error:  # runtimes raise classes of their own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a file that export.py wrote ({reason})") from None


def _classifier(session, facts: dict) -> Classifier:
    """The classifier of a session; raises ValueError where its facts do not fit its tensors."""
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    config = facts["config"]
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ValueError("its config is not one of ours")
    classes = checked_classes(facts["classes"], config)
    preprocess = checked_preprocess(facts["preprocess"], config)
    checked_metrics(facts["metrics"])
    size = preprocess.img_size
    if images.shape[1:] != [3, size, size] or logits.shape[1:] != [len(classes)]:
        raise ValueError("its tensors have other sizes than its facts say")
    return Classifier(session_forward(session), classes, preprocess, facts)


# ------------------------------------------------------------------------------ checking


@torch.inference_mode()
def largest_difference(loaded: LoadedModel, forward: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of logits from the checkpoint's, over batches of one and of three."""
    differences = []
    for batch in (1, 3):
        images = sample_images(loaded, batch, seed=batch)
        differences.append((loaded.model(images) - forward(images)).abs().max())
    return float(max(differences))


def accuracy(classifier: Classifier, folder: str) -> str:
    """Over a folder of class folders, as a word."""
    score = score_photos(classifier, find_photos([folder], classifier.classes), torch.device("cpu"))
    if not score.total:
        raise ValueError(f"--data {folder} holds no folder named after one of the model's classes")
    return f"{score.right / score.total:.4f}"


# ------------------------------------------------------------------------------ the command line


def write(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def export(loaded: LoadedModel, kind: str, path: Path) -> float:
    """Writes the model as `kind` and returns the largest difference of logits when read again.

    Raises ValueError, and leaves no file, where that is above TOLERANCE.
    """
    if kind == "safetensors":
        save_weights(path, loaded)
        forward = load_model(path).model
    else:
        model, images = portable(loaded.model), sample_images(loaded, 2)
        data = (onnx_bytes if kind == "onnx" else pt2_bytes)(model, images, facts_of(loaded))
        write(path, data)
        forward = pt2_forward(data) if kind == "pt2" else open_exported(str(path)).forward
    difference = largest_difference(loaded, forward)
    if not difference <= TOLERANCE:
        path.unlink()
        raise ValueError(
            f"the exported model's logits differ by {difference:.2g} from the checkpoint's, more "
            f"than {TOLERANCE:g}; nothing was written"
        )
    return difference


def export_int8(loaded: LoadedModel, path: Path, data: str | None) -> None:
    """Writes ONNX with 8-bit weights and prints what that changes."""
    full = onnx_bytes(portable(loaded.model), sample_images(loaded, 2), facts_of(loaded))
    small = quantized(full)
    write(path, small)
    images = sample_images(loaded, 16)
    print("         size, MB  photos a second  accuracy")
    for name, content in (("float32", full), ("int8", small)):
        forward = session_forward(onnx_session(content))
        speed = photos_per_second(forward, images)
        classifier = Classifier.of(loaded).computing_with(forward)
        known = accuracy(classifier, data) if data else "unknown (no --data)"
        print(f"{name:7s}  {len(content) / 1e6:8.1f}  {speed:15.1f}  {known}")


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = Parser(prog="export.py", description="Write a trained model for other programs.")
    parser.add_argument(
        "checkpoint", type=existing, metavar="CKPT", help="a checkpoint of any format"
    )
    flag = parser.add_argument_group("output").add_argument
    flag("--format", choices=FORMATS, help="of the file (default: as --output ends, else onnx)")
    flag(
        "--output",
        metavar="FILE",
        help="the file (default: beside the checkpoint, with the format's ending)",
    )
    flag("--int8", action="store_true", help="ONNX with 8-bit weights: a quarter of the size")
    flag = parser.add_argument_group("classes").add_argument
    flag(
        "--data",
        type=existing,
        metavar="DIR",
        help="with --int8: class folders to measure the accuracy on",
    )
    flag(
        "--class-indices",
        type=existing,
        metavar="FILE",
        help="names for weights that hold none (default: numbers)",
    )
    args = parser.parse_args(argv)
    endings = {ending: kind for kind, ending in FORMATS.items()}
    ending = Path(args.output or "").suffix.lower()
    if args.output and ending not in endings:
        parser.error(f"--output {args.output} must end in {', '.join(endings)}: readers go by it")
    kind = endings.get(ending)
    if kind and args.format not in (None, kind):
        parser.error(f"--format {args.format} and --output {args.output} contradict each other")
    args.format = args.format or kind or "onnx"
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 writes ONNX, not {args.format}")
    if args.data and not args.int8:
        parser.error("--data needs --int8, whose accuracy it measures")
    return args


def main() -> None:
    args = parse_args()
    kind = args.format
    name = f"{Path(args.checkpoint).stem}{'_int8' if args.int8 else ''}{FORMATS[kind]}"
    path = Path(args.output or Path(args.checkpoint).with_name(name))
    if path.exists() and Path(args.checkpoint).exists() and path.samefile(args.checkpoint):
        raise ValueError(f"--output {path} is the checkpoint itself; name another file")
    loaded = load_model(args.checkpoint, class_indices=args.class_indices)
    path.parent.mkdir(parents=True, exist_ok=True)
    if args.int8:
        export_int8(loaded, path, args.data)
    else:
        difference = export(loaded, kind, path)
        print(f"checked: logits differ by at most {difference:.1e} from the checkpoint's")
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if kind != "pt2":
        print(f"try: python predict.py PHOTO --weights {path}")


if __name__ == "__main__":
    run_cli(main)
