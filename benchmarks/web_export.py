"""How near a page of export.py --format web comes to onnxruntime: answers, sizes, seconds a photo.

    python -m benchmarks.web_export weights/run/best.pth --photos flower_photos

Photos of a folder are saved again in ways that browsers and Pillow read differently: turned by
EXIF, half transparent, of wide gamut, with 4,000 pixels a side, 16-bit, CMYK. The page answers them
in Chromium (CHROMIUM=, else the one on the PATH), and onnxruntime answers with the same .onnx file
on the pixels that predict.py sees. Times are of one photo after the other, in turns, from the
file's bytes to the answer; the page computes in one thread, onnxruntime in as many as it takes.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import io
import os
import shutil
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms

import export
from predicting.inputs import find_photos
from predicting.predictor import Predictor
from system.terminal import table

DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
ASK = """async (base64) => {
    const { engine } = await import("./engine.js");
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const start = performance.now();
    const record = await engine.predict(new File([bytes], "photo"));
    return { ...record, seconds: (performance.now() - start) / 1000 };
}"""


def profile(primaries) -> bytes:
    """An ICC profile with sRGB's curve and other primaries: columns from RGB to XYZ under D50."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for n in range(int.from_bytes(data[128:132])):
        name, offset = data[132 + 12 * n :][:4], int.from_bytes(data[136 + 12 * n :][:4])
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = primaries[b"rgb".index(name[0])]
            data[offset + 8 : offset + 20] = struct.pack(">3i", *(round(65536 * v) for v in values))
    return bytes(data)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image: Image.Image, kind: str, value: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(image, kind, exif=exif)


def half_clear(image: Image.Image) -> Image.Image:
    """The picture with alpha from 0 at the left to 255 at the right."""
    alpha = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(alpha, (image.height, 1))))
    return image


def of_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def large(image: Image.Image) -> Image.Image:
    """The picture with a longer side of 4,000 pixels."""
    share = 4000 / max(image.size)
    return image.resize([round(share * side) for side in image.size], Image.Resampling.BICUBIC)


WAYS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda image: saved(image, "JPEG", quality=90),
    "JPEG, progressive": lambda image: saved(image, "JPEG", quality=75, progressive=True),
    "JPEG, 4,000 pixels": lambda image: saved(large(image), "JPEG", quality=85),
    "JPEG, turned by EXIF": lambda image: turned(image, "JPEG"),
    "JPEG, mirrored by EXIF": lambda image: turned(image, "JPEG", 7),
    "JPEG, Display P3": lambda image: saved(image, "JPEG", icc_profile=profile(DISPLAY_P3)),
    "JPEG, grey": lambda image: saved(image.convert("L"), "JPEG"),
    "JPEG, CMYK": lambda image: saved(image.convert("CMYK"), "JPEG"),
    "PNG": lambda image: saved(image, "PNG"),
    "PNG with alpha": lambda image: saved(half_clear(image), "PNG"),
    "PNG, palette": lambda image: saved(image.convert("P"), "PNG"),
    "PNG, 16 bits": lambda image: saved(of_16_bits(image), "PNG"),
    "PNG, Adobe RGB": lambda image: saved(image, "PNG", icc_profile=profile(ADOBE_RGB)),
    "PNG, 4,000 pixels": lambda image: saved(large(image), "PNG", compress_level=1),
    "WebP": lambda image: saved(image, "WEBP", quality=80),
    "WebP with alpha": lambda image: saved(half_clear(image), "WEBP", lossless=True),
    "WebP, turned by EXIF": lambda image: turned(image, "WEBP", 8),
    "GIF": lambda image: saved(image, "GIF"),
    "BMP": lambda image: saved(image, "BMP"),
}


def in_all_ways(images: Iterator[Image.Image], count: int) -> Iterator[tuple[str, bytes]]:
    """Yields the way and the bytes of `count` photos, the ways in turn."""
    for (way, save), image in islice(zip(cycle(WAYS.items()), images, strict=False), count):
        yield way, save(image.convert("RGB"))


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """Serves a folder as a static host does; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def opened(address: str):
    """A page in Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    as_root = ["--no-sandbox"] * (getattr(os, "geteuid", lambda: 1)() == 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=as_root)
        page = browser.new_page()
        page.goto(address)
        yield page
        browser.close()


def probabilities(record: dict) -> dict[str, float]:
    return {one["class"]: one["probability"] for one in record["predictions"]}


def difference(here: dict, there: dict) -> float:
    """The largest of a probability, over the classes that both tell."""
    ours, theirs = probabilities(here), probabilities(there)
    return max(abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys())


def compare(page, predictor: Predictor, photos: Iterator[tuple[str, bytes]]) -> list[tuple]:
    """Rows (way, difference, seconds in the page, seconds of onnxruntime)."""
    rows = []
    for way, data in photos:
        here = page.evaluate(ASK, base64.b64encode(data).decode())
        start = time.perf_counter()
        there = predictor(io.BytesIO(data))
        rows.append((way, difference(here, there), here["seconds"], time.perf_counter() - start))
    return rows


def report(rows: list[tuple]) -> None:
    by_way = defaultdict(list)
    for way, *numbers in rows:
        by_way[way].append(numbers)
    lines = [("", "photos", "largest difference", "page, s", "onnxruntime, s")]
    for way, found in {**by_way, "all": [numbers for _, *numbers in rows]}.items():
        apart, here, there = zip(*found, strict=True)
        times = (f"{statistics.median(side):.3f}" for side in (here, there))
        lines.append((way, str(len(found)), f"{max(apart):.5f}", *times))
    print(*table(lines, "<>>>>"), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--int8", default="true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = sorted(photo.path for photo in find_photos([args.photos]))
    chosen = (found[n * len(found) // args.count] for n in range(args.count))
    with tempfile.TemporaryDirectory() as folder:
        words = [args.checkpoint, "--format", "web", "--output", folder, "--int8", args.int8]
        sys.argv = ["export.py", *words]
        export.main()
        predictor = Predictor(str(Path(folder, "model.onnx")), device="cpu")
        with hosted(Path(folder)) as address, opened(address) as page:
            start = time.perf_counter()
            page.evaluate(ASK, base64.b64encode(saved(Image.new("RGB", (64, 64)), "PNG")).decode())
            print(f"the model's first answer, with loading: {time.perf_counter() - start:.1f} s")
            report(compare(page, predictor, in_all_ways(map(Image.open, chosen), args.count)))


if __name__ == "__main__":
    main()
