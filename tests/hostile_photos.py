"""A folder of hostile photos, and a program that is watched while it trains on them and predicts.

    python tests/hostile_photos.py FOLDER OUTPUT    # trains, evaluates and predicts; prints JSON

Everything in the folder follows from a seed. The file name says what is wrong with a photo.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
# What each format's extension is where Pillow lists an odd one first.
USUAL = {"JPEG": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "MPO": ".mpo", "PPM": ".ppm"}
CUT = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM", "TGA", "ICO", "SGI")
WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO")
LATIN1_CLASS = os.fsdecode(b"caf\xe9 $x^2$ <b>")  # no UTF-8, no markup, no formula
DEPTH = 1100  # folders in each other: more than Python's recursion limit


def picture(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    """A smooth picture, no two corners of which are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    image = Image.fromarray(np.uint8(np.stack([255 * x, 255 * y, 255 * (1 - x)], 2)))
    if mode in ("F", "I", "I;16", "LA", "PA"):
        image = image.convert("L").convert("RGBA" if mode == "PA" else mode)
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    if kind == "AVIF":  # else it takes most of the time
        options |= {"speed": 10, "max_threads": 1}
    image.save(file, kind, **options)
    return file.getvalue()


def colour_png(values: np.ndarray) -> bytes:
    """A 16-bit PNG of values (H, W, C) with C of 2 (grey and alpha), 3 or 4, written by hand."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = (
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
        for name, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def extension(kind: str) -> str:
    ends = [end for end, name in Image.registered_extensions().items() if name == kind]
    return USUAL.get(kind) or (ends or [f".{kind.lower()}"])[0]


def stored_as(upright: Image.Image, orientation: int) -> Image.Image:
    """What a camera stores for each EXIF orientation, so that turning it gives `upright`."""
    turns = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90"]
    turns += ["TRANSVERSE", "ROTATE_270"]
    if orientation == 1:
        return upright
    return upright.transpose(Image.Transpose[turns[orientation - 2]])


def oriented(orientation, kind: str, upright: Image.Image | None = None) -> bytes:
    """A photo whose EXIF data say `orientation`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}
    image = stored_as(upright or picture(), orientation)
    return encoded(image, kind, exif=exif, **options.get(kind, {}))


# --- kinds of bad luck and malice: each yields (file name, content) ---


def every_mode_and_format() -> Iterator[tuple[str, bytes]]:
    Image.init()
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            try:
                content = encoded(picture(mode=mode), kind)
            except (OSError, ValueError, KeyError):  # the format has no such mode, or no writer
                continue
            yield f"{kind}_{mode.replace(';', '')}{extension(kind)}", content
    frames = [picture(), picture(24, 40).resize((40, 24)), Image.new("RGB", (40, 24), "red")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield f"animated_{kind}{extension(kind)}", content


def truncated_and_flipped(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    for kind in CUT:
        content = encoded(Image.fromarray(noise), kind)
        for tenth in range(10):
            cut = content[: len(content) * tenth // 10]
            yield f"cut_{kind}_{tenth}{extension(kind)}", cut
        for number in range(4):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 12)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            yield f"flipped_{kind}_{number}{extension(kind)}", bytes(damaged)


def metadata() -> Iterator[tuple[str, bytes]]:
    for kind in WITH_EXIF:
        for orientation in range(1, 9):
            yield f"exif_{kind}_{orientation}{extension(kind)}", oriented(orientation, kind)
    junk = b"Exif\0\0" + random.Random(1).randbytes(60)
    endless = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"  # a directory of 65,535 entries
    for number, exif in enumerate((junk, endless, b"Exif\0\0", oriented(1, "TIFF"))):
        yield f"exif_garbage_{number}.jpg", encoded(picture(), "JPEG", exif=exif)
    for value in (0, 9, 77, 65535):
        exif = Image.Exif()
        exif[0x0112] = value
        yield f"exif_value_{value}.jpg", encoded(picture(), "JPEG", exif=exif)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, profile in (("right", srgb), ("garbage", junk), ("cut", srgb[:200])):
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            content = encoded(picture(), kind, icc_profile=profile)
            yield f"icc_{name}_{kind}{extension(kind)}", content


def patched(content: bytes, *changes: tuple[int, bytes]) -> bytes:
    """`content` with other bytes at some places, as a lying header has."""
    changed = bytearray(content)
    for place, new in changes:
        changed[place : place + len(new)] = new
    return bytes(changed)


def bombs(side: int = 30_000) -> Iterator[tuple[str, bytes]]:
    """Small files that claim `side` x `side` pixels."""
    little, big = struct.pack("<I", side), struct.pack(">I", side)
    short, network = little[:2], big[2:]
    files = {kind: encoded(picture(16, 16), kind) for kind in CUT}
    head = b"IHDR" + big + big + files["PNG"][24:29]
    yield "bomb_PNG.png", patched(files["PNG"], (12, head), (29, zlib.crc32(head).to_bytes(4)))
    yield "bomb_GIF.gif", patched(files["GIF"], (6, short + short))
    yield "bomb_BMP.bmp", patched(files["BMP"], (18, little + little))
    yield "bomb_TGA.tga", patched(files["TGA"], (12, short + short))
    yield "bomb_SGI.sgi", patched(files["SGI"], (6, network + network))
    yield "bomb_PPM.ppm", b"P6 %d %d 255\n" % (side, side) + bytes(99)
    frame = files["JPEG"].index(b"\xff\xc0") + 5
    yield "bomb_JPEG.jpg", patched(files["JPEG"], (frame, network + network))
    box = files["JPEG2000"].index(b"ihdr") + 4
    stream = files["JPEG2000"].index(b"\xff\x51") + 6
    yield "bomb_JP2.jp2", patched(files["JPEG2000"], (box, big + big), (stream, big + big))
    extent = files["AVIF"].index(b"ispe") + 8
    yield "bomb_AVIF.avif", patched(files["AVIF"], (extent, big + big))
    width = files["TIFF"].index(struct.pack("<HHI", 256, 4, 1)) + 8
    height = files["TIFF"].index(struct.pack("<HHI", 257, 4, 1)) + 8
    yield "bomb_TIFF.tif", patched(files["TIFF"], (width, little), (height, little))
    flags, canvas = bytes([0x10, 0, 0, 0]), struct.pack("<I", 16382)[:3]
    vp8x = b"VP8X" + struct.pack("<I", 10) + flags + canvas + canvas
    body = b"WEBP" + vp8x + files["WEBP"][12:]
    yield "bomb_WEBP.webp", b"RIFF" + struct.pack("<I", len(body)) + body


def shapes() -> Iterator[tuple[str, bytes]]:
    for width, height in ((1, 1), (1, 10_000), (10_000, 1), (2, 3000), (1, 300_000)):
        yield f"shape_{width}x{height}.png", encoded(picture(width, height), "PNG")
    # Each row costs a pointer: Pillow takes 3 GB for 178 million pixels in a single column.
    yield "shape_one_column.png", encoded(Image.new("1", (1, 1_000_001)), "PNG")
    yield "black_16_megapixels.png", encoded(Image.new("1", (4000, 4000)), "PNG")


def iptc(content: bytes, compression: int = 5) -> bytes:
    """An IPTC record that says it wraps a JPEG of 8 x 8 pixels, with anything inside."""
    fields = [(3, 60, b"\1\0"), (3, 20, b"\0\x08"), (3, 30, b"\0\x08")]
    fields += [(3, 120, bytes([compression])), (8, 10, content)]
    return b"".join(struct.pack(">BBBH", 0x1C, *f[:2], len(f[2])) + f[2] for f in fields)


def programs() -> Iterator[tuple[str, bytes]]:
    """Files that make some reader run something, and files that are no pictures."""
    script = encoded(picture(8, 8), "EPS")
    yield "script.eps", script
    yield "script_EPS.jpg", script
    yield "script_in_IPTC.jpg", iptc(script)
    yield "script_PDF.jpg", encoded(picture(), "PDF")
    yield "metafile.wmf", b"\xd7\xcd\xc6\x9a" + bytes(60)
    yield "metafile_WMF.jpg", b"\xd7\xcd\xc6\x9a" + bytes(60)
    yield "vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"
    yield "page_HTML.jpg", b"<html><script>alert(1)</script></html>"
    yield "shell.jpg", b"#!/bin/sh\ntouch executed\n"
    yield "heic_garbage.heic", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100)
    yield "notes.txt", b"no photo"
    one_scan = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = one_scan.rfind(b"\xff\xda")
    yield "scans_JPEG.jpg", one_scan[:-2] + one_scan[last:-2] * 300 + one_scan[-2:]


def wrong_extensions() -> Iterator[tuple[str, bytes]]:
    for kind, end in (("PNG", ".jpg"), ("JPEG", ".gif"), ("WEBP", ".tif"), ("GIF", ".png")):
        yield f"wrong_{kind}{end}", encoded(picture(), kind)


def odd_names() -> Iterator[tuple[bytes, bytes]]:
    names = [b"\xff\xfe.jpg", b"line\nbreak.jpg", b"\x1b[2J.jpg", b"=1+1.jpg", b"-rf.jpg"]
    names += [b"$(touch executed).jpg", b"$\\frac.jpg", b"<script>.jpg", b"%s{0}.JPG", b" .jpg"]
    names += [b"x" * 251 + b".jpg", "雏菊 é.jpg".encode()]
    for number, name in enumerate(names):
        yield name, encoded(picture(40 + number, 24), "JPEG")


# --- the folder ---


def make_corpus(root: Path, seed: int = 0) -> Path:
    """Fills `root` with three class folders of hostile photos and returns it."""
    rng = random.Random(seed)
    roses, tulips, cafe = (root / name for name in ("roses", "tulips", LATIN1_CLASS))
    for folder in (roses, tulips, cafe):
        folder.mkdir(parents=True)
    for files, folder in (
        (every_mode_and_format(), roses),
        (wrong_extensions(), roses),
        (truncated_and_flipped(rng), tulips),
        (metadata(), tulips),
        (shapes(), tulips),
        (bombs(), tulips),
        (programs(), tulips),
        (odd_names(), cafe),
    ):
        for name, content in files:
            (folder / os.fsdecode(name)).write_bytes(content)
    (roses / ".hidden.jpg").write_bytes(encoded(picture(), "JPEG"))
    (root / "loose.jpg").write_bytes(encoded(picture(), "JPEG"))
    (tulips / "empty.jpg").touch()
    sparse = tulips / "sparse.webp"  # takes no room on the disk, twice its size in memory
    sparse.write_bytes(b"RIFF" + struct.pack("<I", 2**32 - 10) + b"WEBPVP8 " + bytes(99))
    os.truncate(sparse, 3 * 2**30)
    os.mkfifo(tulips / "fifo.jpg")
    _link_in_circles(root, roses, tulips)
    _dig(roses / "deep")
    return root


def _link_in_circles(root: Path, roses: Path, tulips: Path) -> None:
    (roses / "again").symlink_to(roses)
    (tulips / "up").symlink_to(root)
    (tulips / "everything").symlink_to("/")
    (tulips / "self.jpg").symlink_to(tulips / "self.jpg")
    (tulips / "gone.jpg").symlink_to(tulips / "nowhere.jpg")
    (tulips / "device.jpg").symlink_to("/dev/zero")
    floors = [roses / "tower" / f"{number:02d}" for number in range(30)]
    for number, floor in enumerate(floors):  # two links up each: 2 ** 30 ways, 30 folders
        floor.mkdir(parents=True)
        (floor / "floor.png").write_bytes(encoded(picture(60 + number, 24), "PNG"))
        for name in ("x", "y"):
            if number < 29:
                (floor / name).symlink_to(floors[number + 1])


def _dig(folder: Path) -> None:
    path = str(folder)
    for _ in range(DEPTH):
        os.mkdir(path)
        path += "/d"
    os.mkdir(path)
    (Path(path) / "bottom.jpg").write_bytes(encoded(picture(99, 24), "JPEG"))


def entries(root: Path) -> Iterator[os.DirEntry]:
    """Everything below `root`, links not followed, without recursion."""
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def snapshot(root: Path) -> dict[str, tuple]:
    """What must not change: type, mode, size, times, link target and bytes of each entry."""
    seen = {}
    for entry in entries(root):
        status = entry.stat(follow_symlinks=False)
        content = os.readlink(entry.path) if entry.is_symlink() else None
        if stat.S_ISREG(status.st_mode) and status.st_size < 2**24:
            content = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
        seen[entry.path] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
        seen[entry.path] += (status.st_ino, status.st_ctime_ns)
    return seen


# --- the watched program ---

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
FAST = "--model vit_micro_patch8_64 --img-size 32 --batch-size 32 --workers 0 --amp off --aug none"


def memory_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (the highest so far) of this process."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def run(main, *words) -> int:
    from system.terminal import run_cli

    sys.argv = [f"{main.__module__}.py", *map(str, words)]
    try:
        run_cli(main)
    except SystemExit as end:
        return end.code
    raise AssertionError("run_cli always exits")


def slowest_photos(root: Path) -> list[tuple[float, str]]:
    """The seconds that loading takes, for the slowest five."""
    from imaging.decoding import PhotoError, load_image

    seconds = []
    for entry in list(entries(root)):
        started = time.perf_counter()
        with contextlib.suppress(PhotoError):
            load_image(entry.path)
        seconds.append((time.perf_counter() - started, os.path.basename(entry.path)))
    return sorted(seconds, reverse=True)[:5]


def watch(root: Path, output: Path) -> dict:
    """Trains, evaluates and predicts; returns exit statuses, memory, time and forbidden acts."""
    import predict
    import train

    forbidden = []

    def note(event: str, args: tuple) -> None:
        if event in STARTS:
            forbidden.append(f"{event} {args}"[:200])
        if event == "open" and isinstance(args[0], str | os.PathLike):
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if args[2] else 0
            if writes and os.path.abspath(args[0]).startswith(f"{root}{os.sep}"):
                forbidden.append(f"open {args}"[:200])

    sys.addaudithook(note)
    before = memory_kib("VmRSS")
    slowest = slowest_photos(root)
    growth = memory_kib("VmHWM") - before
    status, best = {}, output / "run" / "best.pth"
    data = ("--data-path", root)
    status["train"] = run(train.main, *data, *FAST.split(), "--epochs", 1, "--output", best.parent)
    status["eval"] = run(train.main, *data, "--eval", "--weights", best, "--workers", 0)
    sys.stdout = open(output / "answers.jsonl", "w", encoding="utf-8")  # noqa: SIM115
    words = ("--csv", output / "answers.csv", "--workers", 1)
    status["predict"] = run(predict.main, root, "--weights", best, "--json", *words)
    sys.stdout.close()
    sys.stdout = sys.__stdout__
    peak = memory_kib("VmHWM") - before
    figures = {"growth": growth, "peak": peak, "slowest": slowest}
    return {"status": status, "forbidden": forbidden, **figures}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    folder, place = Path(sys.argv[1]), Path(sys.argv[2])
    result = json.dumps(watch(folder, place))
    (place / "watched.json").write_text(result, "utf-8")
