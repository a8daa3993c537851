"""ONNX: a model as one file that carries its facts, with 8-bit weights on request; its session."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from formats.checkpoints import LATER_FACTS

# What such a file says of its model, as JSON in metadata_props.
FACT_KEYS = ("config", "classes", "preprocess", "metrics", "version", *LATER_FACTS)
ONNX_LIMIT = 2**31  # bytes: what one protobuf message may hold
BLOCK = 64  # weights that share a step of 8 bits
PARTS = ".bytes", ".steps", ".shape"  # what is stored of a tensor
FEWEST = 4096  # numbers of a tensor that is worth making smaller


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
    _forget_places(proto)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in facts.items()})
    if proto.ByteSize() >= ONNX_LIMIT:
        raise ValueError("the model is larger than the 2 GB that one ONNX file holds; use pt2")
    return proto.SerializeToString()


def _forget_places(proto) -> None:
    """Takes out what the exporter noted of the code, with the paths of this machine."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for part in (graph, *graph.node, *getattr(graph, "input", ()), *graph.value_info):
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.doc_string = ""


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


def weights_in_bytes(data: bytes) -> bytes:
    """An ONNX file whose weights are stored in 8 bits and become floats when it is opened.

    Unlike `quantized` it computes in floats, so that a little change of a photo changes the answer
    a little, in every runtime. Plain operators restore the weights: runtimes take DequantizeLinear
    as leave to round what the weights are multiplied with. A step of 8 bits follows from BLOCK
    weights of a column, so that no part of a tensor, such as a spline's powers, loses by another.
    """
    onnx = needs("onnx")
    model = onnx.load_model_from_string(data)
    graph, nodes = model.graph, []
    del graph.value_info[:]  # see `quantized`
    for tensor in list(graph.initializer):
        weights = onnx.numpy_helper.to_array(tensor)
        if weights.dtype != np.float32 or weights.ndim < 2 or weights.size < FEWEST:
            continue
        graph.initializer.remove(tensor)
        for part, values in zip(PARTS, _in_blocks(weights), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(values, tensor.name + part))
        nodes += _restoring(onnx.helper.make_node, tensor.name)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    return model.SerializeToString()


def _restoring(make: Callable, name: str) -> list:
    """The nodes that make floats of what is stored of the tensor `name`."""
    stored, steps, shape = (name + part for part in PARTS)
    return [
        make("Cast", [stored], [f"{name}.floats"], to=1),  # TensorProto.FLOAT
        make("Mul", [f"{name}.floats", steps], [f"{name}.blocks"]),
        make("Reshape", [f"{name}.blocks", shape], [name]),
    ]


def _in_blocks(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights as int8 (..., blocks, block, columns), their steps, and the shape to go back to."""
    *before, length, columns = weights.shape
    if length < BLOCK // 4:  # too short to share a step: then weights of a row do
        length, columns = length * columns, 1
    size = next((n for n in range(BLOCK, BLOCK // 4, -1) if length % n == 0), length)
    blocks = weights.reshape(*before, length // size, size, columns)
    largest = np.abs(blocks).max(-2, keepdims=True)
    steps = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    return np.rint(blocks / steps).astype(np.int8), steps, np.array(weights.shape)


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
