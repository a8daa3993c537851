"""What the splines of a KAN-ViT do on photos: which matter, where they act, what they push.

    found = survey_splines(model, images)
    found.blocks[0][0].high.pushes      # class by class, on the average photo

A spline matters as much as it moves the answers that the model gives: the mean, over the photos, of
the size of its contribution (see `curves`) to the answer's logit less the mean of all logits. What
it adds to each class's logit, less that mean, is found likewise, to first order and place by place,
so that what is added where its feature is low, and where it is high, can be told apart.

Letters in shape comments: P photos, N tokens, F features that share a curve, C classes shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from explaining import curves
from explaining.curves import Curve, Place

PER_BLOCK = 10  # splines told of a block
CLASSES = 6  # whose logits are followed
SHOWN = 3  # photos at each end of an axis
BATCH = 8  # photos at a time
PATCHES = 16  # of each photo, whose values are kept
BINS, POINTS = 32, 60  # of a drawn spread, of a drawn line


class Spot(NamedTuple):
    """Where a photo's most extreme value lies: its number, the value, the patch.

    patch: None for a token that stands for the whole photo.
    """

    photo: int
    value: float
    patch: int | None


@dataclass
class End:
    """One end of a spline's axis: the photos with the lowest, or highest, values.

    spots: of those photos, the most extreme first: a quarter of all, at least SHOWN. lift: what the
    spline adds to its feature in the lowest, or highest, quarter of the values met, on the mean.
    pushes: what that gives each class's logit, less the mean of all classes, on the mean of these
    photos (C,).
    """

    spots: list[Spot]
    lift: float
    pushes: Tensor


@dataclass
class Told:
    """One spline: its place, its line (x, y), how often each value was met, both ends.

    whole: it acts mostly in tokens that stand for a whole photo, of which all this then speaks.
    pushes: what it gives each class, less the mean of all classes, on the mean of all photos.
    """

    curve: Curve  # its contribution: the mean size of that to the answer's logit
    place: Place
    whole: bool
    x: Tensor  # (POINTS,)
    y: Tensor
    counts: Tensor  # (BINS,), over the same range
    low: End
    high: End
    pushes: Tensor  # (C,)


@dataclass
class Survey:
    """answers: the class of each photo (P,). shown: classes that are followed, (C,) of them.

    blocks: by number, the splines of each that matter most.
    """

    answers: Tensor
    shown: list[int]
    blocks: dict[int, list[Told]] = field(default_factory=dict)


@contextmanager
def centred(model: nn.Module) -> Iterator[None]:
    """Within it, a model's logits are those less their mean over the classes."""
    hook = model.register_forward_hook(lambda _, __, logits: logits - logits.mean(1, keepdim=True))
    try:
        yield
    finally:
        hook.remove()


def survey_splines(model: nn.Module, images: Tensor, classes: int = CLASSES) -> Survey:
    """Surveys the splines of `model` on images (P, 3, S, S).

    classes: how many are followed at most: those that are answered most often.
    """
    with centred(model), curves.gradients_of(model.parameters(), wanted=False):
        with torch.no_grad():
            logits = torch.cat([model(chunk) for chunk in images.split(BATCH)])
        answers = logits.argmax(1)
        shown = most_answered(logits, answers, classes)
        strongest, met = rank(model, images, answers)
        measured = [Measure(model, curve, met[curve.layer_name]) for curve in strongest]
        follow(model, images, shown, measured)
    found = Survey(answers, shown)
    for one in measured:
        told = one.told()
        found.blocks.setdefault(told.place.block, []).append(told)
    return found


def most_answered(logits: Tensor, answers: Tensor, most: int) -> list[int]:
    """The classes that are answered most often, then the likeliest; in the order of their names."""
    counts = torch.bincount(answers, minlength=logits.shape[1]).double()
    order = counts + logits.softmax(1).mean(0).double() / 2
    return sorted(order.topk(min(most, len(order))).indices.tolist())


def rank(
    model: nn.Module, images: Tensor, answers: Tensor
) -> tuple[list[Curve], dict[str, tuple[Tensor, Tensor]]]:
    """The curves that matter most, PER_BLOCK a block, and of each layer's inputs what was met.

    These are two samples: of the tokens before the patches (n, I), and of the patches (n, I).
    """
    prefix, generator = model.num_prefix_tokens, torch.Generator().manual_seed(0)
    scores: dict[str, Tensor] = {}
    met: dict[str, tuple[list, list]] = {name: ([], []) for name in curves.kan_layers(model)}
    for image, answer in zip(images, answers.tolist(), strict=True):
        for name, record in curves.trace(model, image, answer).items():
            size = record.contributions.abs()
            scores[name] = scores[name].add_(size) if name in scores else size
            patches = record.inputs[prefix:]
            some = torch.randperm(len(patches), generator=generator)[:PATCHES]
            met[name][0].append(record.inputs[:prefix])
            met[name][1].append(patches[some.to(patches.device)])
    chosen = strongest_by_block(scores, len(images))
    return chosen, {name: tuple(map(torch.cat, both)) for name, both in met.items()}


def strongest_by_block(scores: dict[str, Tensor], photos: int) -> list[Curve]:
    """Of each block the curves with the largest scores above 0, the largest first."""
    found: dict[int, list[Curve]] = {}
    for name, score in scores.items():
        flat = score.flatten()
        best = flat.topk(min(PER_BLOCK, len(flat)))
        for position, value in zip(best.indices, best.values.tolist(), strict=True):
            index = tuple(map(int, torch.unravel_index(position, score.shape)))
            if value > 0:
                of_block = found.setdefault(curves.block_of(name), [])
                of_block.append(Curve(name, index, value / photos))
    ordered = (sorted(some, key=lambda c: -c.contribution) for some in found.values())
    return [curve for some in ordered for curve in some[:PER_BLOCK]]


class Measure:
    """What is gathered of one curve, photo after photo.

    Tokens before the patches and patches are kept apart: kind 0 and kind 1.
    """

    def __init__(self, model: nn.Module, curve: Curve, met: tuple[Tensor, Tensor]) -> None:
        self.curve, self.layer = curve, curves.kan_layers(model)[curve.layer_name]
        self.prefix = model.num_prefix_tokens
        self.met = [curves.acting_on(curve, self.layer, values).flatten().float() for values in met]
        outer = torch.tensor([0.25, 0.75])
        self.outer = [x.quantile(outer.to(x)) if len(x) else outer for x in self.met]
        self.spots: list[list[list[Spot]]] = [[[], []], [[], []]]  # kind, side
        self.lift = torch.zeros(2, 2, 2)  # kind, side: sum of what it adds, number of places
        self.added: list[Tensor] = []  # (photos, C, kind, 3): at either side, and in all places
        self.seen = 0

    def start(self, inputs: Tensor) -> None:
        """Takes the layer's inputs (B, N, I) of the next photos."""
        x = curves.acting_on(self.curve, self.layer, inputs).detach().float()  # (B, N, F)
        self.y = curves.evaluate(self.curve, self.layer, x.flatten()).view_as(x)
        self.sides, self.now = [], []
        for kind, part in enumerate((slice(None, self.prefix), slice(self.prefix, None))):
            values, (low, high) = x[:, part], self.outer[kind]
            masks = (values <= low, values >= high)
            self.sides.append((part, masks))
            for side, mask in enumerate(masks):
                sums = torch.stack([(self.y[:, part] * mask).sum(), mask.sum()])
                self.lift[kind, side] += sums.cpu()
            if values.shape[1]:
                self._extremes(kind, values)
        self.seen += len(x)

    def _extremes(self, kind: int, values: Tensor) -> None:
        flat, features = values.flatten(1), values.shape[2]
        for side, extreme in enumerate((flat.min(1), flat.max(1))):
            pairs = zip(extreme.values.tolist(), extreme.indices.tolist(), strict=True)
            for number, (value, place) in enumerate(pairs, self.seen):
                patch = place // features if kind else None
                self.spots[kind][side].append(Spot(number, value, patch))

    def push(self, gradient: Tensor) -> None:
        """Takes the gradient (B, N, O) of the next class's logit for the photos of `start`."""
        gained = self.y * curves.sensitivity(self.curve, self.layer, gradient)
        sums = []
        for part, masks in self.sides:
            sums += [(gained[:, part] * mask).sum((1, 2)) for mask in (*masks, 1)]
        self.now.append(torch.stack(sums, 1).unflatten(1, (2, 3)).cpu())  # (B, kind, 3)

    def end(self) -> None:
        self.added.append(torch.stack(self.now, 1))

    def told(self) -> Told:
        added = torch.cat(self.added)  # (P, C, kind, 3)
        sizes = added[..., 2].abs().sum((0, 1))
        kind = int(sizes[1] >= sizes[0])
        low, high = (self._end(added, kind, side) for side in (0, 1))
        bounds = low.spots[0].value, high.spots[0].value
        x = torch.linspace(*bounds, POINTS)
        y = curves.evaluate(self.curve, self.layer, x.to(self.met[kind].device)).cpu()
        counts = torch.histc(self.met[kind].cpu(), BINS, *bounds)
        place, pushes = self.curve.place(self.layer), added[..., 2].sum(2).mean(0)
        return Told(self.curve, place, not kind, x, y, counts, low, high, pushes)

    def _end(self, added: Tensor, kind: int, side: int) -> End:
        sign = -1 if side else 1
        spots = sorted(self.spots[kind][side], key=lambda spot: sign * spot.value)
        spots = spots[: max(SHOWN, len(spots) // 4)]
        total, places = self.lift[kind, side].tolist()
        pushes = added[[spot.photo for spot in spots]][..., side].sum(2).mean(0)
        return End(spots, total / max(places, 1), pushes)


def follow(
    model: nn.Module, images: Tensor, shown: Sequence[int], measured: Sequence[Measure]
) -> None:
    """Lets every photo and class pass the measures: one pass forward, one back for each class."""
    layers = curves.kan_layers(model)
    names = sorted({one.curve.layer_name for one in measured})
    for chunk in images.split(BATCH):
        with torch.enable_grad(), curves.recording(layers) as records:
            logits = model(chunk.clone().requires_grad_())
            outputs = [records[name].outputs for name in names]
            for one in measured:
                one.start(records[one.curve.layer_name].inputs)
            for number, index in enumerate(shown, 1):
                more = number < len(shown)
                target = logits[:, index].sum()
                found = torch.autograd.grad(target, outputs, retain_graph=more) if names else ()
                gradients = dict(zip(names, found, strict=True))
                for one in measured:
                    one.push(gradients[one.curve.layer_name])
        for one in measured:
            one.end()


@contextmanager
def without_curves(model: nn.Module, some: Sequence[Curve]) -> Iterator[None]:
    """Within it, these curves add nothing."""
    layers = curves.kan_layers(model)
    kept = []
    with torch.no_grad():
        for curve in some:
            values = curves.coefficients(layers[curve.layer_name])[curve.index]
            kept.append((values, values.clone()))
            values.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for values, before in kept:
                values.copy_(before)
