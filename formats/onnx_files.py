"""ONNX: a model as one file that carries its facts, with 8-bit weights on request; its session."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.checkpoints import LATER_FACTS

# What such a file says of its model, as JSON in metadata_props.
FACT_KEYS = ("config", "classes", "preprocess", "metrics", "version", *LATER_FACTS)
ONNX_LIMIT = 2**31  # bytes: what one protobuf message may hold


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


def onnx_bytes(
    model: nn.Module, images: Tensor, facts: dict, outputs: Sequence[str] = ("logits",)
) -> bytes:
    """The model as one ONNX file, with its facts as metadata; outputs: the names of its own."""
    for package in ("onnx", "onnxscript"):
        needs(package)
    import onnx

    with quietly():
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=list(outputs),
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
        model = needs("onnx").load_model_from_string(data)
        del model.graph.value_info[:]  # shapes that some exporters leave behind, and get wrong
        source.write_bytes(model.SerializeToString())
        quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return target.read_bytes()


def onnx_session(source: str | bytes):
    return needs("onnxruntime").InferenceSession(source, providers=["CPUExecutionProvider"])


def session_look(session) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Returns what a session computes: images -> logits, and features where it has them."""
    name = session.get_inputs()[0].name

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            logits, *features = session.run(None, {name: images.cpu().numpy()})
        except Exception as error:  # the runtime raises classes of its own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the exported model cannot be run ({reason})") from None
        return torch.from_numpy(logits), torch.from_numpy(features[0]) if features else None

    return look


def session_forward(session) -> Callable[[Tensor], Tensor]:
    """Returns what a session computes: images -> logits."""
    look = session_look(session)
    return lambda images: look(images)[0]
