"""One figure per photo that says why: where the model looked and which splines moved the answer.

predict.py --explain writes these. What they show is worked out in `story`; below stand the photos
of the training set that are most like it, see `predicting.nearest`.
"""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from explaining.parts import told_apart
from explaining.story import CURVES, DrawnCurve, Story, explain
from imaging.decoding import load_image
from imaging.digests import TrainedOn
from imaging.preprocess import eval_transform
from predicting.nearest import Near, Nearest
from predicting.writers import Answer, Writer
from reporting.palette import LIGHT
from system.files import FreshNames
from system.fonts import legible, use_fonts

SAMPLE = 32  # photos whose values stand under the curves
THUMBNAIL = 240  # pixels of a training photo's longer side
SAME = 0.9995  # the cosine from which on features are equal, as precisely as files keep them
FOR, AGAINST, GREY = LIGHT.for_, LIGHT.against, LIGHT.other


class Figures(Writer):
    """Writes a figure per photo into a folder.

    Photos are gathered up to SAMPLE, so that each curve can show how the values of all of them are
    spread; the figures of the last ones appear at the end.
    """

    def __init__(
        self,
        folder: str,
        classifier,
        class_name: str | None,
        device: torch.device,
        weights: str | None = None,  # the file of the classifier, beside which a run has others
    ):
        if classifier.model is None:
            raise ValueError(
                "--explain needs one model's checkpoint: an exported file shows no attention, and "
                "an ensemble is several models"
            )
        self.target = class_index(class_name, classifier.classes)
        self.names = FreshNames(folder)
        self.classifier, self.device = classifier, device
        self.model = told_apart(classifier.model)
        self.transform = eval_transform(classifier.preprocess)
        self.waiting: list[Answer] = []
        self.nearest = Nearest.beside(weights, classifier) if weights else Nearest()
        self.notes = [self.nearest.note] * bool(self.nearest.note)
        self.trained_on = TrainedOn(classifier.facts.get("trained_on", ""))
        use_fonts()

    def write(self, answer: Answer) -> None:
        if answer.error:
            return
        self.waiting.append(answer)
        if len(self.waiting) == SAMPLE:
            self.close()

    def close(self) -> None:
        if not self.waiting:
            return
        images = torch.stack([self.transform(answer.image) for answer in self.waiting])
        images = images.to(self.device)
        top = [answer.top[0][0] for answer in self.waiting]
        targets = torch.tensor(top if self.target is None else [self.target] * len(top))
        stories = explain(self.model, images, targets.to(self.device))
        for answer, story in zip(self.waiting, stories, strict=True):
            near = self.nearest.of(answer.features)
            figure = draw(answer, story, self.classifier, near, answer.path in self.trained_on)
            figure.savefig(self.names.path(answer.path, ".png"), dpi=110)
        self.waiting.clear()


def class_index(name: str | None, classes: Sequence[str]) -> int | None:
    if name is None or name in classes:
        return None if name is None else list(classes).index(name)
    near = get_close_matches(name, classes, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"it knows {', '.join(classes[:10])}"
    raise ValueError(f"--explain-class {name!r} is no class of this model; {hint}")


def draw(answer: Answer, story: Story, classifier, near: Sequence[Near] = (), own: bool = False):
    """The figure of one photo: the photo, where the model looked, its answer; below, the curves.

    near: the training photos most like it, last in the figure. own: whether it is one itself.
    """
    from matplotlib.figure import Figure

    name = legible(classifier.classes[story.target])
    heights = [4.2, *[3.0] * 2 * bool(story.curves), *[2.5] * bool(near)]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    top, below = parts[0], parts[1:3]
    axes = top.subplot_mosaic(
        [
            ["photo", "looked", "answer"],
            ["photo", "looked", "blocks" if story.curves else "answer"],
        ],
        width_ratios=[1, 1, 0.85],
    )
    draw_photo(axes["photo"], answer)
    draw_heat(axes["looked"], story, model_view(answer, classifier), name)
    draw_answers(axes["answer"], answer, story)
    if story.curves:
        draw_blocks(axes["blocks"], story, name)
        mark_patches(axes["looked"], story, classifier.preprocess.img_size)
        below[0].suptitle(
            "Splines that moved the answer most. Line: what the spline learned; dashed: before "
            "training.\nGrey: the values it met in all photos of this call. "
            "Dot: where it acted most in this photo.",
            fontsize=9,
        )
        for row, place in enumerate(below):
            for column, axes in enumerate(place.subplots(1, CURVES // 2)):
                number = row * CURVES // 2 + column
                draw_curve(axes, number + 1, story.curves[number], name)
    if near:
        draw_near(parts[-1], near, own)
    return figure


def draw_photo(axes, answer: Answer) -> None:
    axes.imshow(answer.image)
    axes.set_title("the photo", fontsize=10)
    axes.axis("off")


def draw_near(place, near: Sequence[Near], own: bool) -> None:
    """The nearest training photos with their classes, or their names where they are gone."""
    told = "; this photo is one of them" if own else ""
    place.suptitle(f"the training photos most like it, to the model{told}", fontsize=10)
    for axes, one in zip(place.subplots(1, len(near), squeeze=False)[0], near, strict=True):
        same = ", the same to the model" if one.similarity >= SAME else ""
        axes.set_title(f"{legible(one.label)}  {one.similarity:.3f}{same}", fontsize=9)
        axes.axis("off")
        picture = thumbnail(one)
        if picture is None:
            words = f"(not there now)\n{shortened(legible(one.path))}"
            axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=8, color=GREY)
        else:
            axes.imshow(picture)


def thumbnail(near: Near):
    """The photo, small, as a PIL image; None where it is gone or cannot be read."""
    try:
        picture = near.photo and load_image(near.photo, THUMBNAIL)
    except (OSError, ValueError):
        return None
    if picture is not None:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


def shortened(path: str, most: int = 44) -> str:
    return path if len(path) <= most else f"…{path[1 - most :]}"


def model_view(answer: Answer, classifier) -> Tensor:
    """The square that the model was given, as grey values (S, S) in [0, 1]."""
    preprocess = classifier.preprocess
    image = eval_transform(preprocess)(answer.image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return (image * std + mean).mean(0).clamp(0, 1)


def draw_heat(axes, story: Story, grey: Tensor, name: str) -> None:
    size = grey.shape[-1]
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1.3, extent=(0, size, size, 0))
    heat = story.heat
    axes.imshow(
        heat, cmap="inferno", alpha=0.25 + 0.5 * heat.clamp(0, 1), interpolation="bilinear",
        extent=(0, size, size, 0),
    )  # fmt: skip
    axes.set_title(f"where it looked for “{name}”", fontsize=10)
    axes.set_xlabel(
        f"bright: counted most. Half of what counted lies\n"
        f"in {story.half} of {heat.numel()} patches",
        fontsize=8,
    )
    axes.set_xticks([])
    axes.set_yticks([])


def draw_answers(axes, answer: Answer, story: Story) -> None:
    for row, (index, name, probability) in enumerate(answer.top):
        colour = FOR if index == story.target else GREY
        axes.barh(row, probability, color=colour, height=0.35)
        text = f"{legible(name)}  {probability:.3f}"
        axes.text(0, row - 0.22, text, va="bottom", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(max(len(answer.top), 3) - 0.5, -0.8))
    doubt = f": {answer.doubt}" if answer.doubt else ""
    axes.set_title(f"what it answered{doubt}", fontsize=10)
    axes.axis("off")


def draw_blocks(axes, story: Story, name: str) -> None:
    """What the splines of each block added to the logit, all together."""
    values = list(story.by_block.values())
    colours = [FOR if value > 0 else AGAINST for value in values]
    axes.bar([block + 1 for block in story.by_block], values, color=colours)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(f"all splines of a block, for or against “{name}”", fontsize=9)
    axes.set_xlabel("block", fontsize=8)
    axes.tick_params(labelsize=7)


def mark_patches(axes, story: Story, img_size: int) -> None:
    """Numbers on the photo: where each curve below acted most."""
    side = img_size / len(story.heat)
    numbers: dict[int, list[str]] = {}
    for number, one in enumerate(story.curves, 1):
        if one.patch is not None:
            numbers.setdefault(one.patch, []).append(str(number))
    for patch, names in numbers.items():
        row, column = divmod(patch, len(story.heat))
        axes.text(
            (column + 0.5) * side,
            (row + 0.5) * side,
            ",".join(names),
            ha="center",
            va="center",
            fontsize=8,
            color="white",
            bbox={"boxstyle": "circle,pad=0.2", "fc": "black", "ec": "white"},
        )


def draw_curve(axes, number: int, one: DrawnCurve, name: str) -> None:
    """A learned curve over the spread of its inputs, this photo's strongest point marked."""
    spread = axes.twinx()
    spread.hist(one.sample, bins=50, color=GREY, alpha=0.35)
    spread.set_yticks([])
    colour = FOR if one.curve.contribution > 0 else AGAINST
    axes.set_zorder(spread.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.axhline(0, color="black", linestyle="--", linewidth=0.8)
    axes.plot(one.x, one.y, color=colour, linewidth=2)
    axes.plot(*one.here, "o", color=colour, markersize=9, markeredgecolor="black")
    where = "in the class token" if one.patch is None else f"most at {number} in the photo"
    verb = "for" if one.curve.contribution > 0 else "against"
    axes.set_title(
        f"{number}  {one.title}\n{one.curve.contribution:+.2g} {verb} “{name}”, {where}",
        fontsize=8.5,
    )
    axes.tick_params(labelsize=7)
