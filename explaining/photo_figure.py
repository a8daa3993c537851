"""One figure per photo that says why: where the model looked and which splines moved the answer.

predict.py --explain writes these, and what they say as JSON beside them. What they show is worked
out in `story`; below stand the photos of the training set that are most like it, see
`predicting.nearest`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches

import torch
from torch import Tensor

from explaining.attribution import with_own_modules
from explaining.parts import told_apart
from explaining.story import CURVES, DrawnCurve, Story, explain
from explaining.words import Say, place_in_words, words_for
from imaging.decoding import load_image
from imaging.digests import TrainedOn
from imaging.preprocess import eval_transform
from predicting.nearest import Near, Nearest
from predicting.predictor import Predictor
from predicting.writers import Answer, Writer, is_drawing_of, signature
from reporting.palette import LIGHT
from system.files import FreshNames, write_picture, write_text
from system.fonts import legible, use_fonts

SAMPLE = 32  # photos whose values stand under the curves
THUMBNAIL = 240  # pixels of a training photo's longer side
BRIGHTEST = 0.97  # the quantile of a map from which on patches are equally bright
SAME = 0.9995  # the cosine from which on features are equal, as precisely as files keep them
FOR, AGAINST, GREY = LIGHT.for_, LIGHT.against, LIGHT.other


class Figures(Writer):
    """Writes a figure per photo into a folder, and a JSON file of the same name.

    Photos are gathered up to SAMPLE, so that each curve can show how the values of all of them are
    spread; the figures of the last ones appear at the end.
    """

    def __init__(
        self,
        folder: str,
        predictor: Predictor,  # whose answers are explained
        class_name: str | None,
        weights: str | None = None,  # the file of the classifier, beside which a run has others
    ):
        classifier = predictor.classifier
        if classifier.model is None:
            raise ValueError(
                "--explain needs one model's checkpoint: an exported file shows no attention, and "
                "an ensemble is several models"
            )
        self.target = class_index(class_name, classifier.classes)
        self.names = FreshNames(folder, own=is_drawing_of)
        self.classifier, self.predictor = classifier, predictor
        # Hooks on the classifier's own modules would meet the photos that other threads predict.
        self.stored = with_own_modules(classifier.model)
        self.model = told_apart(self.stored)
        self.transform = eval_transform(classifier.preprocess)
        self.waiting: list[Answer] = []
        self.nearest = Nearest.beside(weights, classifier) if weights else Nearest()
        self.notes = [self.nearest.note] * bool(self.nearest.note)
        self.say = words_for(classifier.classes)
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
        images = images.to(self.predictor.device)
        top = [answer.top[0][0] for answer in self.waiting]
        targets = torch.tensor(top if self.target is None else [self.target] * len(top))
        stories = explain(
            self.model,
            images,
            targets.to(images.device),
            stored=self.stored,
            probabilities=lambda x: self.predictor.see(x).logits,
        )
        for answer, story in zip(self.waiting, stories, strict=True):
            near = self.nearest.of(answer.features)
            own = answer.path in self.trained_on
            figure = draw(answer, story, self.classifier, self.say, near, own)
            path, told = self.names.path(answer.path, ".png", ".json"), signature(answer.path)
            facts = {"Comment": told}
            write_picture(path, figure.savefig, format="png", dpi=110, metadata=facts)
            about = {"made_by": told}
            about |= as_json(story, self.classifier.classes, self.say, near)
            write_text(path.with_suffix(".json"), json.dumps(about, ensure_ascii=False) + "\n")
        self.waiting.clear()


def class_index(name: str | None, classes: Sequence[str]) -> int | None:
    if name is None or name in classes:
        return None if name is None else list(classes).index(name)
    near = get_close_matches(name, classes, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else f"it knows {', '.join(classes[:10])}"
    raise ValueError(f"--explain-class {name!r} is no class of this model; {hint}")


def as_json(story: Story, classes: Sequence[str], say: Say, near: Sequence[Near] = ()) -> dict:
    """What a figure says, for programs: see docs/training.md."""
    told = {
        "class": classes[story.target],
        "method": story.method,
        "map": [[round(value, 4) for value in row] for row in story.heat.tolist()],
        "covered": story.covered and asdict(story.covered),
        "splines": [
            {"layer": c.layer_name, "index": list(c.index), "contribution": c.contribution}
            for c in story.named
        ],
        "removed": story.removed and asdict(story.removed),
        "near": [
            {"path": one.path, "label": one.label, "similarity": round(one.similarity, 4)}
            for one in near
        ],
    }
    return told | ({"note": say("unlearned")} if story.unlearned else {})


def draw(
    answer: Answer,
    story: Story,
    classifier,
    say: Say,
    near: Sequence[Near] = (),
    own: bool = False,
):
    """The figure of one photo: the photo, where the model looked, its answer; below, the curves.

    near: the training photos most like it, last in the figure. own: whether it is one itself.
    """
    from matplotlib.figure import Figure

    name = legible(classifier.classes[story.target])
    splines = [3.0] * 2 if story.curves else [0.4] * story.unlearned
    heights = [4.2, *splines, *[2.5] * bool(near)]
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
    draw_photo(axes["photo"], answer, say)
    draw_heat(axes["looked"], story, model_view(answer, classifier), name, say)
    draw_answers(axes["answer"], answer, story, say)
    if story.unlearned:
        below[0].suptitle(say("unlearned"), fontsize=9)
    if story.curves:
        draw_blocks(axes["blocks"], story, name, say)
        mark_patches(axes["looked"], story, classifier.preprocess.img_size)
        draw_curves(below, story, name, say)
    if near:
        draw_near(parts[-1], near, own, say)
    return figure


def draw_curves(places, story: Story, name: str, say: Say) -> None:
    """The curves in two rows, what is left over empty; above, what the named ones are worth."""
    told = say("splines")
    if one := story.removed:
        values = (f"{value:.2f}" for value in (one.whole, one.named, one.random))
        told = say("removed", name, f"{one.splines:,}", f"{one.of:,}", *values) + "\n" + told
    places[0].suptitle(told, fontsize=9)
    every = [axes for place in places for axes in place.subplots(1, CURVES // 2)]
    for number, axes in enumerate(every):
        if number < len(story.curves):
            draw_curve(axes, number + 1, story.curves[number], name, say)
        else:
            axes.axis("off")


def draw_photo(axes, answer: Answer, say: Say) -> None:
    axes.imshow(answer.image)
    axes.set_title(say("photo"), fontsize=10)
    axes.axis("off")


def draw_near(place, near: Sequence[Near], own: bool, say: Say) -> None:
    """The nearest training photos with their classes, or their names where they are gone."""
    place.suptitle(say("near") + (say("own") if own else ""), fontsize=10)
    for axes, one in zip(place.subplots(1, len(near), squeeze=False)[0], near, strict=True):
        same = say("same") if one.similarity >= SAME else ""
        axes.set_title(f"{legible(one.label)}  {one.similarity:.3f}{same}", fontsize=9)
        axes.axis("off")
        picture = thumbnail(one)
        if picture is None:
            words = f"{say('gone')}\n{shortened(legible(one.path))}"
            axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=8, color=LIGHT.soft)
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


def draw_heat(axes, story: Story, grey: Tensor, name: str, say: Say) -> None:
    size = grey.shape[-1]
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1.3, extent=(0, size, size, 0))
    heat = shades(story.heat)
    axes.imshow(
        heat, cmap="inferno", alpha=0.25 + 0.5 * heat, interpolation="bilinear",
        extent=(0, size, size, 0), vmin=0, vmax=1,
    )  # fmt: skip
    axes.set_title(say("looked", name), fontsize=10)
    told = say("half", story.half, heat.numel()) if story.half else say("nothing", name)
    if one := story.covered:
        values = (f"{value:.3f}" for value in (one.whole, one.marked, one.random))
        told += "\n" + say("covered", *values)
    axes.set_xlabel(told, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def shades(heat: Tensor) -> Tensor:
    """The map in [0, 1] as it is drawn: a patch or two that stand out leave the others visible."""
    brightest = heat.quantile(BRIGHTEST)
    return (heat / brightest if brightest > 0 else heat).clamp(0, 1)


def draw_answers(axes, answer: Answer, story: Story, say: Say) -> None:
    for row, (index, name, probability) in enumerate(answer.top):
        colour = LIGHT.accent if index == story.target else GREY
        axes.barh(row, probability, color=colour, height=0.35)
        text = f"{legible(name)}  {probability:.3f}"
        axes.text(0, row - 0.22, text, va="bottom", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(max(len(answer.top), 3) - 0.5, -0.8))
    doubt = f": {say(answer.doubt)}" if answer.doubt else ""
    axes.set_title(say("answered") + doubt, fontsize=10)
    axes.axis("off")


def draw_blocks(axes, story: Story, name: str, say: Say) -> None:
    """What the splines of each block added to the logit, all together."""
    values = list(story.by_block.values())
    colours = [FOR if value > 0 else AGAINST for value in values]
    axes.bar([block + 1 for block in story.by_block], values, color=colours)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(say("blocks", name), fontsize=9)
    axes.set_xlabel(say("block"), fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
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


def draw_curve(axes, number: int, one: DrawnCurve, name: str, say: Say) -> None:
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
    where = say("token") if one.patch is None else say("most", number)
    side = say("for" if one.curve.contribution > 0 else "against", name)
    title = f"{number}  {place_in_words(one.place, say)}"
    added = f"{one.curve.contribution:+.2g} {side}{say('comma')}{where}"
    axes.set_title(f"{title}\n{added}", fontsize=8.5)
    axes.tick_params(labelsize=7)
