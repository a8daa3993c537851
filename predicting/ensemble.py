"""The models of a run's folds, kept with --ensemble, as one: the mean of their probabilities."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from imaging.digests import joined
from predicting.classifier import Classifier, tempered
from pretrained import load_model


class Ensemble(nn.Module):
    """Several models of the same classes.

    forward: images (B, 3, H, W) -> the logarithm of their mean probabilities (B, K), whose softmax
    is that mean.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        answers = [model(images).float().log_softmax(-1) for model in self.models]
        return torch.stack(answers).logsumexp(0) - math.log(len(answers))


def open_ensemble(members: list[Path], device: torch.device) -> Classifier:
    """Returns the classifier of several checkpoints; ValueError where they are not of one run."""
    loaded = [load_model(path, device=device) for path in members]
    first = loaded[0]
    for path, other in zip(members, loaded, strict=True):
        if (other.classes, other.preprocess) != (first.classes, first.preprocess):
            raise ValueError(f"{path} is of another run than {members[0]}: it has other classes")
    models = [tempered(one.model.eval(), one.temperature) for one in loaded]
    known = joined(*(one.weights.meta["trained_on"] for one in loaded))
    facts = first.weights.meta | {"config": first.model.config, "trained_on": known}
    notes = [f"an ensemble: the mean of {len(members)} models", *first.notes]
    forward = Ensemble(models).eval()
    return Classifier(forward, first.classes, first.preprocess, facts, notes=notes)
