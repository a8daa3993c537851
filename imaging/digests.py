"""By which a model knows the photos that it was trained on: a digest of each file, 8 bytes.

told = digests(paths, workers=4)    # one string, 16 letters a photo, for a checkpoint
"a.jpg" in TrainedOn(told)          # whether that very file is among them
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool

DIGEST = 16  # letters, two a byte: of a million photos, no two will share one by chance


def file_digest(path: str | os.PathLike, size: int = 16) -> bytes:
    """Returns the digest of a file's bytes, `size` bytes; OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=size)).digest()


def digest_of(path: str | os.PathLike) -> str:
    """Returns the digest of a file as models keep it; "" where it cannot be read."""
    try:
        return file_digest(path, DIGEST // 2).hex()
    except OSError:
        return ""


def digests(paths: Sequence[str], workers: int = 1) -> str:
    """Returns the digests of photos as one string, sorted, each once; `workers` threads read."""
    with ThreadPool(max(1, workers)) as pool:  # hashing lets other threads run
        return "".join(sorted({*pool.imap(digest_of, paths, chunksize=16)} - {""}))


def joined(*told: str) -> str:
    """Returns the digests of several such strings as one."""
    return "".join(sorted(set().union(*map(_parts, told))))


def _parts(told: str) -> set[str]:
    return {told[at : at + DIGEST] for at in range(0, len(told), DIGEST)}


class TrainedOn:
    """Tells of a photo whether a model was trained on it. told: what `digests` returned."""

    def __init__(self, told: str) -> None:
        self.known = _parts(told)

    def __contains__(self, path: str | os.PathLike) -> bool:
        return bool(self.known) and digest_of(path) in self.known

    def among(self, paths: Iterable[str], workers: int = 1) -> list[bool]:
        """Returns of each photo whether it is one."""
        if not self.known:
            return [False for _ in paths]
        with ThreadPool(max(1, workers)) as pool:
            return pool.map(self.__contains__, paths)
