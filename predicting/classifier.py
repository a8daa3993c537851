"""A model ready to predict, whatever kind of file it came from."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from formats.checking import (
    checked_classes,
    checked_later,
    checked_metrics,
    checked_preprocess,
)
from formats.checkpoints import check_version
from formats.onnx_files import FACT_KEYS, onnx_session, session_forward
from formats.opening import members_of
from imaging.digests import joined
from imaging.preprocess import Preprocess
from pretrained import LoadedModel, load_model
from system.files import WEIGHTS_FOLDER, parse_json
from vit_model import kind_of

EXPORTED = (".onnx", ".pt2")


class AtTemperature(nn.Module):
    """A model whose logits are divided by a temperature, so that their softmax is to be believed.

    forward: images (B, 3, H, W) -> logits (B, K).
    """

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) / self.temperature


class Ensemble(nn.Module):
    """Several models of the same classes, those of a run's folds (--ensemble), as one.

    forward: images (B, 3, H, W) -> the logarithm of their mean probabilities (B, K), whose softmax
    is that mean.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        answers = [model(images).float().log_softmax(-1) for model in self.models]
        return torch.stack(answers).logsumexp(0) - math.log(len(answers))


@dataclass(frozen=True)
class Classifier:
    """`forward` takes images (B, 3, H, W) and returns logits (B, K), at the file's temperature.

    facts: what the file says of the model, `config` and `metrics` among it. model: whose logits are
    those before the temperature.
    """

    forward: Callable[[Tensor], Tensor]
    classes: Sequence[str]
    preprocess: Preprocess
    facts: dict
    model: nn.Module | None = None  # None for an exported file
    notes: Sequence[str] = ()  # what was assumed, and whence the names of nameless classes

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Classifier":
        """The classifier in a checkpoint."""
        model = loaded.model.eval()
        facts = loaded.weights.meta | {"config": model.config}
        forward = tempered(model, loaded.temperature)
        return cls(forward, loaded.classes, loaded.preprocess, facts, model, loaded.notes)

    @property
    def answers(self) -> str:
        """What the logits mean: "softmax" for one class of all, "sigmoid" for each by itself."""
        return (self.facts.get("config") or {}).get("answers", "softmax")

    def computing_with(self, forward: Callable[[Tensor], Tensor]) -> "Classifier":
        """The same classes and photos for another way to compute the logits."""
        model = forward if isinstance(forward, nn.Module) else None
        return replace(self, forward=forward, model=model)

    @property
    def title(self) -> str:
        """The model, the number of classes and the accuracy that the file tells, in one line."""
        config, metrics = self.facts["config"], self.facts.get("metrics") or {}
        kind = kind_of(config, ", ")
        side = "out-of-fold" if metrics.get("folds") else "validation"
        among = metrics.get("chosen_among") or 0
        chosen = f", chosen among {among} epochs" * (among > 1)
        words = [f"{side} accuracy {_share(metrics, 'val') or 'unknown'}{chosen}"]
        if tested := _share(metrics, "test"):
            words.append(f"test accuracy {tested}")
        return f"{config['name']}{kind}, {len(self.classes)} classes, {', '.join(words)}"


def _share(metrics: dict, side: str) -> str:
    """The accuracy that metrics tell of one side, with its interval; "" where they tell none."""
    accuracy, *ends = (metrics.get(f"{side}_{name}") for name in ("acc", "low", "high"))
    told = "" if accuracy is None else f"{accuracy:.4f}"
    return f"{told} ({ends[0]:.3f} to {ends[1]:.3f})" if told and None not in ends else told


def tempered(model: nn.Module, temperature: float) -> nn.Module:
    """Returns the model at a temperature: itself where that changes nothing."""
    return model if temperature == 1 else AtTemperature(model, temperature)


def newest_checkpoint(folder: str | Path = WEIGHTS_FOLDER) -> str:
    """The best.pth below `folder` that was written last, or the run whose folds keep theirs."""
    found = sorted(Path(folder).glob("**/best.pth"), key=lambda path: path.stat().st_mtime)
    found = [place for place in map(_whole, found) if place]
    if not found:
        raise FileNotFoundError(
            f"there is no best.pth under {folder}/ yet: train a model with train.py first, "
            "or name a file with --weights"
        )
    return str(found[-1])


def _whole(path: Path) -> Path | None:
    """Returns a best.pth, or the run of whose ensemble it is one; None of a fold under way."""
    run = path.parent.parent
    if not re.fullmatch(r"fold\d+", path.parent.name) or not (run / "last.pth").exists():
        return path
    return run if (run / "results.json").exists() and members_of(run) else None


def open_classifier(
    path: str, class_indices: str | None, device: torch.device, data_classes: Sequence[str] = ()
) -> Classifier:
    """Loads a checkpoint of any format, an .onnx that export.py wrote, or a run's ensemble.

    class_indices: names for weights that hold none; without it, and with data_classes, see
        `pretrained.head_classes`.
    """
    if path.lower().endswith(EXPORTED):
        return open_exported(path)
    if members := members_of(Path(path)):
        return open_ensemble(members, device)
    loaded = load_model(path, class_indices, device, data_classes, names_here=True)
    return Classifier.of(loaded)


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
        told = {key: parse_json(metadata[key]) for key in FACT_KEYS if key in metadata}
        return _classifier(session, told)
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
    check_version(facts["version"])
    facts = facts | checked_later(facts)  # the graph divides by the temperature itself
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


@torch.inference_mode()
def photos_per_second(
    forward: Callable[[Tensor], Tensor], images: Tensor, batch: int = 16, turns: int = 3
) -> float:
    """The model alone, the best of a few turns over images (B, 3, H, W) after one not counted."""
    times = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        for some in images.split(batch):
            forward(some).cpu()
        times.append(time.perf_counter() - start)
    return len(images) / min(times[1:])
