"""What becomes of a prediction: tables, JSON lines, CSV, annotated pictures, sorted copies, scores.

Every writer takes one `Answer` at a time and keeps nothing of it, so that a hundred thousand photos
need no more memory than one. predict.py decides which writers a command line asks for.
"""

import csv
import filecmp
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from imaging.digests import TrainedOn, digest_of
from reporting.intervals import NOT_TOLD, wilson
from reporting.metrics import confusion_lines, most_frequent
from reporting.palette import LIGHT
from system.files import FreshNames, appearing, folder_name, named, safe_cell, write_picture
from system.fonts import pil_font
from system.terminal import bar, counted, display_width, listed, pad, printable

UNSURE = "unsure"
UNKNOWN = "unknown"  # unlike the photos that the model was trained on: `formats.known`
HEAD = 4096  # bytes of a drawing, in which its signature stands
LARGEST_MATRIX = 20  # classes; more do not fit a terminal, so the most frequent mistakes are listed


class Answer(NamedTuple):
    """What predict.py found for one photo: `top` (best first), or the reason why there is none."""

    path: str | None
    top: Sequence[tuple[int, str, float]] = ()  # (index, class name, probability)
    unsure: bool = False  # the best probability lies below --threshold
    truth: int | None = None  # index of the class folder that the photo lies in
    error: str | None = None
    image: object = None  # the decoded photo, only where a writer draws on it
    label: str | None = None  # the name of that class
    folder: str = ""  # the photo's, where it is the name of no class
    unknown: bool = False  # the photo is unlike those that the model was trained on
    features: object = (
        None  # (F,), what the model's head read; None where the file does not give it
    )

    @property
    def doubt(self) -> str:
        """Why not to act on the best class: "unknown" before "unsure"; "" where nothing speaks
        against it."""
        return UNKNOWN if self.unknown else UNSURE if self.unsure else ""

    @property
    def verdict(self) -> str:
        """The class to act on: the best one's name, or why there is none."""
        return self.doubt or self.top[0][1]


class Writer:
    """What predict.py hands its answers to."""

    notes: Sequence[str] = ()  # what to tell before the first answer

    def write(self, answer: Answer) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Called after the last answer, and not at all where something stopped before it."""

    def close(self) -> None:
        """Called once, at the end of whatever kind."""


class Table(Writer):
    """Prints a table per photo: class, probability, bar. Errors go to standard error.

    brief: of so many classes a line per photo instead, where tables would fill screens.
    """

    def __init__(self, stream=None, brief: int = 0):
        self.stream, self.brief = stream or sys.stdout, brief

    def write(self, answer: Answer) -> None:
        if answer.error:
            print(f"error: {printable(answer.path)}: {printable(answer.error)}", file=sys.stderr)
            return
        names = [printable(name) for _, name, _ in answer.top]
        verdict = f"  ({answer.doubt})" if answer.doubt else ""
        if self.brief:
            pairs = list(zip(names, answer.top, strict=True))[: self.brief]
            told = ", ".join(f"{name} {p:.4f}" for name, (_, _, p) in pairs)
            print(f"{printable(answer.path)}  {told}{verdict}", file=self.stream, flush=True)
            return
        width = max(map(display_width, names))
        lines = [f"{printable(answer.path)}{verdict}"]
        for name, (_, _, probability) in zip(names, answer.top, strict=True):
            drawn = bar(probability, self.stream.encoding)
            lines.append(f"  {pad(name, width)}  {probability:6.4f}  {drawn}".rstrip())
        print("\n".join(lines), end="\n\n", file=self.stream, flush=True)


class JsonLines(Writer):
    """Prints an object per photo: image and predictions, or image and error."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        # Lone surrogates (names that are not Unicode) become \udc80 through the stream's
        # backslashreplace, which JSON reads back; other encodings get ASCII escapes throughout.
        self.ascii = "utf" not in (self.stream.encoding or "").lower()

    def write(self, answer: Answer) -> None:
        line = json.dumps(as_record(answer), ensure_ascii=self.ascii)
        print(line, file=self.stream, flush=True)


def as_record(answer: Answer) -> dict:
    """Returns an answer as plain Python: image and predictions, or image and error."""
    record: dict = {"image": answer.path}
    if answer.error:
        return record | {"error": answer.error}
    record["predictions"] = [
        {"class": name, "index": index, "probability": round(probability, 6)}
        for index, name, probability in answer.top
    ]
    if answer.label is not None:
        record["label"] = answer.label
    doubts = {UNSURE: answer.unsure, UNKNOWN: answer.unknown}
    return record | {word: True for word, holds in doubts.items() if holds}


class CsvFile(Writer):
    """Writes a row per photo: image, label, answer, class and probability of the top k, error."""

    def __init__(self, path: str, topk: int):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Line-buffered: what is answered is on disk even if the run is stopped.
        self.file = open(  # noqa: SIM115 (closed by `close`, rows come one by one)
            path, "w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1
        )
        self.writer = csv.writer(self.file)
        self.topk = topk
        ranked = [f"{kind}_{rank + 1}" for rank in range(topk) for kind in ("class", "probability")]
        self._write(["image", "label", "answer", *ranked, "error"])

    def _write(self, row: list[str]) -> None:
        with named(self.path):
            self.writer.writerow(row)

    def write(self, answer: Answer) -> None:
        ranked = []
        for _, name, probability in answer.top:
            ranked += [safe_cell(name), f"{probability:.6f}"]
        ranked += [""] * (2 * self.topk - len(ranked))
        verdict = "" if answer.error else safe_cell(answer.verdict)
        label, error = safe_cell(answer.label or ""), safe_cell(answer.error or "")
        self._write([safe_cell(answer.path), label, verdict, *ranked, error])

    def close(self) -> None:
        with named(self.path):
            self.file.close()


class SortedCopies(Writer):
    """Copies each photo into a folder named after its predicted class, or why there is none."""

    def __init__(self, folder: str, classes: Sequence[str]):
        self.names = FreshNames(folder, own=partial(filecmp.cmp, shallow=False))
        *self.of_class, unsure, unknown = self._subfolders([*classes, UNSURE, UNKNOWN])
        self.of_doubt = {UNSURE: unsure, UNKNOWN: unknown}

    @staticmethod
    def _subfolders(names: Sequence[str]) -> list[str]:
        """The folders of classes; those that would share one get their number added."""
        taken: dict[str, str] = {}
        for index, name in enumerate(names):
            folder = folder_name(name)
            while folder.lower() in taken:
                folder = f"{folder}_{index}"
            taken[folder.lower()] = folder
        return list(taken.values())

    def write(self, answer: Answer) -> None:
        if answer.error:
            return
        doubt = answer.doubt
        subfolder = self.of_doubt[doubt] if doubt else self.of_class[answer.top[0][0]]
        target = self.names.path(answer.path, Path(answer.path).suffix, subfolder=subfolder)
        if target.exists():  # the same photo
            return
        target.parent.mkdir(exist_ok=True)
        with appearing(target) as copy:
            shutil.copy2(answer.path, copy)


class AnnotatedPictures(Writer):
    """Saves each photo with its table drawn below it, class names legible in any script."""

    LONG_SIDE = 800  # pixels; larger photos are shrunk, smaller ones enlarged to half of it or more

    def __init__(self, folder: str):
        self.names = FreshNames(folder, own=is_drawing_of)

    def write(self, answer: Answer) -> None:
        if not answer.error:
            path, told = self.names.path(answer.path, ".jpg"), signature(answer.path)
            picture = annotate(answer, self.LONG_SIDE)
            write_picture(path, picture.save, format="JPEG", quality=90, comment=told)


def signature(photo: str) -> str:
    """What a drawing says in its file of the photo that it is of: a later run may replace it."""
    return f"predict.py, photo {digest_of(photo)}"


def is_drawing_of(photo: str, path: Path) -> bool:
    """Whether a file begins as those that are drawn of this very photo."""
    with open(path, "rb") as file:
        return signature(photo).encode() in file.read(HEAD)


def annotate(answer: Answer, long_side: int):
    """The photo of `answer` above a table of its top classes, as a new PIL image."""
    photo = answer.image
    scale = min(long_side / max(photo.size), max(1.0, long_side / 2 / max(photo.size)))
    photo = photo.resize(
        [max(1, round(side * scale)) for side in photo.size], Image.Resampling.BICUBIC
    )
    width = max(photo.width, long_side // 2)
    line = 26
    canvas = Image.new("RGB", (width, photo.height + line * len(answer.top) + 16), "white")
    canvas.paste(photo, ((width - photo.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    left, right = round(width * 0.38), width - 70
    for row, (_, name, probability) in enumerate(answer.top):
        y = photo.height + 8 + row * line
        font = pil_font(18, text=name)
        colour = LIGHT.accent if row == 0 and not answer.doubt else LIGHT.other
        draw.text((10, y), shorten(printable(name), font, left - 18), fill=LIGHT.ink, font=font)
        draw.rectangle(
            (left, y + 4, left + (right - left) * probability, y + line - 8), fill=colour
        )
        draw.text((right + 8, y), f"{probability:.3f}", fill=LIGHT.ink, font=pil_font(18))
    if answer.doubt:
        draw.text(
            (10, 8),
            answer.doubt,
            fill=LIGHT.wrong,
            font=pil_font(28),
            stroke_width=3,
            stroke_fill="white",
        )
    return canvas


def shorten(text: str, font, width: float) -> str:
    """`text`, cut with an ellipsis so that it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


class Score(Writer):
    """Accuracy and confusion over photos whose folder names their class.

    Every other photo is counted under the reason why it is not judged: also those that the model
    was trained on, whose digests `trained_on` has.
    """

    def __init__(self, classes: Sequence[str], trained_on: str):
        self.classes, self.trained_on = classes, TrainedOn(trained_on)
        self.pairs: Counter[tuple[int, int]] = Counter()  # (true, predicted) -> photos
        self.unknown: Counter[str] = Counter()  # folder that names no class -> photos
        self.unread = self.loose = self.trained = 0

    def write(self, answer: Answer) -> None:
        if answer.error:
            self.unread += 1
        elif answer.truth is not None and answer.path and answer.path in self.trained_on:
            self.trained += 1
        elif answer.truth is not None:
            self.pairs[answer.truth, answer.top[0][0]] += 1
        elif answer.folder:
            self.unknown[answer.folder] += 1
        else:
            self.loose += 1

    @property
    def total(self) -> int:
        return self.pairs.total()

    @property
    def right(self) -> int:
        return sum(count for (truth, guess), count in self.pairs.items() if truth == guess)

    @property
    def accuracy(self) -> float | None:
        """The share that is right of the photos that are judged, None where none is."""
        return self.right / self.total if self.total else None

    @property
    def word(self) -> str:
        """The accuracy as tables have it."""
        return "unknown" if self.accuracy is None else f"{self.accuracy:.4f}"

    def lines(self) -> list[str]:
        """What to print at the end; nothing where no photo lay in a folder."""
        if not self.total:
            return self.caveats()
        share = f"{self.right} of {counted(self.total, 'photo')}"
        low, high = wilson(self.accuracy, self.total)
        interval = f"95 % interval {low:.3f} to {high:.3f}"
        head = [f"accuracy {self.word} ({share}), {interval}", *self.caveats()]
        present = sorted({index for pair in self.pairs for index in pair})
        if len(present) > LARGEST_MATRIX:
            return [*head, *self._mistakes()]
        return [*head, "", *self._matrix(present)]

    def caveats(self) -> list[str]:
        """What to tell beside the accuracy; nothing where no photo lay in a folder."""
        if not (self.total or self.unknown or self.trained):
            return []
        doubt = [NOT_TOLD] if self.total and not self.trained_on.known else []
        return doubt + self._left_out()

    def _left_out(self) -> list[str]:
        """A line on the photos that are not judged, and why."""
        reasons = []
        if self.trained:
            reasons.append(f"{self.trained} that the model was trained on")
        if self.unknown:
            names = listed([printable(name) for name in sorted(self.unknown)])
            which = "a folder that is" if len(self.unknown) == 1 else "folders that are"
            reasons.append(f"{self.unknown.total()} in {which} no class of the model ({names})")
        if self.loose:
            reasons.append(f"{self.loose} in no class folder")
        if self.unread:
            reasons.append(f"{self.unread} that cannot be read")
        return [f"not judged: {'; '.join(reasons)}"] if reasons else []

    def _mistakes(self) -> list[str]:
        names = [printable(name) for name in self.classes]
        wrong = most_frequent(dict(self.pairs.most_common()), names, LARGEST_MATRIX)
        lines = [f"  {count:5d}  {true} taken for {said}" for true, said, count in wrong]
        return ["most frequent mistakes:", *lines] if lines else []

    def _matrix(self, present: Sequence[int]) -> list[str]:
        counts = [[self.pairs[truth, guess] for guess in present] for truth in present]
        return confusion_lines(counts, [printable(self.classes[index]) for index in present])
