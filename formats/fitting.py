"""Fills a model with the tensors of a weights file and reports what became of each of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from formats.reading import WeightsFile
from formats.resizing import fit_tensor, rename_maps
from system.terminal import counted
from vit.adapters import is_adapter
from vit_model import HEADS, VisionTransformer, is_spline

ZERO_SPLINE = "splines start at zero and change nothing yet"
NEW_ADAPTER = "adapters start so that they change nothing yet"
OTHER_WIDTH = "file and model differ in the hidden width of this block"
OTHER_SPLINES = "file and model differ in grid, rank or kind of these splines"
NONE = "the file has none"
MOST_NAMES = 20  # in a line of a report: a whole text tower has hundreds
ENOUGH = 0.9  # share of the backbone below which a file is taken for the wrong one


class Adapted(NamedTuple):
    """A tensor that was fitted: its name, shape in the file, shape in the model, and how."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    how: str


@dataclass
class LoadReport:
    """What became of each tensor of a file and of each parameter of the model."""

    weights: WeightsFile
    loaded: list[str] = field(default_factory=list)
    adapted: list[Adapted] = field(default_factory=list)
    new: dict[str, str] = field(default_factory=dict)  # name -> why
    ignored: dict[str, str] = field(default_factory=dict)
    backbone_share: float = 0.0

    @property
    def from_file(self) -> list[str]:
        """The names of the model's tensors that came from the file, adapted ones included."""
        return self.loaded + [a.name for a in self.adapted]

    def lines(self) -> list[str]:
        """The report in words, for printing."""
        w = self.weights
        lines = [
            f"weights: {w.path} ({w.format})",
            f"  holds {w.holds}",
            f"  normalisation: {w.family} ({w.preparation.normalisation}): {w.family_reason}",
            f"  photos: {w.photos}",
            f"  loaded {len(self.loaded)} tensors, {len(self.adapted)} more adapted; "
            f"{self.backbone_share:.1%} of the backbone matched",
        ]
        for item in self.adapted:
            sizes = f"{_size(item.before)} -> {_size(item.after)}"
            lines.append(f"  adapted {item.name}: {sizes} ({item.how})")
        lines += [f"  {line}" for line in w.assumptions]
        # A replaced tensor is both, for one reason, which is said once.
        ignored = {name: why for name, why in self.ignored.items() if self.new.get(name) != why}
        for word, tensors in (("new", self.new), ("ignored", ignored)):
            for names, reason in _condense(tensors):
                lines.append(f"  {word} {names}: {reason}")
        return lines


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _condense(reasons: dict[str, str]) -> list[tuple[str, str]]:
    """Returns (names, reason), each reason once: ("head.weight, mlp.fc1.bias (12 blocks)", why)."""
    lines = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        told = list(dict.fromkeys(re.sub(r"^blocks\.\d+\.", "", name) for name in names))
        blocks = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
        if len(told) > MOST_NAMES:
            told = [*told[:3], f"{len(told) - 3} more"]
        lines.append((", ".join(told) + (f" ({blocks} blocks)" if blocks else ""), reason))
    return lines


def load_into(
    model: VisionTransformer,
    weights: WeightsFile,
    classes: list[str] | None = None,
    allow_partial: bool = False,
) -> LoadReport:
    """Fills `model` from a file, adapting what differs in size, and reports on every tensor.

    classes: the class names of the model, where known: the file's head is kept only if it has as
        many classes and, where the file names them too, the same ones (in any order). A new head
        starts at zero.
    allow_partial: accept a file that fills less than 90 % of the backbone.
    Raises ValueError for such a file otherwise, and for values that are not finite.
    """
    report = LoadReport(weights, ignored=dict(weights.ignored))
    target = model.state_dict()
    state = _without_other_widths(weights.state, target, report)
    state = _without_other_splines(rename_maps(state, target), target, report)
    state = _with_fitting_head(state, model, weights, classes, report)
    filled = _filled(state, target, model, report)
    left = {n: "the model has no such tensor" for n in state if n not in target}
    report.ignored |= left
    report.backbone_share = _backbone_share(target, filled, report)
    if report.backbone_share < ENOUGH and not allow_partial:
        raise ValueError(_wrong_file(model, weights, report.backbone_share))
    if not allow_partial:
        _check_whole(model, weights, report, left)
    _zero_new_heads(model, report)
    model.load_state_dict(target | filled)
    return report


def _filled(state: dict, target: dict, model: VisionTransformer, report: LoadReport) -> dict:
    """Returns the model's tensors that the file fills, in the model's sizes and types."""
    filled = {}
    for name, value in target.items():
        if name not in state:
            report.new.setdefault(name, _why_absent(name))
            continue
        fitted, how = fit_tensor(name, state[name], model, report.weights.config)
        if fitted.shape != value.shape:
            report.new[name] = f"the file's is {_size(fitted.shape)}, not {_size(value.shape)}"
            continue
        _check_finite(name, fitted, report.weights.path)
        filled[name] = fitted.to(value.dtype)
        if how:
            before, after = tuple(state[name].shape), tuple(value.shape)
            report.adapted.append(Adapted(name, before, after, how))
        else:
            report.loaded.append(name)
    return filled


def _why_absent(name: str) -> str:
    """Returns why a model has a tensor that a file lacks."""
    if is_spline(name):
        return ZERO_SPLINE
    return NEW_ADAPTER if is_adapter(name) else NONE


def _check_whole(model: VisionTransformer, weights: WeightsFile, report: LoadReport, left) -> None:
    """Raises ValueError where file or model has tensors before the head that the other lacks.

    Special tokens are no such: new ones are made, and DeiT's other is left out, by intent.
    """
    missing = [name for name, why in report.new.items() if why == NONE and _is_backbone(name)]
    if missing:
        raise ValueError(
            f"{weights.path} is incomplete: it lacks {counted(len(missing), 'tensor')}, such as "
            f"{missing[0]} ({NONE}); train.py --allow-partial starts them anew"
        )
    without = ("dist_token", "pre_logits.", *HEADS)
    other = [n for n in left if not (n.startswith(without) or is_spline(n) or is_adapter(n))]
    if other:
        raise ValueError(
            f"{weights.path} holds {weights.holds}, and {model.name} has no place for "
            f"{counted(len(other), 'tensor')} before its head, such as {other[0]}; leave --model "
            f"out to take the file's, or give --allow-partial to take what fits"
        )


def _is_backbone(name: str) -> bool:
    special = ("dist_token", "reg_token", "pre_logits.", *HEADS)
    return not name.startswith(special) and not is_spline(name) and not is_adapter(name)


def _without_other_widths(state: dict, target: dict, report: LoadReport) -> dict:
    """Leaves out the MLPs of blocks that have another width in the model: they start new whole."""
    wanted = _hidden_widths(target)
    left_out = tuple(
        f"{block}.mlp."
        for block, width in _hidden_widths(state).items()
        if wanted.get(block, width) != width
    )
    return _left_out(state, target, left_out, OTHER_WIDTH, report)


def _without_other_splines(state: dict, target: dict, report: LoadReport) -> dict:
    """Leaves out the splines of layers with another grid or rank in the model, all together.

    Half of them would be worse than none: `spline_up` of the file times new `spline_down`.
    """
    different = {
        name.rsplit(".", 1)[0]
        for name in state.keys() | target.keys()
        if is_spline(name)
        and (name not in state or name not in target or state[name].shape != target[name].shape)
    }
    splines = {n for n in state if is_spline(n) and n.rsplit(".", 1)[0] in different}
    layers = {name.rsplit(".", 1)[0] for name in splines}
    left_out = tuple(
        n for n in state.keys() | target.keys() if is_spline(n) and n.rsplit(".", 1)[0] in layers
    )
    return _left_out(state, target, left_out, OTHER_SPLINES, report)


def _left_out(state: dict, target: dict, names: tuple[str, ...], reason: str, report) -> dict:
    """Returns the state without what starts like one of `names`; reports both sides of it."""
    report.new |= {name: reason for name in target if name.startswith(names)}
    report.ignored |= {name: reason for name in state if name.startswith(names)}
    return {name: value for name, value in state.items() if not name.startswith(names)}


def _hidden_widths(state: dict) -> dict[str, int]:
    """Returns the width inside the MLP or KAN of each block, {"blocks.0": 768, ...}."""
    found = ((re.match(r"(blocks\.\d+)\.mlp\.fc2\.(base_)?weight$", name), name) for name in state)
    return {match[1]: state[name].shape[1] for match, name in found if match}


def _with_fitting_head(state: dict, model, weights: WeightsFile, classes, report) -> dict:
    """Returns the state with its head kept, its rows put in order, or left out with the reason."""
    reason = _why_new_head(state, model, weights, classes)
    if reason is None:
        if classes and weights.class_names:
            order = [weights.class_names.index(name) for name in classes]
            state = {k: v[order] if k.startswith(HEADS) else v for k, v in state.items()}
        return state
    return _left_out(
        state, model.state_dict(), HEADS, f"{reason}; the model's starts at zero", report
    )


def _why_new_head(state: dict, model, weights: WeightsFile, classes) -> str | None:
    """Returns why the file's head cannot serve the model, None if it can."""
    head = state.get("head.weight")
    if head is None or weights.no_head:
        return weights.no_head or "the file has no head"
    if model.sizes.answers != weights.config["answers"]:
        return "the file's head gives a yes or no for each class, the model one class of all"
    if head.shape[0] != model.num_classes:
        return f"the file's head has {head.shape[0]} classes, the model {model.num_classes}"
    if classes and weights.class_names and set(classes) != set(weights.class_names):
        return "the file's head has other class names"
    pre_logits = "pre_logits.fc.weight"
    if (pre_logits in state) != (pre_logits in model.state_dict()):
        return "only one of file and model has a pre-logits layer"
    if head.shape != model.head.weight.shape:
        return f"the file's head takes {head.shape[1]} features, not {model.head.in_features}"
    return None


def _check_finite(name: str, value: Tensor, path: str) -> None:
    if value.is_floating_point() and not value.isfinite().all():
        bad = int((~value.isfinite()).sum())
        raise ValueError(f"{path} is spoilt: {name} has {bad} values that are NaN or infinite")


def _backbone_share(target: dict, filled: dict, report: LoadReport) -> float:
    """Returns the share of the backbone's numbers that came from the file.

    Heads, pre-logits, splines and adapters are no part of it, nor are KAN blocks to which another
    width was given: they are new by intent.
    """

    def counts(name: str) -> bool:
        if name.startswith((*HEADS, "pre_logits.")) or is_spline(name) or is_adapter(name):
            return False
        in_kan = ".mlp." in name and f"{name.split('.mlp.')[0]}.mlp.fc2.base_weight" in target
        return not (in_kan and report.new.get(name) == OTHER_WIDTH)

    backbone = {name: value.numel() for name, value in target.items() if counts(name)}
    return sum(backbone[name] for name in filled if name in backbone) / sum(backbone.values())


def _wrong_file(model: VisionTransformer, weights: WeightsFile, share: float) -> str:
    wanted = f"{model.name} ({model.embed_dim} wide, {len(model.blocks)} blocks)"
    return (
        f"{weights.path} holds {weights.holds} and fills only {share:.1%} of {wanted}; leave "
        f"--model out to take the file's, or give --allow-partial to take what fits"
    )


@torch.no_grad()
def _zero_new_heads(model: VisionTransformer, report: LoadReport) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith(HEADS) and name in report.new:
            parameter.zero_()
