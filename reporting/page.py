"""The page about a run: report.html, one file that opens from disk on a phone or a desktop.

`page.html.jinja` is the page; here its values are made from plain data (lists, dicts, arrays or
tensors). It holds its pictures itself and appears whole or not at all.
"""

import base64
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imaging.decoding import load_image
from imaging.depth import Reading
from reporting.calibration import Bin
from reporting.confusion import COUNTED, confusion_figure
from reporting.metrics import ConfusedPair, class_table, most_confused, percent
from reporting.palette import DARK, LIGHT
from reporting.plots import PANELS, curve_figure, png_bytes, reliability_figure
from system.files import write_text
from system.fonts import web_font

THUMBNAIL = 224  # pixels
REPORT = "report.html"
TEMPLATE = "page.html.jinja"


def write_report(
    run_dir: str | os.PathLike,
    *,
    title: str,
    summary: Sequence[tuple[str, object]],
    classes: Sequence[str],
    matrix,
    rows: Sequence[dict] = (),
    mistakes: Sequence[dict] = (),
    settings: Sequence[tuple[str, object, str]] = (),
    data_lines: Sequence[str] = (),
    commands: Sequence[tuple[str, str]] = (),
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    notes: Sequence[str] = (),
    calibration: Sequence[tuple[str, Sequence[Bin]]] = (),
    suspects: str = "",
    best: int | None = None,
    worth: float | None = None,
    confused: Sequence[ConfusedPair] = (),
) -> Path:
    """Writes report.html into `run_dir` and returns its path; what is empty is left out.

    title: what was trained on what. summary: (label, value) of what matters most. classes, matrix:
    names, and counts of photos, row the true class. rows: of metrics.csv; none for an evaluation
    alone. mistakes: from `worst_mistakes`. settings: (flag, value, why). data_lines: what the check
    of the data set found. commands: (what it does, command line). reading: of the photos' numbers.
    notes: how far the accuracy is to be trusted. calibration: (at what temperature, its bins).
    suspects: what suspects.html beside it shows. best, worth: see `plot_curves`. confused: from
    `confused_pairs`.
    """
    letters = [title, *classes, *(m["path"] for m in mistakes), *data_lines]
    page = environment().get_template(TEMPLATE).render(
        title=title, summary=summary, commands=commands, settings=settings, data_lines=data_lines,
        font=font_of(letters), curves=curves_of(rows, best, worth), notes=notes, suspects=suspects,
        confusion=confusion_of(matrix, classes), calibration=calibration_of(calibration),
        confused=[versus(pair, reading) for pair in confused],
        mistakes=[shown(one, reading) for one in mistakes], **tables_of(matrix, classes),
    )  # fmt: skip
    write_text(path := Path(run_dir) / REPORT, page)
    return path


def environment() -> Environment:
    """Returns the templates of this folder: names come from files and may hold anything."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=as_text,
    )
    found.filters["percent"] = percent
    return found


def as_text(value: object) -> object:
    """Returns names of any bytes as text that can be encoded."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def font_of(names: Sequence[str]) -> str | None:
    """Returns a font with the letters of `names` that a device may not have, as an address."""
    font = web_font("".join(names))
    return font and data_uri(font, "font/woff")


def plot(draw: Callable, alt: str) -> dict:
    """Returns a plot in light and dark; `draw` takes a theme and returns a figure."""
    figures = [draw(theme) for theme in (LIGHT, DARK)]
    light, dark = (data_uri(png_bytes(figure), "image/png") for figure in figures)
    width = round(100 * figures[0].get_figwidth())  # letters are then about as large as the page's
    return {"light": light, "dark": dark, "width": width, "alt": alt}


def curves_of(rows: Sequence[dict], best: int | None, worth: float | None) -> list[dict]:
    if not rows:
        return []
    return [
        plot(lambda theme, panel=panel: curve_figure(rows, panel, theme, best, worth), panel[0])
        for panel in PANELS
    ]


def calibration_of(found: Sequence[tuple[str, Sequence[Bin]]]) -> list[dict]:
    return [
        plot(
            lambda theme, title=title, bins=bins: reliability_figure(bins, title, theme),
            f"reliability {title}",
        )
        for title, bins in found
    ]


def confusion_of(matrix, classes: Sequence[str]) -> dict:
    return {
        "plot": plot(lambda theme: confusion_figure(matrix, classes, theme), "confusion matrix"),
        "pairs": most_confused(matrix, classes),
        "size": "small" if len(classes) <= COUNTED else "large",
    }


def tables_of(matrix, classes: Sequence[str]) -> dict:
    """Returns the rows of `class_table`, the lowest F1 first, and their mean."""
    rows = class_table(matrix, classes)
    table = sorted(rows, key=lambda row: (row["f1"] is None, row["f1"] or 0))
    return {"table": table, "mean": mean_of(table)}


def mean_of(table: Sequence[dict]) -> dict:
    """Returns the means over the classes that have a value, and all photos."""
    found = {"support": sum(row["support"] for row in table)}
    for column in ("precision", "recall", "f1"):
        values = [row[column] for row in table if row[column] is not None]
        found[column] = sum(values) / len(values) if values else None
    return found


def versus(pair: ConfusedPair, reading: Reading) -> list[tuple[str, list[dict]]]:
    """Returns of each class what happened, in words, and its photos as `shown` gives them."""
    photos = ([shown(one, reading) for one in side] for side in pair.photos)
    return list(zip(pair.told, photos, strict=True))


def shown(mistake: dict, reading: Reading) -> dict:
    """Returns a mistake with its file's name and a small picture, None where it is gone."""
    return mistake | {
        "file": Path(mistake["path"]).name,
        "thumbnail": thumbnail(mistake["path"], reading),
    }


def thumbnail(path: str, reading: Reading) -> str | None:
    try:
        photo = load_image(path, THUMBNAIL, reading)
    except (ValueError, OSError):
        return None
    photo.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=80)
    return data_uri(buffer.getvalue(), "image/jpeg")
