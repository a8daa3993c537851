"""A model ready to predict, whatever kind of file it came from."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from formats.checking import (
    checked_classes,
    checked_later,
    checked_metrics,
    checked_preprocess,
)
from formats.checkpoints import check_version
from formats.known import Known, checked_known
from formats.onnx_files import FACT_KEYS, onnx_session, session_look
from formats.opening import members_of
from imaging.digests import joined
from imaging.preprocess import Preprocess
from pretrained import LoadedModel, load_model
from system.files import WEIGHTS_FOLDER, parse_json
from system.terminal import listed
from vit_model import VisionTransformer, kind_of

EXPORTED = (".onnx", ".pt2")


class Seen(NamedTuple):
    """What a model makes of images (B, 3, H, W).

    logits: (B, K), at the file's temperature, so that their softmax is to be believed. features:
    (B, F), what the head reads; None of several models, and of files that do not give them.
    strangeness: (B,), the share of photos like those of the training set that are as unlike it, see
    `formats.known`; None where the file does not tell.
    """

    logits: Tensor
    features: Tensor | None = None
    strangeness: Tensor | None = None


class AtTemperature(nn.Module):
    """A model whose logits are divided by a temperature: images (B, 3, H, W) -> logits (B, K)."""

    def __init__(self, model: VisionTransformer, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def cooled(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def forward(self, images: Tensor) -> Tensor:
        return self.cooled(self.model(images))


class Looking(AtTemperature):
    """The same with features: images (B, 3, H, W) -> logits (B, K), what the head reads (B, F)."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, features = self.model.look(images)
        return self.cooled(logits), features


def seen_by(look: Callable[[Tensor], tuple], known: Known | None, images: Tensor) -> Seen:
    """What a model makes of images; `look` gives logits and features, `known` says what is new."""
    logits, features = look(images)
    if known is None or features is None:
        return Seen(logits, features)
    return Seen(logits, features, known.strangeness(features))


def seen_by_all(members: Sequence[Callable[[Tensor], Seen]], images: Tensor) -> Seen:
    """What several models of the same classes, those of a run's folds (--ensemble), make of images.

    The softmax of the logits is the mean of theirs, and the strangeness is their mean.
    """
    seen = [member(images) for member in members]
    answers = torch.stack([one.logits.float().log_softmax(-1) for one in seen])
    logits = answers.logsumexp(0) - math.log(len(seen))
    told = [one.strangeness for one in seen if one.strangeness is not None]
    return Seen(logits, None, torch.stack(told).mean(0) if len(told) == len(seen) else None)


@dataclass(frozen=True)
class Classifier:
    """`see` takes images (B, 3, H, W) and says what the model makes of them.

    facts: what the file says of the model, `config` and `metrics` among it. model: whose logits are
    those before the temperature. width: F of the features that `see` gives; 0 where it gives none.
    """

    see: Callable[[Tensor], Seen]
    classes: Sequence[str]
    preprocess: Preprocess
    facts: dict
    model: nn.Module | None = None  # None for an exported file
    notes: Sequence[str] = ()  # what was assumed, and whence the names of nameless classes
    width: int = 0

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Classifier":
        """The classifier in a checkpoint."""
        model = loaded.model.eval()
        facts = loaded.weights.meta | {"config": model.config}
        try:
            known = checked_known(facts, model.num_features)
        except ValueError as error:
            raise ValueError(f"{loaded.weights.path} {error}") from None
        see = partial(seen_by, Looking(model, loaded.temperature), known)
        about = loaded.classes, loaded.preprocess, facts, model, loaded.notes
        return cls(see, *about, width=model.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, K), at the file's temperature."""
        return self.see(images).logits

    @property
    def answers(self) -> str:
        """What the logits mean: "softmax" for one class of all, "sigmoid" for each by itself."""
        return (self.facts.get("config") or {}).get("answers", "softmax")

    @property
    def ours(self) -> bool:
        """Whether the file is of this program, not another's."""
        return "version" in self.facts

    @property
    def trained_on(self) -> str:
        """The digests of the photos that it was trained on; "" where the file does not tell."""
        return self.facts.get("trained_on", "")

    @property
    def tells_unknown(self) -> bool:
        """Whether the file tells photos that are unlike those of the training set."""
        return bool(self.facts.get("known"))

    def computing_with(self, forward: Callable[[Tensor], Tensor]) -> "Classifier":
        """The same classes and photos for another way to compute the logits."""
        model = forward if isinstance(forward, nn.Module) else None
        return replace(self, see=lambda images: Seen(forward(images)), model=model, width=0)

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
        if self.ours and not self.tells_unknown:  # of a run that was stopped, or shared without
            words.append("calls no photo unknown")
        return f"{config['name']}{kind}, {len(self.classes)} classes, {', '.join(words)}"


def require_telling(unknown: float, classifiers: Mapping[str, Classifier]) -> None:
    """Raises ValueError where no file of a classifier, by its name, tells what --unknown asks."""
    if unknown and not any(one.tells_unknown for one in classifiers.values()):
        raise ValueError(
            f"--unknown {unknown:g}: there are no features of training photos in "
            f"{listed(list(classifiers))}, by which unlike ones could be told: leave the flag out, "
            "or train to the end"
        )


def _share(metrics: dict, side: str) -> str:
    """The accuracy that metrics tell of one side, with its interval; "" where they tell none."""
    accuracy, *ends = (metrics.get(f"{side}_{name}") for name in ("acc", "low", "high"))
    told = "" if accuracy is None else f"{accuracy:.4f}"
    return f"{told} ({ends[0]:.3f} to {ends[1]:.3f})" if told and None not in ends else told


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
    see = partial(seen_by_all, [Classifier.of(one).see for one in loaded])
    known = joined(*(one.weights.meta["trained_on"] for one in loaded))
    facts = first.weights.meta | {"config": first.model.config, "trained_on": known}
    notes = [f"an ensemble: the mean of {len(members)} models", *first.notes]
    return Classifier(see, first.classes, first.preprocess, facts, notes=notes)


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
    (images,), (logits, *features) = session.get_inputs(), session.get_outputs()
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
    width = features[0].shape[1] if features else 0
    if not isinstance(width, int):
        raise ValueError("its features have no fixed size")
    known = checked_known(facts, width) if width else None
    see = partial(seen_by, session_look(session), known)
    return Classifier(see, classes, preprocess, facts, width=width)


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
