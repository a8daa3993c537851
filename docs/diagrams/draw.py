"""Draws docs/images/idef0_*.svg and grafcet_*.svg from the descriptions beside this file.

    python docs/diagrams/draw.py

`idef0.py` and `grafcet.py` say how a description is written. Needs Python alone.
"""

from pathlib import Path

import grafcet
import idef0
from svg import Page

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"


def descriptions(kind: str) -> dict[str, str]:
    """The text of every description whose name begins with `kind`, by that name."""
    return {path.stem: path.read_text("utf-8") for path in sorted(HERE.glob(f"{kind}_*.txt"))}


def draw_all() -> dict[str, tuple[Page, float]]:
    """The page and height of every drawing, by name."""
    diagrams = {name: idef0.parse(text) for name, text in descriptions("idef0").items()}
    nodes = [diagram.node for diagram in diagrams.values()]
    pages = {name: idef0.draw(diagram, nodes) for name, diagram in diagrams.items()}
    charts = {name: grafcet.parse(text) for name, text in descriptions("grafcet").items()}
    return pages | {name: grafcet.draw(chart) for name, chart in charts.items()}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, (page, height) in draw_all().items():
        path = IMAGES / f"{name}.svg"
        path.write_text(page.svg(height), "utf-8")
        print(path.relative_to(HERE.parent.parent))
        for fault in page.collisions():
            print(f"  {fault}")


if __name__ == "__main__":
    main()
