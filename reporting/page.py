"""The page about a run: report.html, one file that opens from disk on a phone or a desktop.

Functions from plain data (lists, dicts, arrays or tensors) to numbers and to the page, which holds
its pictures itself and appears whole or not at all. The pictures of their own are in `plots`.
"""

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template

from imaging.decoding import load_image
from reporting.metrics import class_table, most_confused, percent
from reporting.plots import COUNTED, DARK, LIGHT, PANELS, confusion_figure, curve_figure, png_bytes
from system.files import write_text
from system.fonts import web_font

THUMBNAIL = 224  # pixels
REPORT = "report.html"


# --- parts of the page --------------------------------------------------------------------------


def _text(value) -> str:
    """Returns a value as HTML text: names come from files and folders and may hold anything."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())


def _name(value) -> str:
    """Returns a class or file name as HTML, kept apart so that Arabic does not turn the line."""
    return f"<bdi>{_text(value)}</bdi>"


def _section(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    note = f'<p class="note">{_text(note)}</p>' if note else ""
    return f"<section><h2>{_text(title)}</h2>{note}{body}</section>"


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _picture(draw: Callable, alt: str) -> str:
    """Returns a plot in light and dark; `draw` takes a theme and returns a figure."""
    figures = [draw(theme) for theme in (LIGHT, DARK)]
    light, dark = (_data_uri(png_bytes(figure), "png") for figure in figures)
    width = round(100 * figures[0].get_figwidth())  # letters are then about as large as the page's
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" width="{width}" alt="{_text(alt)}"></picture>'
    )


def _font_face(names: Sequence[str]) -> str:
    """Returns the style of a font with the letters of `names` that a device may not have."""
    font = web_font("".join(names))
    if font is None:
        return ""
    uri = f"data:font/woff;base64,{base64.b64encode(font).decode()}"
    return f'@font-face {{ font-family: "Names"; src: url({uri}); }}'


def _summary(pairs: Sequence[tuple]) -> str:
    tiles = "".join(
        f'<div class="{"long" if len(str(value)) > 16 else "short"}"><dt>{_text(label)}</dt>'
        f"<dd>{_name(value).replace('_', '_<wbr>')}</dd></div>"
        for label, value in pairs
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _curves(rows: Sequence[dict]) -> str:
    if not rows:
        return ""
    plots = [
        _picture(lambda theme, panel=panel: curve_figure(rows, panel, theme), panel[0])
        for panel in PANELS
    ]
    return f'<div class="plots">{"".join(plots)}</div>'


def _confusion(matrix, classes: Sequence[str]) -> str:
    plot = _picture(lambda theme: confusion_figure(matrix, classes, theme), "confusion matrix")
    pairs = "".join(
        f"<li>{_name(true)} taken for {_name(predicted)}: {count}</li>"
        for true, predicted, count in most_confused(matrix, classes)
    )
    pairs = f"<ol>{pairs}</ol>" if pairs else "<p>Not one photo was taken for another class.</p>"
    kind = "small" if len(classes) <= COUNTED else "large"
    return f'<div class="confusion"><div class="{kind}">{plot}</div>{pairs}</div>'


def _mean(table: Sequence[dict], column: str) -> float | None:
    """Returns the mean over the classes that have a value."""
    values = [row[column] for row in table if row[column] is not None]
    return sum(values) / len(values) if values else None


def _classes(matrix, classes: Sequence[str]) -> str:
    """Returns the table of classes, the weakest first."""
    table = class_table(matrix, classes)
    table.sort(key=lambda row: (row["f1"] is None, row["f1"] or 0))
    lines = "".join(
        f"<tr><th scope=row>{_name(row['class'])}</th>"
        f"<td>{percent(row['precision'])}</td><td>{percent(row['recall'])}</td>"
        f'<td class="bar" style="--share:{percent(row["f1"] or 0)}%">{percent(row["f1"])}</td>'
        f"<td>{row['support']}</td></tr>"
        for row in table
    )
    means = [_mean(table, column) for column in ("precision", "recall", "f1")]
    lines += (
        f"<tr class=mean><th scope=row>mean of classes</th>"
        f"{''.join(f'<td>{percent(mean)}</td>' for mean in means)}"
        f"<td>{sum(row['support'] for row in table)}</td></tr>"
    )
    return (
        '<div class="scroll"><table class="classes"><thead><tr><th scope=col>class</th>'
        "<th scope=col>precision</th><th scope=col>recall</th><th scope=col>F1</th>"
        f"<th scope=col>photos</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _thumbnail(path: str) -> str:
    """Returns an image element, or a box that says why there is none."""
    try:
        photo = load_image(path, min_size=THUMBNAIL)
    except (ValueError, OSError):
        return '<div class="gone">cannot be read any more</div>'
    photo.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=80)
    return f'<img loading="lazy" src="{_data_uri(buffer.getvalue(), "jpeg")}" alt="">'


def _mistakes(mistakes: Sequence[dict]) -> str:
    cards = "".join(
        f'<figure title="{_text(m["path"])}">{_thumbnail(m["path"])}<figcaption>'
        f"<b>{_name(m['predicted'])}</b> {percent(m['probability'])}&nbsp;%"
        f"<br>true: {_name(m['true'])}<br><small>{_name(Path(m['path']).name)}</small>"
        "</figcaption></figure>"
        for m in mistakes
    )
    return f'<div class="photos">{cards}</div>' if cards else ""


def _settings(settings: Sequence[tuple]) -> str:
    lines = "".join(
        f"<tr><th scope=row><code>{_text(flag)}</code></th><td>{_name(value)}</td>"
        f"<td>{_text(reason)}</td></tr>"
        for flag, value, reason in settings
    )
    head = "<thead><tr><th>flag</th><th>value</th><th>why</th></tr></thead>"
    return (
        f'<div class="scroll"><table class="settings">{head}<tbody>{lines}</tbody></table></div>'
        if lines
        else ""
    )


def _lines(lines: Sequence[str]) -> str:
    return f"<pre>{_text(chr(10).join(lines))}</pre>" if lines else ""


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'<p>{_text(what)}</p><pre class="command">{_text(line)}</pre>' for what, line in commands
    )


# --- the page -----------------------------------------------------------------------------------


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
) -> Path:
    """Writes report.html into `run_dir` and returns its path; what is empty is left out.

    Args:
        title: what was trained on what, e.g. "vit_tiny_patch16_224 on flower_photos".
        summary: (label, value) of what matters most: accuracy, loss, photos, time, model.
        classes, matrix: names, and counts of photos, row the true class, column the predicted one.
        rows: of metrics.csv, see `plot_curves`; none for an evaluation alone.
        mistakes: from `worst_mistakes`.
        settings: (flag, value, why it was chosen).
        data_lines: what the check of the data set found.
        commands: (what it does, command line), to predict or to resume.
    """
    sure = "the wrong predictions that the model was surest of"
    body = [
        _summary(summary),
        _section("What to type next", _commands(commands)),
        _section("Curves", _curves(rows)),
        _section("Confusion", _confusion(matrix, classes)),
        _section("Classes", _classes(matrix, classes), "in percent, the lowest F1 first"),
        _section("Mistakes", _mistakes(mistakes), sure),
        _section("Settings", _settings(settings)),
        _section("Data", _lines(data_lines)),
    ]
    names = [title, *classes, *(m["path"] for m in mistakes), *data_lines]
    style = _font_face(names) + STYLE
    page = Template(PAGE).substitute(title=_text(title), style=style, body="\n".join(body))
    path = Path(run_dir) / REPORT
    write_text(path, page)
    return path


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
"""
STYLE = """
:root { --paper: #f3f6f4; --card: #ffffff; --ink: #24302b; --soft: #5d6b64; --line: #dfe5e1;
        --accent: #0f7b5f; --bar: #cfe9df; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #111614; --card: #1a211e; --ink: #dbe5df; --soft: #9aaaa2; --line: #36423c;
          --accent: #4fd1a5; --bar: #1f4a3c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", Names, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: clamp(1.35rem, 5vw, 2rem); line-height: 1.2; margin: 8px 0 20px;
     overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 10px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
          padding: 16px; margin-top: 16px; }
.note { color: var(--soft); margin: -6px 0 12px; font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
         margin: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
             padding: 12px 14px; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 2px 0 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.tiles .long dd { font-size: .95rem; line-height: 1.35; }
.tiles div:first-child dd { color: var(--accent); font-size: 1.7rem; line-height: 1.2; }
img { display: block; max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
         gap: 12px; }
.plots img { width: 100%; }
.confusion { display: grid; gap: 16px; }
.confusion ol { margin: 0; padding-left: 1.6em; }
.large { overflow: auto; max-height: 44rem; min-width: 0; }
.large img { max-width: none; }
@media (min-width: 860px) {
  .confusion { grid-template-columns: auto minmax(300px, 1fr); align-items: start; } }
.scroll { overflow: auto; max-height: 36rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
.mean > * { color: var(--soft); }
thead th { position: sticky; top: 0; background: var(--card); color: var(--soft);
           font-size: .85rem; font-weight: 500; }
tbody th { font-weight: 500; overflow-wrap: anywhere; }
.classes td, .classes thead th + th { text-align: right; }
.bar { background: linear-gradient(to right, var(--bar) var(--share), transparent 0) no-repeat; }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 12px; }
figure { margin: 0; min-width: 0; }
figure img, .gone { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 10px; }
.gone { display: grid; place-items: center; background: var(--line); color: var(--soft);
        text-align: center; }
figcaption { font-size: .9rem; line-height: 1.35; margin-top: 6px; overflow-wrap: anywhere; }
small { color: var(--soft); }
pre { margin: 0; padding: 10px 12px; border-radius: 10px; background: var(--paper);
      overflow-x: auto; font: .85rem/1.5 ui-monospace, "SF Mono", Consolas, Names, monospace; }
.command { white-space: pre-wrap; overflow-wrap: anywhere; }
section > p { margin: 10px 0 4px; }
code { font: .9em ui-monospace, "SF Mono", Consolas, Names, monospace; }
@media (max-width: 560px) {
  main { padding: 12px 10px 32px; } section { padding: 14px 12px; }
  th, td { padding: 6px 5px; } .settings td:last-child { min-width: 10rem; } }
"""
