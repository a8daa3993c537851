"""Scans a folder of a million files, next to torchvision's ImageFolder on the same files.

    python -m benchmarks.scan                       # a million empty files, made and deleted
    python -m benchmarks.scan --folder /data/train  # your own class folders, only read

Ours also finds each file's size and type and names what it leaves out; nothing is opened. Each
runs in a fresh process, twice: the second run has the file system's entries in memory for sure.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 30


def make_files(root: str, files: int, classes: int) -> None:
    """Empty files photo_0.jpg ... in folders class_0 ..."""
    for number in range(classes):
        folder = os.path.join(root, f"class_{number:04d}")
        os.mkdir(folder)
        for photo in range(number, files, classes):
            os.close(os.open(os.path.join(folder, f"photo_{photo:07d}.jpg"), os.O_CREAT))


def ours():
    from imaging.decoding import readable_extensions
    from imaging.scanning import scan_classes

    readable_extensions()  # loads Pillow's plugins
    return lambda root: sum(map(len, scan_classes(root, problems=[]).values()))


def imagefolder():
    from torchvision.datasets import ImageFolder

    return lambda root: len(ImageFolder(root))


SCANS = {"ours": ours, "ImageFolder": imagefolder}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, root: str) -> None:
    """Prints one row of the table; runs in a process of its own."""
    scan = SCANS[name]()  # the imports are not what is measured
    before_mb, start = peak_mb(), time.perf_counter()
    files = scan(root)
    seconds = time.perf_counter() - start
    print(f"| {name} | {files:,} | {seconds:.1f} | {peak_mb() - before_mb:.0f} |", flush=True)
    if name == "ours" and files >= 10**6 and seconds > LIMIT_S:
        sys.exit(f"slower than {LIMIT_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10**6, help="files to make (default 1000000)")
    parser.add_argument("--classes", type=int, default=1000, help="folders to make (default 1000)")
    parser.add_argument("--folder", help="scan this folder of class folders and make nothing")
    parser.add_argument("--measure", choices=SCANS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.folder)
        return 0
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as made:
        if not args.folder:
            start = time.perf_counter()
            make_files(made, args.files, args.classes)
            print(f"made {args.files:,} files in {time.perf_counter() - start:.0f} s")
        print("\n| scan | files | seconds | memory, MB |\n|---|---|---|---|", flush=True)
        for name in [*SCANS, *SCANS]:
            command = [
                sys.executable,
                "-m",
                "benchmarks.scan",
                "--measure",
                name,
                "--folder",
                args.folder or made,
            ]
            status = subprocess.run(command, check=False).returncode
            if status:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
