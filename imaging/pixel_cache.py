"""Each photo is decoded once: its pixels stay in memory that all of a loader's workers share.

Every photo has a place of its size in one block of bytes; whichever process decodes it first fills
the place, and from then on all read the same pixels from there. The block is memory or a file that
has no name, so nothing is left behind however a run ends.
"""

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

from PIL import Image

from system.memory import free_memory, take_room

SHARE = 0.25  # of the free memory, at most, unless the user asks for more
SAMPLE = 256  # photos by which a data set's size is judged before each photo is looked at
Size = tuple[int, int]  # width, height


class ImageCache:
    """The pixels of photos by index, shared by processes: a byte each for "filled", then places.

    sizes: of each photo; (0, 0) gives it no place. folder: where a file takes the bytes instead of
    memory. They are free again when no process holds the cache. Raises OSError where the file finds
    no room.
    """

    def __init__(self, sizes: Sequence[Size], folder: Path | None = None):
        self.sizes = list(sizes)
        lengths = (3 * width * height for width, height in self.sizes)
        self.offsets = list(accumulate(lengths, initial=len(self.sizes)))
        self._open(_nameless_file(self.offsets[-1], folder))

    def _open(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)  # the map's own goes with it
        self.bytes = mmap.mmap(descriptor, self.offsets[-1])

    def __getstate__(self) -> dict:
        """What a worker gets that was not forked: the same bytes, through its own descriptor."""
        from multiprocessing.reduction import DupFd

        return vars(self) | {"bytes": None, "descriptor": DupFd(self.descriptor)}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._open(state["descriptor"].detach())

    def get(self, index: int) -> Image.Image | None:
        """The picture of `put`, or None before."""
        if not self.bytes[index]:
            return None
        pixels = self.bytes[self.offsets[index] : self.offsets[index + 1]]
        return Image.frombytes("RGB", self.sizes[index], pixels)

    def put(self, index: int, image: Image.Image) -> None:
        """Keeps an RGB picture; one of another size than was foretold is decoded again each time.

        Two processes may put the same photo at once: they write the same bytes. The mark comes
        last, and other processes read it in a later epoch.
        """
        if image.size == self.sizes[index]:
            self.bytes[self.offsets[index] : self.offsets[index + 1]] = image.tobytes()
            self.bytes[index] = 1


def _nameless_file(size: int, folder: Path | None) -> int:
    """Returns the descriptor of `size` zero bytes, in memory or in a file of `folder`."""
    if folder is None and hasattr(os, "memfd_create"):
        # Not shared_memory or torch's: /dev/shm is 64 MB small in many containers.
        descriptor = os.memfd_create("photos")
        os.ftruncate(descriptor, size)
        return descriptor
    with tempfile.TemporaryFile(dir=folder) as file:
        descriptor = os.dup(file.fileno())
    try:
        take_room(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_cache(
    choice: str,
    paths: Sequence[str],
    size_of: Callable[[str], Size],
    folder: Path,
    share: float = SHARE,
    threads: int = 1,
) -> tuple[ImageCache | None, str]:
    """Returns a cache for `paths`, or None, and a line that says which and why.

    choice: `auto` takes memory where `share` of what is free holds all photos; `ram` and `disk`
    (a file in `folder`) insist. size_of(path): the size that `put` will see, (0, 0) for none.
    Raises ValueError where what was asked for does not fit.
    """
    if choice == "off" or not paths:
        return None, "not kept"
    if not hasattr(os, "fork"):  # Windows can neither hand on a descriptor nor unlink an open file
        return None, "not kept, since this system cannot share them between processes"
    where = "disk" if choice == "disk" else "memory"
    free = free_memory() if where == "memory" else shutil.disk_usage(folder).free
    room = int(free * share) if choice == "auto" else free
    needed, sizes = _measure(paths, size_of, room, threads)
    if sizes is None and choice == "auto":
        return None, (
            f"not kept, since {gigabytes(needed)} are more than the {gigabytes(room)} of memory to "
            f"spare (--cache-images disk keeps them in the run's folder)"
        )
    if sizes is None:
        raise ValueError(
            f"--cache-images {choice}: the decoded photos take {gigabytes(needed)}, but only "
            f"{gigabytes(free)} of {where} are free; give --cache-images off"
        )
    cache = ImageCache(sizes, folder if choice == "disk" else None)
    return cache, f"kept, {gigabytes(needed)} of {where}"


def _measure(
    paths: Sequence[str], size_of: Callable[[str], Size], room: int, threads: int
) -> tuple[int, list[Size] | None]:
    """Returns the bytes that all photos take, and each one's size if they are at most `room`.

    Of a large set a sample tells first, so that a million headers are not read for nothing.
    """
    with ThreadPoolExecutor(threads) as pool:
        some = paths[:: max(1, len(paths) // SAMPLE)]
        estimate = _total(pool.map(size_of, some)) * len(paths) // len(some)
        if estimate > 2 * room:
            return estimate, None
        sizes = list(pool.map(size_of, paths))
    needed = _total(sizes)
    return needed, sizes if needed <= room else None


def _total(sizes: Iterable[Size]) -> int:
    return sum(3 * width * height for width, height in sizes)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
