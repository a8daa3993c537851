"""A model as a folder of static files, which a browser runs by itself: export.py --format web.

The page is that of serve.py, with an engine that decodes photos and runs the model on the visitor's
device. Nothing in it is loaded from elsewhere, and its policy lets nothing be sent elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import PIL

from formats.known import UNKNOWN_SHARE
from predicting.classifier import Classifier
from predicting.nearest import Nearest
from predicting.predictor import Predictor
from serving.models import Served, Shelf
from serving.runtime import SCRIPT
from system.files import json_if_any, make_output_folder, write_bytes

MODEL, FACTS, START = "model.onnx", "facts.json", "index.html"
KIND = "a model in a page"  # by which a folder of ours is known
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "form-action 'none'; base-uri 'none'"
)


def check_folder(folder: Path) -> None:
    """Raises OSError or ValueError where the page cannot, or should not, be written into a folder.

    A folder of an earlier export is written over; what else lies in it stays.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; name a folder for the page")
    told = json_if_any(folder / FACTS)
    ours = isinstance(told, dict) and told.get("kind") == KIND
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise ValueError(f"--output {folder} holds other files; name a new or an empty folder")
    make_output_folder(folder)


def facts_of_page(classifier: Classifier, name: str, model: bytes) -> dict:
    """What the page must know, as plain Python."""
    told = Served(name, Predictor(classifier, device="cpu"), Shelf(), Nearest()).told
    pillow = int(PIL.__version__.split(".")[0])  # it decides in which order a picture is scaled
    return {
        **told,
        "kind": KIND,
        "explains": False,
        "preprocess": classifier.preprocess.to_dict() | {"pillow": pillow},
        "known": classifier.facts.get("known") or {},
        "unknown": UNKNOWN_SHARE,
        "model": MODEL,
        "digest": hashlib.sha256(model).hexdigest()[:16],
        "runtime": SCRIPT,
    }


def page_files() -> dict[str, bytes]:
    """Returns the files of the page by name."""
    page, web = files("serving") / "page", files("serving") / "web"
    found = {one.name: one.read_bytes() for folder in (page, web) for one in folder.iterdir()}
    found["colours.css"] = (files("reporting") / "colours.css").read_bytes()
    first = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    first += '<script src="opened.js"></script>\n'
    start = found[START].decode("utf-8")
    head = '<meta charset="utf-8">\n'
    found[START] = start.replace(head, head + first, 1).encode("utf-8")
    return found


def write_page(folder: Path, model: bytes, facts: Mapping, runtime: Mapping[str, bytes]) -> int:
    """Writes the page; returns its bytes beside the runtime.

    Its first file comes last, so that a page without its parts is never seen.
    """
    content = page_files()
    start = content.pop(START)
    content |= {MODEL: model, FACTS: json.dumps(facts, ensure_ascii=False).encode("utf-8")}
    licence = content.pop("runtime_licence.txt")
    (folder / "runtime").mkdir(exist_ok=True)
    for name, data in {**runtime, "LICENSE.txt": licence}.items():
        write_bytes(folder / "runtime" / name, data)
    for name, data in content.items():
        write_bytes(folder / name, data)
    write_bytes(folder / START, start)
    return sum(map(len, [*content.values(), start]))
