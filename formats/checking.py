"""Whether what a file of ours says of itself fits its tensors, before anything is built from it."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from formats.checkpoints import LATER_FACTS
from formats.known import Known
from imaging.preprocess import Preprocess
from system.terminal import counted
from vit_model import VisionTransformer, create_model

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_ASKED = 4  # times the numbers in a file that its sizes may ask for, heads and blocks left out


def checked_config(config: object, tensors: Mapping[str, Tensor]) -> dict:
    """Returns the whole config of the model that `config` and its tensors describe."""
    return checked_model(config, tensors).config


def checked_model(config: object, tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """Returns the model that `config` and its tensors describe, without memory for its numbers.

    Raises ValueError, worded to follow a file's name, where the one contradicts the others. Nothing
    of the size that they claim is allocated.
    """
    model = described(config)
    wanted = model.state_dict()
    for name in tensors.keys() & wanted.keys():
        _check_tensor(name, tensors[name], wanted[name].shape)
    check_enough(model, tensors)
    if model.sizes.in_chans != 3:
        raise ValueError(
            f"takes images of {counted(model.sizes.in_chans, 'channel')}, and photos here have "
            f"three (red, green, blue)"
        )
    return model


def described(config: object) -> VisionTransformer:
    """Returns the model of a config without memory for its numbers; raises ValueError as above."""
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise ValueError("has a `config` that is not one of ours")
    if not all(isinstance(key, str) for key in config):
        raise ValueError("has a `config` that is not one of ours")
    with torch.device("meta"):
        return create_model(**config)


def check_enough(model: VisionTransformer, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the sizes of a model ask for far more numbers than there are."""
    held = {value.untyped_storage().data_ptr(): value for value in tensors.values()}
    stored = sum(v.untyped_storage().nbytes() // v.element_size() for v in held.values())
    asked = sum(value.numel() for value in model.state_dict().values())
    if asked > MOST_ASKED * stored:
        raise ValueError(
            f"is no complete Vision Transformer: it holds {stored:,} of the {asked:,} numbers that "
            f"its sizes ask for"
        )


def _check_tensor(name: str, value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape:
        has, asked = (" x ".join(map(str, size)) or "one" for size in (value.shape, shape))
        raise ValueError(f"holds {name} of {has} numbers where its other sizes ask for {asked}")
    if value.dtype not in FLOATS:
        raise ValueError(f"holds {name} as {str(value.dtype).removeprefix('torch.')}, not floats")


def checked_classes(classes: object, config: dict) -> list[str]:
    """Returns the names of a file's classes; raises ValueError where they do not fit its config."""
    classes = [] if classes is None else classes
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"has `classes` that are not a list of names: {classes!r:.80}")
    if len(classes) != config["num_classes"]:
        raise ValueError(f"names {len(classes)} classes for a head of {config['num_classes']}")
    return classes


def checked_metrics(metrics: object) -> None:
    """Raises ValueError where a file's metrics are no numbers."""
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, dict) or not all(
        value is None or type(value) in (int, float) for value in metrics.values()
    ):
        raise ValueError(f"has `metrics` that are not numbers: {metrics!r:.80}")


def checked_later(told: Mapping) -> dict:
    """Returns what files say of their model's probabilities and training photos, or what the
    silence of earlier ones means. Raises ValueError for other values."""
    found = {key: told.get(key, value) for key, value in LATER_FACTS.items()}
    temperature, digests = found["temperature"], found["trained_on"]
    if type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
        raise ValueError(f"has a `temperature` that is no number above 0: {temperature!r:.80}")
    if not isinstance(digests, str) or not re.fullmatch("([0-9a-f]{16})*", digests):
        raise ValueError(f"has a `trained_on` that holds no digests: {digests!r:.80}")
    Known.from_dict(found["known"])
    return found


def checked_preprocess(values: object, config: dict) -> Preprocess:
    """Returns a file's preprocessing; raises ValueError where it does not fit its config."""
    preprocess = Preprocess.from_dict(values)
    if preprocess.img_size != config["img_size"]:
        raise ValueError(
            f"prepares images of {preprocess.img_size} pixels for a model of {config['img_size']}"
        )
    return preprocess
