"""Why a photo was answered so, as JSON for the page: it draws the map and the curves itself.

{"index": 4, "class": "tulips",
 "box": [left, top, right, bottom],    # what the model saw, in shares of the photo's sides
 "heat": [[0.1, ...], ...],            # per row of patches, how much each mattered, 0 to 1
 "half": 12,                           # so many patches carry half of it
 "splines": [{"block": 3, "layer": "fc1", "first": 5, "last": 5, "part": 2, "to": null,
              "contribution": 0.4,     # to the class's logit
              "x": [...], "y": [...],  # the learned curve over the values that it met here
              "spread": [...],         # how many of them lie in each of equal parts of x
              "here": [x, y],          # where it acted most
              "patch": 17}]}           # on that patch; null for a token that is none
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from explaining.curves import kan_layers
from explaining.story import DrawnCurve, explain
from imaging.preprocess import Fit
from predicting.predictor import Decoded
from serving.models import Served

POINTS, BARS = 60, 24  # of a curve, of the values under it
DIGITS = 4  # that are sent of a number


class Question(NamedTuple):
    """A photo, decoded with its picture, and the index of the class to explain."""

    decoded: Decoded
    index: int | None  # None for the best


def explanations(served: Served, questions: Sequence[Question]) -> list[dict]:
    """Returns why the model answers so, for each of several photos."""
    return [_explanation(served, one) for one in questions]


def _explanation(served: Served, question: Question) -> dict:
    predictor, index = served.predictor, question.index
    if index is None:
        index = served.answers([question.decoded])[0].top[0][0]
    image = question.decoded.tensor[None].to(predictor.device)
    model = served.explained
    (story,) = explain(model, image, torch.tensor([index], device=image.device))
    layers = kan_layers(model)
    fit = Fit(predictor.classifier.preprocess)
    return {
        "index": index,
        "class": predictor.classes[index],
        "box": _numbers(torch.tensor(fit.view(*question.decoded.image.size))),
        "heat": _numbers(story.heat),
        "half": story.half,
        "splines": [_spline(one, layers[one.curve.layer_name]) for one in story.curves],
    }


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
