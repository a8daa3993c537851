"""By which a model knows the photos that it was trained on: a digest of each file, 8 bytes.

told = digests(paths, workers=4)    # one string, 16 letters a photo, for a checkpoint
"a.jpg" in TrainedOn(told)          # whether that very file is among them
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool

DIGEST = 16  # letters, two a byte: of a million photos, no two will share one by chance


def digest_of(path: str | os.PathLike) -> str:
    """Returns the digest of a file's bytes; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, _hasher).hexdigest()
    except OSError:
        return ""


def _hasher():
    return hashlib.blake2b(digest_size=DIGEST // 2)


def digests(paths: Sequence[str], workers: int = 1) -> str:
    """Returns the digests of photos as one string, sorted, each once; `workers` threads read."""
    with ThreadPool(max(1, workers)) as pool:  # hashing lets other threads run
        return "".join(sorted({*pool.imap(digest_of, paths, chunksize=16)} - {""}))


class TrainedOn:
    """Tells of a photo whether a model was trained on it. told: of `digests`, or of several."""

    def __init__(self, *told: str) -> None:
        self.known = {text[at : at + DIGEST] for text in told for at in range(0, len(text), DIGEST)}

    def __contains__(self, path: str | os.PathLike) -> bool:
        return bool(self.known) and digest_of(path) in self.known

    def among(self, paths: Iterable[str], workers: int = 1) -> list[bool]:
        """Returns of each photo whether it is one."""
        if not self.known:
            return [False for _ in paths]
        with ThreadPool(max(1, workers)) as pool:
            return pool.map(self.__contains__, paths)
