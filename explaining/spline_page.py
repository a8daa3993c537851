"""explain.html: what the splines of a KAN-ViT do, in pictures and words, block by block.

`survey_splines` measures it; here it becomes what reporting/explain.html.jinja shows.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from explaining import curves
from explaining.kan_vit import Effect, LayerSurvey, effects_of, in_chunks, without_splines
from explaining.page_words import all_words, page_words
from explaining.spline_survey import SHOWN, End, Spot, Survey, Told, survey_splines, without_curves
from explaining.words import Say, place_in_words
from imaging.preprocess import Preprocess
from predicting.inputs import Photo
from reporting.page import data_uri, environment, font_of
from system.files import write_text

PAGE = "explain.html"
MARK = b'<meta name="generator" content="explain.py">'
LITTLE, FEW = 0.01, 0.05  # of a layer's output; of photos answered otherwise
WIDE, NARROW, MANY = 160, 96, 150  # pixels of a photo; so many photos are small ones
OPEN = 3  # blocks shown at once, those that matter most
TYPICAL = (0.5, 0.75)  # share of an end's photos that are of the one class named, of the two
NAMED, UNNOTICED = 0.5, 0.0005  # of the largest push, those that are named; a logit
WIDTH, HEIGHT = 240, 130  # of a drawn curve


@dataclass
class Seen:
    """The photos that a page is made of, as images (P, 3, S, S); where: which they are, in words.

    labels: the class of each, None where that is not known.
    """

    photos: Sequence[Photo]
    images: Tensor
    where: Sequence[str] = ()

    @property
    def labels(self) -> list[int | None]:
        return [photo.truth for photo in self.photos]


def require_own(folder: Path) -> None:
    """Raises ValueError where a page that is not ours would be written over."""
    path = folder / PAGE
    if path.is_file() and MARK not in path.read_bytes()[:2000]:
        raise ValueError(
            f"{path} is not a page that explain.py wrote: move it away, or name another folder "
            "with --output"
        )


def write_unlearned(folder: Path, name: str, model: nn.Module, classes: Sequence[str]) -> Path:
    """Writes the page of a model whose splines are as before training; returns its path."""
    language, say = page_words(classes)
    told = {"lines": [about(name, model, say)], "warning": say("unlearned"), "next": True}
    return _write(folder, say, language, name, **told, font=font_of([name, *all_words(language)]))


def write_page(
    folder: Path,
    name: str,
    model: nn.Module,
    classes: Sequence[str],
    preprocess: Preprocess,
    seen: Seen,
    layers: dict[str, LayerSurvey],
    effects: dict[int, Effect],
) -> Path:
    """Writes explain.html into `folder` and returns its path.

    name: of the checkpoint. layers, effects: what was found of layers and blocks. The model's
    curves must say what they add, see `parts.told_apart`.
    """
    language, say = page_words(classes)
    survey = survey_splines(model, seen.images)
    tell = Teller(survey, seen, classes, say, model.patch_embed)
    alone = {n: partial(without_curves, model, [t.curve for t in s]) for n, s in _some(survey)}
    parts = effects_of(model, seen.images, alone)
    with without_splines(list(curves.kan_layers(model).values())):
        bare = in_chunks(model, seen.images)
    changed = int((bare.argmax(1) != survey.answers).sum())
    first = sorted(effects, key=lambda n: -effects[n].moved)[:OPEN]
    blocks = [
        tell.block(n, layers, effects[n], parts.get(n), is_open=n in first) for n in sorted(effects)
    ]
    most, photos = max(one.share for one in layers.values()), len(seen.photos)
    little = (most < LITTLE and changed < FEW * photos) or not changed
    numbers = (changed, photos, _percent(most))
    return _write(
        folder, say, language, name,
        lines=[about(name, model, say), *seen.where],
        warning=say("little", *numbers) if little else "",
        tiles=tell.tiles(bare, changed, layers), table=tell.table(layers, effects), blocks=blocks,
        thumbnails=thumbnails(seen.images, tell.used, preprocess), side=seen.images.shape[-1],
        font=font_of([*classes, name, *all_words(language)]),
    )  # fmt: skip


def _write(folder: Path, say: Say, language: str, name: str, **values) -> Path:
    usual = dict.fromkeys(("tiles", "blocks", "thumbnails"), ())
    usual |= {"table": None, "font": None, "side": 1, "next": False}
    template = environment().get_template(f"{PAGE}.jinja")
    title = say("title", name)
    page = template.render(usual | values, say=say, language=language, title=title)
    write_text(path := folder / PAGE, page)
    return path


def _some(survey: Survey) -> list[tuple[int, list[Told]]]:
    return list(survey.blocks.items())


def about(name: str, model: nn.Module, say: Say) -> str:
    """What the model is, in a sentence."""
    layers = curves.kan_layers(model)
    count = sum(curves.coefficients(layer)[..., 0].numel() for layer in layers.values())
    blocks = len({curves.block_of(name) for name in layers})
    return say("about", name, f"{count:,}", blocks, len(model.blocks))


class Teller:
    """Puts what was found into words and shapes. used: the photos that are shown, by number."""

    def __init__(
        self, survey: Survey, seen: Seen, classes: Sequence[str], say: Say, patches: nn.Module
    ) -> None:
        self.survey, self.seen, self.say, self.patches = survey, seen, say, patches
        self.classes, self.used = classes, set()
        answers = survey.answers.tolist()
        pairs = zip(seen.labels, answers, strict=True)
        self.known = [answer if label is None else label for label, answer in pairs]

    def tiles(self, bare: Tensor, changed: int, layers: dict[str, LayerSurvey]) -> list[tuple]:
        """(label, value) of what matters most. bare: logits without any spline."""
        say, shares = self.say, sorted(one.share for one in layers.values())
        found = [(say("no_spline"), say("of", changed, len(bare)))]
        labels = [(n, label) for n, label in enumerate(self.seen.labels) if label is not None]
        if labels:
            photos, truths = map(torch.tensor, zip(*labels, strict=True))
            right = [
                int((answers.cpu()[photos] == truths).sum())
                for answers in (self.survey.answers, bare.argmax(1))
            ]
            found.append((say("right"), say("from_to", *right)))
        found.append((say("shares"), say("up_to", _percent(shares[-1]))))
        count = sum(one.used.numel() for one in layers.values())
        return [*found, (say("splines_in"), f"{count:,}")]

    def table(self, layers: dict[str, LayerSurvey], effects: dict[int, Effect]) -> dict:
        """A row for each block: its number, how much it moves, answers, each layer's share."""
        kinds = list(dict.fromkeys(map(curves.part_of, layers)))
        largest = max(one.moved for one in effects.values()) or 1.0
        rows = []
        for number in sorted(effects):
            shares = {curves.part_of(n): one.share for n, one in layers.items()
                      if curves.block_of(n) == number}  # fmt: skip
            rows.append({
                "number": number + 1,
                "moved": f"{effects[number].moved:.2f}",
                "bar": round(100 * effects[number].moved / largest, 1),
                "changed": self._photos(effects[number]),
                "shares": [_percent(shares[kind]) if kind in shares else "" for kind in kinds],
            })  # fmt: skip
        names = [self._layer(kind) for kind in kinds]
        return {"kinds": [self.say("share_of", name) for name in names], "rows": rows}

    def _layer(self, kind: str) -> str:
        return self.say(kind) if kind in ("fc1", "fc2") else kind

    def _photos(self, effect: Effect) -> int:
        return round(effect.changed * len(self.seen.photos))

    def block(
        self, number: int, layers: dict, effect: Effect, alone: Effect | None, *, is_open: bool
    ) -> dict:
        """A section. alone: what the splines that are shown do, taken away together."""
        say, told = self.say, self.survey.blocks.get(number, [])
        count = sum(one.used.numel() for n, one in layers.items() if curves.block_of(n) == number)
        all_of_it = (f"{count:,}", f"{effect.moved:.2f}", self._photos(effect))
        notes = [say("without", *all_of_it, len(self.seen.photos))]
        if alone is None:
            notes.append(say("no_effect"))
        else:
            notes.append(say("alone", len(told), f"{alone.moved:.2f}", self._photos(alone)))
        return {
            "number": number + 1,
            "title": say("block_n", number + 1),
            "notes": notes,
            "open": is_open,
            "splines": [self.spline(one) for one in told],
        }

    def spline(self, told: Told) -> dict:
        """A card: where the spline is, what it does in words, its curve, its photos, classes."""
        scale = max(float(part.abs().max()) for part in self._all_pushes(told)) or 1.0
        return {
            "place": place_in_words(told.place, self.say),
            "acts": self.say("whole" if told.whole else "places"),
            "curve": drawn(told, self.say),
            "low": self.end(told, "low", scale),
            "high": self.end(told, "high", scale),
            "pushes": self.bars(told.pushes, scale),
        }

    def _all_pushes(self, told: Told) -> list[Tensor]:
        return [told.low.pushes, told.high.pushes, told.pushes]

    def end(self, told: Told, side: str, scale: float) -> dict:
        """One end of a spline: photos, what it does there in words, and class by class."""
        end: End = getattr(told, side)
        return {
            "spots": [self.spot(spot) for spot in end.spots[:SHOWN]],
            "sentence": self.sentence(told, end, side),
            "pushes": self.bars(end.pushes, scale),
        }

    def spot(self, spot: Spot) -> dict:
        """A photo with the place of the value: x, y and size of the frame, in pixels of it."""
        self.used.add(spot.photo)
        frame = (0, 0, self.seen.images.shape[-1])
        if spot.patch is not None:
            row, column = divmod(spot.patch, self.patches.grid_size)
            size = self.patches.patch_size
            frame = (column * size, row * size, size)
        photo, label = self.seen.photos[spot.photo], self.classes[self.known[spot.photo]]
        if photo.truth is None:
            label = self.say("unlabelled", label)
        return {
            "photo": spot.photo,
            "frame": frame,
            "label": label,
            "alt": self.say("spot_alt", Path(str(photo.path)).name, f"{spot.value:.3g}"),
        }

    def bars(self, pushes: Tensor, scale: float) -> list[dict]:
        """For each class its value, signed, and how long its bar is, in percent of half a width."""
        return [
            {"name": self.classes[index], "value": signed(value), "for": value > 0,
             "size": round(50 * abs(value) / scale, 1)}
            for index, value in zip(self.survey.shown, pushes.tolist(), strict=True)
        ]  # fmt: skip

    def sentence(self, told: Told, end: End, side: str) -> str:
        """What the spline does at one end, as a biologist reads it."""
        say, place = self.say, told.place
        several = place.last > place.first
        names = self.typical(end)
        like = say("as", say("and").join(names)) if names else ""
        target = say("it")
        if place.to is not None:
            target = say("result", place.to)
        elif place.part is not None:
            target = say("result_part", place.part)
        hardly = abs(end.lift) < 0.1 * float(told.y.abs().max())
        verb = "hardly" if hardly else "raises" if end.lift > 0 else "lowers"
        act = say(verb, target, f"{abs(end.lift):.2g}")
        return say(side + "s" * several, like, act, self.speaks(end))

    def typical(self, end: End) -> list[str]:
        """The one or two classes that most photos of an end are of; none where there are many."""
        counts = Counter(self.known[spot.photo] for spot in end.spots)
        for number, enough in enumerate(TYPICAL, 1):
            some = counts.most_common(number)
            if sum(count for _, count in some) >= enough * len(end.spots):
                return [self.say("named", isolated(self.classes[index])) for index, _ in some]
        return []

    def speaks(self, end: End) -> str:
        """For which classes that speaks and against which: those that gain or lose most."""
        pairs = list(zip(self.survey.shown, end.pushes.tolist(), strict=True))
        largest = max(abs(value) for _, value in pairs)
        if largest < UNNOTICED:
            return self.say("neither")
        sides = []
        for sign in (1, -1):
            most = sorted(pairs, key=lambda pair, sign=sign: -sign * pair[1])[:2]
            told = [
                self.say("valued", isolated(self.classes[index]), signed(value))
                for index, value in most
                if sign * value > NAMED * largest
            ]
            sides.append(self.say("and").join(told))
        if all(sides):
            return self.say("for_against", *sides)
        return self.say("only_for", sides[0]) if sides[0] else self.say("only_against", sides[1])


def drawn(told: Told, say: Say) -> dict:
    """A curve as an SVG needs it: paths, and the numbers at its axes.

    Above 0 the spline adds; the spread of the values met stands at the foot.
    """
    top = max(float(told.y.abs().max()), 1e-9)
    xs = torch.linspace(0, WIDTH, len(told.x)).tolist()
    ys = (HEIGHT / 2 * (1 - 0.9 * told.y / top)).tolist()
    heights = (told.counts / told.counts.max().clamp_min(1) * HEIGHT * 0.4).tolist()
    step = WIDTH / len(heights)
    spread = "".join(f"V{HEIGHT - h:.1f}H{(n + 1) * step:.1f}" for n, h in enumerate(heights))
    ends = [float(value) for value in (told.y[0], told.x[0], told.y[-1], told.x[-1])]
    return {
        "line": "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)),
        "spread": f"M0 {HEIGHT}{spread}V{HEIGHT}Z",
        "low": f"{ends[1]:.2g}", "high": f"{ends[3]:.2g}", "top": signed(top),
        "size": (WIDTH, HEIGHT),
        "alt": say("curve_alt", *(f"{value:.3g}" for value in ends)),
    }  # fmt: skip


def thumbnails(images: Tensor, used: set[int], preprocess: Preprocess) -> list[tuple[int, str]]:
    """The photos that are shown, as the model saw them, small: (number, address)."""
    side = WIDE if len(used) <= MANY else NARROW
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    found = []
    for number in sorted(used):
        pixels = (images[number].cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        picture.thumbnail((side, side))
        picture.save(buffer := io.BytesIO(), "JPEG", quality=78)
        found.append((number, data_uri(buffer.getvalue(), "image/jpeg")))
    return found


def isolated(name: str) -> str:
    """A name within a sentence: letters that run from right to left do not turn what follows."""
    return f"\u2068{name}\u2069"


def signed(value: float) -> str:
    """A number with its sign and two figures or so: +0.12, −0.004, +0.0002; 0 for what is less."""
    digits = 2 if abs(value) >= 0.095 else 3 if abs(value) >= 0.0015 else 4
    text = f"{abs(value):.{digits}f}"
    return f"{'−' if value < 0 else '+'}{text}" if float(text) else "0"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u202f%" if share >= 0.0005 else "<\u202f0.1\u202f%"
