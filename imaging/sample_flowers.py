"""Draws a small data set of flowers, so that a first run needs no download.

    python -m imaging.sample_flowers [--output DIR] [--per-class N] [--seed N]

Five classes named as in the well-known flower photos: daisy, dandelion, roses, sunflowers, tulips.
Each class has its usual colours and, more rarely, those of the others; number, place, scale, pose,
ground and light vary. Its shape is what tells a flower: a mean colour or a linear classifier on
thumbnails does not get far (tests/test_sample_flowers.py measures both).
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from system.files import write_picture
from system.flags import Given, Section, number, parse
from system.terminal import run_cli

SIZE = 160  # pixels, both sides
PER_CLASS = 300
SUPERSAMPLING = 2  # drawn this much larger and then reduced, which smooths every edge
WHITE, CREAM, YELLOW, GOLD = (246, 244, 238), (250, 236, 190), (250, 214, 40), (244, 176, 24)
ORANGE, RED, CRIMSON, PINK = (238, 124, 36), (206, 32, 40), (150, 16, 48), (238, 130, 168)
LILAC, PEACH, RUST, PURPLE = (186, 140, 214), (250, 188, 150), (170, 70, 30), (112, 44, 128)
# Petal colours with their shares; each class shares most of its colours with others.
DAISY = {WHITE: 16, CREAM: 1, PINK: 1, LILAC: 1, YELLOW: 1}
DANDELION = {YELLOW: 7, GOLD: 4, ORANGE: 1}
ROSE = {CRIMSON: 7, RED: 4, PINK: 6, PEACH: 1, WHITE: 1, YELLOW: 1}
SUNFLOWER = {YELLOW: 5, GOLD: 7, ORANGE: 2, CREAM: 1, RUST: 1}
TULIP = {PURPLE: 11, RED: 3, ORANGE: 2, YELLOW: 2, PINK: 1, WHITE: 1}
Colour = tuple[int, int, int]
Random = np.random.Generator


# --- strokes ------------------------------------------------------------------------------------


def shade(colour: Colour, factor: float) -> Colour:
    """Returns the colour made darker (factor < 1) or lighter, towards white (factor > 1)."""
    if factor <= 1:
        return tuple(int(channel * factor) for channel in colour)
    return tuple(int(255 - (255 - channel) * max(0.0, 2 - factor)) for channel in colour)


def pick(rng: Random, colours: dict[Colour, int]) -> Colour:
    """Returns one of the colours, drawn by its share and varied a little."""
    shares = np.array(list(colours.values()), float)
    colour = list(colours)[rng.choice(len(shares), p=shares / shares.sum())]
    return tuple(int(np.clip(channel + rng.normal(0, 10), 0, 255)) for channel in colour)


def outline(length: float, width: float, fullest: float, tip: float, steps: int = 9) -> np.ndarray:
    """Returns the points (2 * steps, 2) of a petal or leaf from the origin along +x.

    Args:
        length, width: of the whole petal.
        fullest: where along the length it is widest, in (0, 1).
        tip: 0.5 for a rounded end, 1 and more for a pointed one.
    """
    t = np.linspace(0, 1, steps)
    side = np.where(t < fullest, t / fullest, (1 - t) / (1 - fullest))
    side = np.sin(side * np.pi / 2) ** np.where(t < fullest, 0.8, tip)
    upper = np.stack([t * length, side * width / 2], axis=1)
    return np.concatenate([upper, upper[::-1] * [1, -1]])


class Pen:
    """Draws in a flower's own frame: unit radius, turned, seen under an angle, put in its place."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, centre, radius: float, turn: float = 0, tilt: float = 1
    ) -> None:
        """tilt: height over width of a circle as it is seen, 1 from straight above."""
        cos, sin = np.cos(turn), np.sin(turn)
        self.draw, self.centre, self.radius = draw, np.asarray(centre, float), radius
        self.frame = radius * np.array([[cos, sin], [-sin, cos]])
        self.view = np.array([1, tilt])

    def points(self, local: np.ndarray, angle: float = 0, shift=(0, 0)) -> list[float]:
        """Unit-frame points (n, 2), turned by `angle` and shifted -> x, y, x, y, ... in pixels."""
        cos, sin = np.cos(angle), np.sin(angle)
        turned = (local @ np.array([[cos, sin], [-sin, cos]]) + shift) * self.view
        return (turned @ self.frame + self.centre).ravel().tolist()

    def shape(self, local: np.ndarray, colour: Colour, angle: float = 0, shift=(0, 0)) -> None:
        """Fills a polygon and draws its edge a little darker, so that overlaps stay visible."""
        points = self.points(local, angle, shift)
        self.draw.polygon(points, fill=colour)
        edge = max(1, round(self.radius / 45))
        self.draw.line([*points, *points[:2]], fill=shade(colour, 0.78), width=edge)

    def line(self, local, colour: Colour, width: float, angle: float = 0, shift=(0, 0)) -> None:
        pixels = max(1, round(width * self.radius))
        points = self.points(np.asarray(local, float), angle, shift)
        self.draw.line(points, fill=colour, width=pixels, joint="curve")

    def disc(self, colour: Colour, radius: float, shift=(0, 0), edge: float = 0.8) -> None:
        around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = radius * np.stack([np.cos(around), np.sin(around)], axis=1)
        points = self.points(circle, shift=shift)
        self.draw.polygon(points, fill=colour, outline=shade(colour, edge))


def ring(pen: Pen, rng: Random, count: int, petal: np.ndarray, colour: Colour, offset: float):
    """Draws `count` petals around the centre, each with a vein, in no strict order."""
    start = rng.uniform(0, 2 * np.pi)
    reach = petal[:, 0].max()
    for k in rng.permutation(count):
        angle = start + 2 * np.pi * k / count + rng.normal(0, 0.25 / count)
        scale = [rng.uniform(0.9, 1.06), rng.uniform(0.88, 1.1)]
        tint = shade(colour, rng.uniform(0.86, 1.12))
        shift = offset * np.array([np.cos(angle), np.sin(angle)])
        pen.shape(petal * scale, tint, angle, shift)
        pen.line([(0, 0), (reach * 0.7, 0)], shade(tint, 0.86), 0.015, angle, shift)


def stem(rng: Random, draw, foot, top, colour: Colour, width: float) -> np.ndarray:
    """Draws a bent stem and returns its points (n, 2) from foot to top."""
    foot, top = np.asarray(foot, float), np.asarray(top, float)
    t = np.linspace(0, 1, 14)[:, None]
    bend = rng.normal(0, 0.08) * np.hypot(*(top - foot))
    path = foot + t * (top - foot) + np.sin(t * np.pi) * [bend, 0]
    draw.line(path.ravel().tolist(), fill=colour, width=max(2, round(width)))
    lit = path - [width / 4, 0]
    draw.line(lit.ravel().tolist(), fill=shade(colour, 1.2), width=max(1, round(width / 4)))
    return path


# --- flowers: each takes its stem's points and its radius ----------------------------------------


def daisy(rng: Random, draw, top, radius: float, path, green: Colour) -> None:
    """Many narrow, round-ended petals around a small yellow centre."""
    pen = Pen(draw, top, radius, rng.uniform(-0.6, 0.6), rng.uniform(0.7, 1))
    colour = pick(rng, DAISY)
    count = rng.integers(13, 21)
    inner = rng.uniform(0.22, 0.3)
    petal = outline(1 - inner * 0.6, rng.uniform(0.23, 0.3), 0.72, 0.5)
    ring(pen, rng, count, petal, shade(colour, 0.9), inner * 0.6)
    ring(pen, rng, count, petal * 0.93, colour, inner * 0.6)
    centre = pick(rng, {GOLD: 3, YELLOW: 3, ORANGE: 1})
    pen.disc(shade(centre, 0.85), inner)
    for _ in range(40):
        spot = rng.normal(0, inner * 0.4, 2)
        if np.hypot(*spot) < inner * 0.85:
            pen.disc(shade(centre, rng.uniform(0.9, 1.3)), inner * 0.12, spot)


def sunflower(rng: Random, draw, top, radius: float, path, green: Colour) -> None:
    """Two rings of pointed petals around a large dark disc with spirals of seeds."""
    for at in (0.45, 0.65):
        side = rng.choice([-1, 1])
        leaf = Pen(draw, path[int(at * len(path))], radius * rng.uniform(0.6, 0.9))
        leaf.shape(outline(1, 0.75, 0.35, 1.0), green, np.pi / 2 - side * rng.uniform(0.7, 1.5))
    pen = Pen(draw, top, radius, rng.uniform(-0.6, 0.6), rng.uniform(0.75, 1))
    colour = pick(rng, SUNFLOWER)
    count, inner = rng.integers(14, 22), rng.uniform(0.4, 0.52)
    petal = outline(1.02 - inner * 0.8, rng.uniform(0.24, 0.32), 0.42, 1.15)
    ring(pen, rng, count, petal, shade(colour, 0.82), inner * 0.8)
    ring(pen, rng, count, petal * 0.9, colour, inner * 0.8)
    dark = pick(rng, {(66, 38, 20): 3, (44, 28, 22): 2, (104, 64, 26): 2, (84, 78, 34): 1})
    pen.disc(dark, inner)
    golden = np.pi * (3 - np.sqrt(5))  # seeds stand at multiples of the golden angle
    for k in range(70):
        spot = inner * 0.95 * np.sqrt(k / 70) * np.array([np.cos(k * golden), np.sin(k * golden)])
        pen.disc(shade(dark, 1.28 if k > 34 else 0.7), inner * 0.06, spot)


def dandelion(rng: Random, draw, top, radius: float, path, green: Colour) -> None:
    """A dense tuft of thin yellow florets, or the white ball of seeds that comes after it."""
    foot = path[0]
    for _ in range(rng.integers(3, 6)):
        leaf = Pen(draw, foot, radius * rng.uniform(1.1, 1.7))
        leaf.shape(jagged_leaf(), green, -np.pi / 2 + rng.uniform(-1.3, 1.3))
    if rng.random() < 0.15:
        seed_ball(rng, draw, top, radius)
        return
    pen = Pen(draw, top, radius * 0.92, rng.uniform(-0.5, 0.5), rng.uniform(0.7, 1))
    colour = pick(rng, DANDELION)
    for reach, tint in ((1.0, 0.78), (0.86, 0.88), (0.7, 0.96), (0.52, 1.06), (0.34, 0.98)):
        floret = outline(reach, 0.085, 0.9, 0.4, steps=5)
        count = int(34 + 26 * reach)
        for angle in rng.permutation(count) * 2 * np.pi / count:
            tinted = shade(colour, tint * rng.uniform(0.9, 1.12))
            pen.shape(floret * [rng.uniform(0.85, 1.08), 1], tinted, angle + rng.normal(0, 0.05))
    for _ in range(18):  # the styles of the innermost florets
        pen.disc(shade(colour, rng.uniform(0.75, 1.2)), 0.04, rng.normal(0, 0.12, 2))


def jagged_leaf() -> np.ndarray:
    """Returns the points of a leaf with teeth, the lion's teeth that dandelions are named for."""
    t = np.linspace(0, 1, 12)
    teeth = np.where(np.arange(12) % 2, 0.16, 0.05) * np.sin(t * np.pi) ** 0.6
    upper = np.stack([t, teeth], axis=1)
    return np.concatenate([upper, upper[::-1] * [1, -1]])


def seed_ball(rng: Random, draw, top, radius: float) -> None:
    """A see-through ball of parachutes: rays from a small heart, each ending in a star."""
    pen = Pen(draw, top, radius, rng.uniform(0, 6))
    tone = rng.uniform(0.9, 1)
    for _ in range(80):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0.12, 1)) * 0.92
        end = reach * np.array([np.cos(angle), np.sin(angle)])
        pale = shade((238, 240, 240), tone * rng.uniform(0.8, 1))
        pen.line([(0, 0), end], shade(pale, 0.86), 0.012)
        for spread in np.linspace(-1.2, 1.2, 6) + rng.normal(0, 0.1):
            tip = 0.16 * np.array([np.cos(angle + spread), np.sin(angle + spread)])
            pen.line([end, end + tip], pale, 0.012)
    pen.disc((122, 98, 66), 0.13)


def rose(rng: Random, draw, top, radius: float, path, green: Colour) -> None:
    """Broad petals in layers, each turned against the last, wound into a spiral at the heart."""
    for at in rng.uniform(0.35, 0.85, 3):
        leaf = Pen(draw, path[int(at * len(path))], radius * rng.uniform(0.55, 0.8))
        side = rng.choice([-1, 1])
        leaf.shape(outline(1, 0.6, 0.4, 1.1), green, np.pi / 2 - side * rng.uniform(1.2, 2.2))
    for k in range(5):  # the calyx looks out from below
        sepal = Pen(draw, top, radius * 1.1)
        sepal.shape(outline(1, 0.22, 0.4, 1.2), shade(green, 0.9), k * 1.257 + rng.uniform(0, 0.5))
    pen = Pen(draw, top, radius * 0.95, rng.uniform(-0.5, 0.5), rng.uniform(0.72, 1))
    colour = pick(rng, ROSE)
    turn = rng.uniform(0, 2 * np.pi)
    for layer, (reach, count) in enumerate(((1, 5), (0.84, 5), (0.68, 5), (0.52, 4), (0.37, 3))):
        for k in range(count):
            angle = turn + 2 * np.pi * k / count + rng.normal(0, 0.1)
            centre = 0.45 * reach * np.array([np.cos(angle), np.sin(angle)])
            tint = shade(colour, 1.1 - 0.09 * layer + rng.normal(0, 0.03))
            pen.shape(rose_petal(reach), tint, angle, centre)
        turn += 2.4
    heart = shade(colour, 0.6)
    pen.disc(shade(colour, 0.78), 0.24)
    angle = np.linspace(0, 4.6 * np.pi, 40)
    spiral = (0.03 + 0.21 * angle / angle[-1])[:, None] * np.stack(
        [np.cos(angle + turn), np.sin(angle + turn)], axis=1
    )
    pen.line(spiral, heart, 0.035)


def rose_petal(reach: float) -> np.ndarray:
    """Returns the points of a petal broader than long, its outer rim flattened."""
    around = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    x, y = np.cos(around), np.sin(around)
    return reach * np.stack([np.minimum(0.52 * x, 0.46), 0.62 * y], axis=1)


def tulip(rng: Random, draw, top, radius: float, path, green: Colour) -> None:
    """A cup of three to five petals seen from the side, long blades for leaves."""
    for side in (-1, 1):
        blade = Pen(draw, path[rng.integers(0, 3)], radius * rng.uniform(1.8, 2.6))
        lean = side * rng.uniform(0.15, 0.6)
        blade.shape(outline(1, 0.2, 0.4, 1.1), shade(green, rng.uniform(0.9, 1.15)), lean - 1.57)
    lean = np.arctan2(*(path[-1] - path[-4])[::-1]) + np.pi / 2 + rng.normal(0, 0.15)
    pen = Pen(draw, top, radius, lean)
    colour = pick(rng, TULIP)
    flare = rng.uniform(0.1, 0.36)
    back = outline(1.75, 0.8, 0.55, 0.9)
    base = (0, 0.85)  # the petals rise from here, where the stem ends
    for angle in (-flare, flare):
        pen.shape(back * [0.96, 0.9], shade(colour, 0.72), angle - np.pi / 2, base)
    for side in (-1, 1):
        pen.shape(
            outline(1.7, 0.86, 0.45, 0.8),
            shade(colour, 0.9 + 0.1 * side),
            side * (flare + 0.16) - np.pi / 2,
            base,
        )
    pen.shape(outline(1.6, 0.9, 0.45, 0.85), colour, rng.normal(0, 0.06) - np.pi / 2, base)
    for offset in (-0.12, 0, 0.12):
        angle = offset - np.pi / 2
        pen.line([(0.3, 0), (1.25, 0)], shade(colour, 0.88), 0.02, angle, base)


FLOWERS: dict[str, Callable] = {
    "daisy": daisy,
    "dandelion": dandelion,
    "roses": rose,
    "sunflowers": sunflower,
    "tulips": tulip,
}


# --- grounds and light --------------------------------------------------------------------------


def slope(size: int, top: Colour, bottom: Colour) -> Image.Image:
    """Returns a picture that goes from one colour at the top to another at the bottom."""
    t = np.linspace(0, 1, size)[:, None, None]
    rows = np.array(top) * (1 - t) + np.array(bottom) * t
    return Image.fromarray(np.broadcast_to(rows, (size, size, 3)).astype("uint8"))


def meadow(rng: Random, size: int) -> Image.Image:
    ground = slope(size, (96, 142, 62), (42, 84, 30))
    draw = ImageDraw.Draw(ground)
    for x, y in rng.uniform(0, size, (260, 2)):
        blade = (x, y, x + rng.normal(0, size / 30), y - rng.uniform(0.06, 0.2) * size)
        draw.line(blade, fill=shade((80, 130, 50), rng.uniform(0.5, 1.25)), width=3)
    return ground


def sky(rng: Random, size: int) -> Image.Image:
    ground = slope(size, pick(rng, {(92, 150, 214): 2, (170, 190, 206): 1}), (214, 226, 236))
    draw = ImageDraw.Draw(ground)
    horizon = size * rng.uniform(0.62, 0.95)
    draw.rectangle((0, horizon, size, size), fill=pick(rng, {(84, 128, 58): 2, (150, 140, 70): 1}))
    return ground.filter(ImageFilter.GaussianBlur(size / 50))


def soil(rng: Random, size: int) -> Image.Image:
    ground = slope(size, (128, 98, 70), (84, 60, 44))
    draw = ImageDraw.Draw(ground)
    for x, y in rng.uniform(0, size, (160, 2)):
        r = rng.uniform(0.005, 0.03) * size
        tint = shade((112, 86, 64), rng.uniform(0.6, 1.25))
        draw.ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=tint)
    return ground


def bokeh(rng: Random, size: int) -> Image.Image:
    """Blurred discs of far leaves, sky and, here and there, other flowers."""
    ground = slope(size, pick(rng, {(60, 96, 54): 2, (40, 50, 60): 1}), (30, 52, 32))
    draw = ImageDraw.Draw(ground)
    leaves, far = (120, 160, 70), (60, 90, 140)
    colours = {leaves: 10, far: 4, WHITE: 1, YELLOW: 1, RED: 1, PINK: 1}
    for x, y in rng.uniform(0, size, (22, 2)):
        r = rng.uniform(0.03, 0.11) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=shade(pick(rng, colours), 0.85))
    return ground.filter(ImageFilter.GaussianBlur(size / 36))


def room(rng: Random, size: int) -> Image.Image:
    """A plain wall, light or dark, with the edge of a table."""
    wall = pick(rng, {(222, 216, 206): 2, (60, 62, 70): 1, (150, 168, 176): 1, (196, 160, 120): 1})
    ground = slope(size, shade(wall, 1.1), shade(wall, 0.8))
    edge = size * rng.uniform(0.8, 1)
    ImageDraw.Draw(ground).rectangle((0, edge, size, size), fill=shade(wall, 0.6))
    return ground


GROUNDS = (meadow, sky, soil, bokeh, room)


def light(rng: Random, picture: Image.Image) -> Image.Image:
    """Returns the picture under some light: from one side, of some warmth and strength, noisy."""
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1)))
    size = picture.width
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    falloff = 1 + rng.uniform(0, 0.28) * (np.cos(angle) * x + np.sin(angle) * y)
    warmth = rng.normal(0, 0.05)
    gains = rng.uniform(0.84, 1.12) * np.array([1 + warmth, 1, 1 - warmth])
    pixels = np.asarray(picture, np.float32) * falloff[..., None] * gains
    pixels += rng.normal(0, rng.uniform(1, 7), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


# --- pictures and data set ----------------------------------------------------------------------


def draw_flower(name: str, seed: int = 0, number: int = 1, size: int = SIZE) -> Image.Image:
    """Returns picture `number` of a class: a function of class, seed and number alone."""
    rng = np.random.default_rng([seed, list(FLOWERS).index(name), number])
    big = size * SUPERSAMPLING
    picture = GROUNDS[rng.integers(len(GROUNDS))](rng, big)
    draw = ImageDraw.Draw(picture)
    count = rng.choice([1, 2, 3], p=[0.75, 0.17, 0.08])
    radius = big * rng.uniform(0.34, 0.45) / count**0.6
    places = (np.arange(count) + 0.5) / count + rng.uniform(-0.15, 0.15, count) / count**0.5
    for place in rng.permutation(places):
        top = big * np.array([place, rng.uniform(0.32, 0.6)])
        foot = [top[0] + rng.normal(0, 0.12) * big, big * rng.uniform(0.94, 1.1)]
        green = pick(rng, {(70, 118, 50): 2, (94, 136, 70): 1, (52, 92, 56): 1})
        r = radius * rng.uniform(0.85, 1.15)
        path = stem(rng, draw, foot, top, green, r * 0.1)
        FLOWERS[name](rng, draw, top, r, path, green)
    return light(rng, picture.reduce(SUPERSAMPLING))


def draw_samples(
    root: str | os.PathLike, per_class: int = PER_CLASS, size: int = SIZE, seed: int = 0
) -> Path:
    """Draws the data set into `root`/<class>/<class>_0001.jpg ... and returns `root`.

    What is there already is kept. The folder appears whole or not at all. Raises ValueError where
    `root` holds anything but this very set.
    """
    root = Path(root)
    note = f"drawn by sample_flowers.py, seed {seed}, size {size}"
    files = [
        f"{name}/{name}_{number:04d}.jpg" for name in FLOWERS for number in range(1, per_class + 1)
    ]
    if root.exists():
        if _holds(root, files, note):
            return root
        raise ValueError(
            f"{root} exists and is not the set asked for ({per_class} pictures per class, seed "
            f"{seed}): remove it, or name another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    building = root.parent / f".{root.name}.{os.getpid()}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    try:
        for name in FLOWERS:
            (building / name).mkdir(parents=True)
        for file in files:
            name, number = file.split("/")[0], int(file[-8:-4])
            picture = draw_flower(name, seed, number, size)
            path = building / file
            write_picture(path, picture.save, format="JPEG", quality=90, comment=note)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _holds(root: Path, files: list[str], note: str) -> bool:
    """Whether `root` holds these files and no others, drawn with the settings that `note` tells."""
    if {path.relative_to(root).as_posix() for path in root.glob("*/*")} != set(files):
        return False
    with Image.open(root / files[0]) as first:  # each picture tells in its JPEG comment
        return first.info.get("comment") == note.encode()


OUTPUT = Section("output")


@dataclass(frozen=True)
class Options(Given):
    """What a command line of this module says, a row for each flag: see `system.flags`."""

    output: str = OUTPUT.row("sample_flowers", "a new folder", metavar="DIR")
    per_class: int = OUTPUT.row(
        PER_CLASS, "pictures of each flower", type=number(int, 2, 9999), metavar="N"
    )
    seed: int = OUTPUT.row(0, "of what is drawn", type=number(int, 0), metavar="N")


def main() -> int:
    options = parse(Options, prog="sample_flowers.py", description="Draw the sample flowers.")
    root = draw_samples(options.output, options.per_class, seed=options.seed)
    print(f"{root}: {options.per_class} pictures in each of {len(FLOWERS)} classes")
    return 0


if __name__ == "__main__":
    run_cli(main)
