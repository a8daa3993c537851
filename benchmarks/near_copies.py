"""Near copies: how many are found, how many unrelated photos are joined, and how long it takes.

    .venv/bin/python -m benchmarks.near_copies --data-path flower_photos data/clothing
    .venv/bin/python -m benchmarks.near_copies --many 1000000

Of each folder every third photo is copied five ways (encoded again, resized, cropped, brightened,
mirrored), in memory. A copy is found if it stands in its photo's group; copies of one photo are
related, all other pairs are counted as unrelated, although some show the same scene once more.
--many compares as many fingerprints of noise, in which copies of some are hidden.
"""

import argparse
import io
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from imaging.decoding import load_image
from imaging.grouping import Together
from imaging.near_copies import ENOUGH_PIXELS, SIDE, fingerprint, near_copies
from imaging.scanning import scan_folder
from system.terminal import table

WAYS = ("encoded", "resized", "cropped", "brightened", "mirrored")


def copy_of(image: Image.Image, way: str, rng: random.Random) -> Image.Image:
    """Returns a photo changed in one way, by a random amount."""
    width, height = image.size
    if way == "resized":
        share = rng.uniform(0.4, 0.9)
        return image.resize((max(1, int(width * share)), max(1, int(height * share))))
    if way == "cropped":  # up to a tenth of width and height, anywhere
        w, h = (int(side * rng.uniform(0.9, 1)) for side in image.size)
        left, top = rng.randint(0, width - w), rng.randint(0, height - h)
        return image.crop((left, top, left + w, top + h))
    if way == "brightened":
        return ImageEnhance.Brightness(image).enhance(rng.uniform(1.1, 1.4))
    return ImageOps.mirror(image) if way == "mirrored" else image


def print_of(image: Image.Image, quality: int) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    file.seek(0)
    return fingerprint(load_image(file, ENOUGH_PIXELS))


def measure(folder: Path) -> tuple:
    """Returns the row of a folder."""
    paths = [file.path for file in scan_folder(str(folder), (), [])]
    prints, owners, ways = [], [], []
    started = time.perf_counter()
    for path in paths:
        load_image(path, 1)
    decoding = time.perf_counter() - started
    started = time.perf_counter()
    for number, path in enumerate(paths):
        prints.append(fingerprint(load_image(path, ENOUGH_PIXELS)))
        owners.append(number)
        ways.append("")
    printing = time.perf_counter() - started
    started = time.perf_counter()
    joined = groups_of(prints)
    comparing = time.perf_counter() - started
    unrelated = sum(len(group) * (len(group) - 1) // 2 for group in joined) / (
        len(paths) * (len(paths) - 1) / 2
    )
    rng = random.Random(0)
    for number in range(0, len(paths), 3):
        image = load_image(paths[number])
        for way in WAYS:
            quality = rng.randint(30, 80) if way == "encoded" else 90
            prints.append(print_of(copy_of(image, way, rng), quality))
            owners.append(number)
            ways.append(way)
    found, copies = defaultdict(int), len(range(0, len(paths), 3))
    for group in groups_of(prints):
        own = {owners[member] for member in group if not ways[member]}
        for member in group:
            found[ways[member]] += owners[member] in own and bool(ways[member])
    shares = [f"{100 * found[way] / copies:.1f}" for way in WAYS]
    whole = 100 * sum(found.values()) / (copies * len(WAYS))
    seconds = [f"{value:.1f}" for value in (decoding, printing, comparing)]
    return folder.name, len(paths), *shares, f"{whole:.1f}", f"{1e4 * unrelated:.2f}", *seconds


def groups_of(prints: list[np.ndarray]) -> list[list[int]]:
    together = Together(range(len(prints)))
    for one, other in near_copies(np.stack(prints)):
        together.join(one, other)
    members = defaultdict(list)
    for member, first in together.groups().items():
        members[first].append(member)
    return list(members.values())


def compare_many(count: int, planted: int = 1000) -> str:
    """Returns a line on `count` random fingerprints, some of which are hidden copies of others."""
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((count, 12, 12), dtype=np.float32)
    prints = np.empty((count, SIDE, SIDE), np.uint8)
    for start in range(0, count, 20_000):
        part = torch.from_numpy(waves[start : start + 20_000])[:, None]
        large = torch.nn.functional.interpolate(part, (SIDE, SIDE), mode="bicubic")[:, 0]
        prints[start : start + 20_000] = (large * 40 + 128).clamp(0, 255).byte().numpy()
    places = rng.permutation(count)[: 2 * planted].reshape(2, -1)
    for number, (one, other) in enumerate(places.T):
        image = Image.fromarray(prints[one])
        crop = (1.5, 1, 30.5, 31) if number % 2 else (0, 0, SIDE, SIDE)
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, crop)
        prints[other] = np.asarray(ImageOps.mirror(image) if number % 3 == 0 else image)
    started = time.perf_counter()
    pairs = set(near_copies(prints))
    seconds = time.perf_counter() - started
    hidden = {(int(min(pair)), int(max(pair))) for pair in places.T}
    return (
        f"{count:,} fingerprints: {seconds:.0f} s, {len(pairs & hidden)} of {planted} hidden "
        f"copies found, {len(pairs - hidden)} others joined"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-path", type=Path, nargs="*", default=[], help="folders of photos")
    parser.add_argument("--many", type=int, default=0, help="compare so many fingerprints of noise")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.data_path:
        head = ("data", "photos", *(f"{way} %" for way in WAYS), "all %", "joined of 10,000")
        head += ("decoding s", "with prints s", "comparing s")
        rows = [head, *(tuple(map(str, measure(folder))) for folder in args.data_path)]
        print(*table(rows, "<" + ">" * (len(head) - 1)), sep="\n")
    if args.many:
        print(compare_many(args.many))


if __name__ == "__main__":
    main()
