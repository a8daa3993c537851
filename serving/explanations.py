"""Why a photo was answered so, as JSON for the page: it draws the map and the curves itself.

{"index": 4, "class": "tulips",
 "box": [left, top, right, bottom],    # what the model saw, in shares of the photo's sides
 "heat": [[0.1, ...], ...],            # per row of patches, how much each mattered, 0 to 1
 "half": 12,                           # so many patches carry half of it; 0: nothing speaks for it
 "method": "LeGrad",                   # that found it
 "covered": {"patches": 13, "whole": 0.9, "marked": 0.2, "random": 0.8},  # null if half is 0
 "unlearned": false,                   # whether there are splines, and all as before training
 "splines": [{"block": 3, "layer": "fc1", "first": 5, "last": 5, "part": 2, "to": null,
              "contribution": 0.4,     # to the class's logit
              "x": [...], "y": [...],  # the learned curve over the values that it met here
              "spread": [...],         # how many of them lie in each of equal parts of x
              "here": [x, y],          # where it acted most
              "patch": 17}]}           # on that patch; null for a token that is none
"""

import base64
import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from explaining.curves import kan_layers
from explaining.story import DrawnCurve, explain
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import Fit
from predicting.nearest import Near
from predicting.predictor import Decoded
from serving.models import Served

THUMBNAIL = 240  # pixels of a training photo's longer side
POINTS, BARS = 60, 24  # of a curve, of the values under it
DIGITS = 4  # that are sent of a number


class Question(NamedTuple):
    """A photo, decoded with its picture, and the index of the class to explain."""

    decoded: Decoded
    index: int | None = None  # None for the best
    near: bool = False  # whether the training photos like it are asked for


class Explanation(NamedTuple):
    """What the page is told, but for `near`, whose photos are still to be read."""

    told: dict
    near: list[Near]


def explanations(served: Served, questions: Sequence[Question]) -> list[Explanation]:
    """Returns why the model answers so, for each of several photos."""
    return [_explanation(served, one) for one in questions]


def _explanation(served: Served, question: Question) -> Explanation:
    predictor, index, near = served.predictor, question.index, []
    (answer,) = served.answers([question.decoded])
    if index is None:
        index = answer.top[0][0]
    if question.near and answer.features is not None:
        near = served.nearest.of(answer.features)
    image = question.decoded.tensor[None].to(predictor.device)
    model = served.explained
    target = torch.tensor([index], device=image.device)
    (story,) = explain(model, image, target, probabilities=lambda x: predictor.see(x).logits)
    layers = kan_layers(model)
    fit = Fit(predictor.classifier.preprocess)
    told = {
        "index": index,
        "class": predictor.classes[index],
        "box": _numbers(torch.tensor(fit.view(*question.decoded.image.size))),
        "heat": _numbers(story.heat),
        "half": story.half,
        "method": story.method,
        "covered": story.covered and asdict(story.covered),
        "unlearned": story.unlearned,
        "splines": [_spline(one, layers[one.curve.layer_name]) for one in story.curves],
    }
    return Explanation(told, near)


def shown(near: Near) -> dict:
    """Returns a training photo for the page: its class, how alike it is, and a small picture."""
    told = {"label": near.label, "similarity": _number(near.similarity), "photo": None}
    if near.photo is not None:
        with contextlib.suppress(PhotoError):
            picture = jpeg(load_image(near.photo, THUMBNAIL), THUMBNAIL)
            told["photo"] = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    return told


def jpeg(image: Image.Image, side: int) -> bytes:
    """Returns a picture whose longer side has at most so many pixels, as a JPEG."""
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _spline(one: DrawnCurve, layer: torch.nn.Module) -> dict:
    place = one.curve.place(layer)
    some = torch.linspace(0, len(one.x) - 1, POINTS).round().long()
    low, high = float(one.x[0]), float(one.x[-1])
    return place._asdict() | {
        "block": place.block + 1,
        "contribution": _number(one.curve.contribution),
        "x": _numbers(one.x[some]),
        "y": _numbers(one.y[some]),
        "spread": one.sample.histc(BARS, low, high).int().tolist(),
        "here": [_number(value) for value in one.here],
        "patch": one.patch,
    }


def _numbers(values: Tensor) -> list:
    """Numbers short enough to send; JSON knows no others than finite ones."""
    if values.ndim > 1:
        return [_numbers(row) for row in values]
    return [_number(value) for value in values.double().nan_to_num().tolist()]


def _number(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
