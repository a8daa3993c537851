"""Checks what the KAN papers claim, both sides tuned alike, and writes what comes of it.

    python -m benchmarks.kan_claims run --quick --data flower_photos
    python -m benchmarks.kan_claims show --quick

a: fitting formulas, b: Poisson's equation, c: forgetting, d: cost, e: image classification, on
three seeds each (arXiv 2404.19756, section 3). `run` appends a line for each piece of work
to benchmarks/kan_claims.jsonl and skips pieces that have one, so it can be killed and started
again; part e needs a folder of class folders, and the file that benchmarks/kan_vit.py writes. With
`--quick` all of it takes less than 30 minutes on two cores; without, hours, or a GPU (--device).
`show` rewrites the tables in docs/kan_claims.md and draws docs/images/kan_claims_*.png.
"""

import argparse
import re
from pathlib import Path

import torch

from benchmarks.claims import cost, fitting, forgetting, images, poisson
from benchmarks.claims.store import Store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = ROOT / "docs" / "kan_claims.md"
IMAGES = ROOT / "docs" / "images"

PARTS = {"a": fitting, "b": poisson, "c": forgetting, "d": cost, "e": images}


def run(store: Store, parts: list[str], device: torch.device, data: str | None) -> None:
    """Measures what the parts lack."""
    for letter in parts:
        if letter == "e":
            images.run(store, device, data)
        else:
            PARTS[letter].run(store, device)


def show(store: Store, page: Path, folder: Path) -> None:
    """Writes the tables of all parts between their marks in the page, and the figures."""
    text = page.read_text("utf-8")
    for letter, part in PARTS.items():
        text = replaced(text, letter, part.tables(store))
    page.write_text(text, "utf-8")
    for name, figure in figures(store):
        figure.savefig(folder / f"kan_claims_{name}.png", dpi=100)
        print(f"wrote kan_claims_{name}.png")


def replaced(text: str, letter: str, tables: str) -> str:
    """The page with other tables between the marks of a part."""
    begin, end = f"<!-- part {letter} -->", f"<!-- end of part {letter} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{PAGE.name} lacks the marks {begin} and {end}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n\n{tables}\n\n{end}", text, flags=re.DOTALL)


def figures(store: Store):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name in ("fitting", "poisson", "forgetting", "images"):
        part = next(p for p in PARTS.values() if p.__name__.endswith(name))
        figure = part.draw(store, plt)
        if figure is not None:
            yield name, figure
            plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "show"], nargs="?", default="run")
    parser.add_argument("--quick", action="store_true", help="smaller networks, fewer steps")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", help="folder of class folders, for part e")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="small networks gain from no more")
    args = parser.parse_args()
    store = Store(RESULTS, "quick" if args.quick else "full")
    if args.command == "show":
        if not store.all:  # the page's tables would be emptied
            parser.error(f"{RESULTS.name} has no results of {store.scale} runs to show")
        show(store, PAGE, IMAGES)
        return
    if "e" in args.parts and not args.data:
        parser.error("part e needs --data, a folder of class folders (or leave it out: --parts)")
    torch.set_num_threads(args.threads)
    run(store, args.parts, args.device, args.data)


if __name__ == "__main__":
    main()
