"""Files of features: what a model's head reads of each photo, for other programs (--embed).

    with numpy.load("photos.npz") as file:
        file["features"], file["paths"]     # (N, F) float32, (N,): a row a photo that could be read

A .csv has the same as columns: image, f0, f1 and so on.
"""

import csv
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from predicting.classifier import Classifier
from predicting.writers import Answer, Writer
from system.files import atomic_file, named, safe_cell

ENDINGS = ".npz", ".csv"


class FeatureFile(Writer):
    """Writes the features of each photo into one file, which appears whole or not at all.

    Until the last one they wait on the disk, in its folder, so that memory does not grow.
    """

    def __init__(self, path: str, classifier: Classifier) -> None:
        self.path, self.width = Path(path), classifier.width
        self.count, self.longest = 0, 1
        if not self.width:
            raise ValueError(
                "--embed needs one model that gives features: an ensemble is several, so name one "
                "of its folds; an ONNX file of an earlier version has none, so export it again"
            )
        if self.path.is_dir():
            raise ValueError(f"--embed {path} is a folder; name a file, such as {path}/photos.npz")
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        waiting = partial(tempfile.TemporaryFile, dir=folder, suffix=".tmp")
        with named(self.path):
            self.rows, self.names = waiting(), waiting("w+", encoding="ascii")

    def write(self, answer: Answer) -> None:
        if answer.error:
            return
        with named(self.path):
            self.rows.write(np.asarray(answer.features, "<f4").tobytes())
            print(json.dumps(answer.path), file=self.names)  # ASCII, whatever the name holds
        self.count += 1
        self.longest = max(self.longest, len(answer.path))

    def finish(self) -> None:
        as_npz = self.path.suffix.lower() == ".npz"
        with atomic_file(self.path) as file:
            self.rows.seek(0)
            self.names.seek(0)
            self._write_npz(file) if as_npz else self._write_csv(file)

    def _write_npz(self, file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with _member(archive, "features", "<f4", (self.count, self.width)) as member:
                shutil.copyfileobj(self.rows, member)
            kind = f"<U{self.longest}"
            with _member(archive, "paths", kind, (self.count,)) as member:
                for line in self.names:
                    member.write(np.array(json.loads(line), kind).tobytes())

    def _write_csv(self, file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text)
        writer.writerow(["image", *(f"f{number}" for number in range(self.width))])
        for line in self.names:
            row = np.frombuffer(self.rows.read(4 * self.width), "<f4")
            writer.writerow([safe_cell(json.loads(line)), *(f"{value:.9g}" for value in row)])
        text.detach()  # flushes; the file is closed by who opened it

    def close(self) -> None:
        for waiting in (self.rows, self.names):
            with suppress(OSError):  # of a full disk, which was said before
                waiting.close()


@contextmanager
def _member(
    archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...]
) -> Iterator[BinaryIO]:
    """Opens an array of an .npz whose numbers follow piece by piece."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        about = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(member, about)
        yield member
