"""The models behind a page: opened once, under names that tell no path, sharing what they share.

A model is asked by one thread alone (`worker`): why it answered so is read off by hooks on its
layers, which another photo's pass would disturb.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from explaining.parts import told_apart
from imaging.preprocess import Transform, eval_transform
from predicting.classifier import open_classifier
from predicting.nearest import Nearest
from predicting.predictor import Decoded, Predictor
from predicting.writers import Answer
from pretrained import check_names
from system.terminal import printable
from vit_model import kind_of

SMALLEST = 4096  # numbers of a tensor that is worth a look whether another model has it, too
OF_RUNS = {"best", "last"}  # what a run calls its files: there the folder's name tells more


@dataclass
class Shelf:
    """Tensors by their digests, so that equal ones of several models lie in memory once.

    Adapters, and heads that were trained on a frozen backbone, differ in a few tensors only.
    """

    tensors: dict[tuple, Tensor] = field(default_factory=dict)

    def share(self, model: nn.Module) -> None:
        """Lets each large tensor of a model be the one that an earlier model has, if it is equal.

        Models that are shared are never changed again.
        """
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.numel() >= SMALLEST:
                tensor.data = self.tensors.setdefault(_key(tensor), tensor.data)


def _key(tensor: Tensor) -> tuple:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest = hashlib.blake2b(values.numpy(), digest_size=32).digest()
    return digest, tensor.shape, tensor.dtype, tensor.device


@dataclass(frozen=True)
class Served:
    """A model that is served: what it is called, and what it answers."""

    name: str
    predictor: Predictor
    shelf: Shelf
    nearest: Nearest

    @cached_property
    def transform(self) -> Transform:
        return eval_transform(self.predictor.classifier.preprocess)

    @property
    def explains(self) -> bool:
        """Whether it can be seen where the model looks: not through an exported file."""
        return self.predictor.classifier.model is not None

    @cached_property
    def explained(self) -> nn.Module:
        """The model in a form whose splines say what they do."""
        model = told_apart(self.predictor.classifier.model)
        self.shelf.share(model)
        return model

    def answers(self, batch: Sequence[Decoded]) -> list[Answer]:
        """Returns an answer for each photo of a batch, in its order."""
        return list(self.predictor.answer_batch(batch))

    @property
    def told(self) -> dict:
        """What a page may know of the model; no path of this machine."""
        classifier, config = self.predictor.classifier, self.predictor.classifier.facts["config"]
        told = _accuracy(classifier.facts.get("metrics") or {})
        return told | {
            "name": self.name,
            "title": printable(f"{config['name']}{kind_of(config, ', ')}"),
            "classes": [printable(name) for name in classifier.classes],
            "answers": classifier.answers,
            "explains": self.explains,
        }


def _accuracy(metrics: dict) -> dict:
    """The share of photos that it answered right, the test photos' where there are any.

    With its interval, and of how many photos, where the file tells.
    """
    names = {"share": "acc", "low": "low", "high": "high", "photos": "photos"}
    for side in ("test", "val"):
        found = {key: metrics.get(f"{side}_{name}") for key, name in names.items()}
        if found["share"] is not None:
            told = {key: value for key, value in found.items() if value is not None}
            return {"accuracy": {"on": side} | told}
    return {}


def open_models(
    weights: Sequence[str], class_indices: str | None, device: torch.device, **options
) -> list[Served]:
    """Returns the models of weights files in their order. options: of the `Predictor`.

    Raises ValueError or OSError, with a sentence, for a file that cannot predict.
    """
    shelf, models = Shelf(), []
    for path, name in zip(weights, names_of(weights), strict=True):
        classifier = open_classifier(path, class_indices, device)
        check_names(path, classifier.classes, class_indices)
        if classifier.model is not None:  # no exported file
            shelf.share(classifier.model)
        predictor = Predictor(classifier, device=device, **options)
        models.append(Served(name, predictor, shelf, Nearest.beside(path, classifier)))
    return models


def names_of(weights: Iterable[str]) -> list[str]:
    """Returns a name for each file: its run's or its own, with a number where two have the same."""
    names: list[str] = []
    for path in map(Path, weights):
        folder = path.parent.resolve().name if path.stem in OF_RUNS else ""
        stem = printable(folder or (path.resolve().name if path.is_dir() else path.stem))
        name, number = stem, 2
        while name in names:
            name, number = f"{stem} ({number})", number + 1
        names.append(name)
    return names
