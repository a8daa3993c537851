"""Files from the web: resumed when broken off, checked, and under their own name only when whole.

    path = fetch_file("https://example.org/vit-1a2b3c4d.pth", "weights")

A download grows in `NAME.part`; the next call goes on where it stopped (an HTTP Range request).
Only a file of the right length and checksum is renamed to `NAME`.
"""

import errno
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from system.files import sha256_of

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE_S = 1.0  # longer with each attempt in vain
# "-a1311bcf.pth": the field's custom of naming a file after the start of its SHA-256.
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
FLOWERS_URL = (
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz"
)
# As recorded for TensorFlow Datasets' tf_flowers (228,813,984 bytes).
FLOWERS_SHA256 = "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"


class BrokenOff(Exception):
    """The connection ended before the file did; what came is kept."""


def fetch_file(
    url: str,
    folder: str | Path,
    sha256: str | None = None,
    *,
    name: str | None = None,
    shown: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Returns the path of the file at `url` in `folder`, downloading it unless it is there.

    The file is checked against `sha256` (hexadecimal, or its start), else against the hash in its
    name, else by its length alone (archives carry checksums of their own).
    name: what it is called in `folder`, by default as in `url`; shown: what its progress is called.
    headers: sent along, but to no other address that the first one leads to.
    Raises OSError, with the address and the place to put the file by hand, when it cannot be had.
    """
    target = Path(folder) / (name or unquote(Path(urlsplit(url).path).name))
    if target.is_file():
        return target
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} is no http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    named = HASH_IN_NAME.search(target.name)
    expected = sha256 or (named.group(1) if named else None)
    resumed, asked = part.exists(), Asked(url, shown or target.name, headers or {})
    mistake = _download(asked, part, expected)
    if mistake and resumed:  # the old part may have been the start of another file: anew, once
        part.unlink()
        mistake = _download(asked, part, expected)
    if mistake:
        part.unlink()
        raise OSError(f"what came from {url} is not the file we know: {mistake}; it was deleted")
    os.replace(part, target)
    return target


class Asked(NamedTuple):
    """What is asked for: its address, its name in words, and what is sent along."""

    url: str
    shown: str
    headers: Mapping[str, str]


def _download(asked: Asked, part: Path, expected: str | None) -> str | None:
    """Fills `part`; returns what is wrong with its hash, None if nothing is."""
    url, failures, best = asked.url, 0, 0
    while True:
        try:
            _append(asked, part)
            return _mistake(part, expected)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 416:
                raise _unavailable(url, part, f"HTTP status {error.code}") from None
            reason = f"HTTP status {error.code}"
        except urllib.error.URLError as error:
            raise _unavailable(url, part, error.reason) from None
        except (BrokenOff, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(asked, part) from None
        grown = part.stat().st_size if part.exists() else 0
        if expected and grown and not _mistake(part, expected):
            return None  # all is there, whatever length the server claims
        if reason.endswith("416"):  # there is nothing to add to a part that is wrong
            part.unlink(missing_ok=True)
        failures = 0 if grown > best else failures + 1
        best = max(best, grown)
        if failures >= ATTEMPTS:
            raise _unavailable(url, part, reason)
        time.sleep(failures * PAUSE_S)


def _append(asked: Asked, part: Path) -> None:
    """Asks once for what `part` lacks.

    Raises BrokenOff when fewer bytes came than were promised.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(asked.url, headers={"User-Agent": "kan-vit"})
    for name, value in asked.headers.items():
        request.add_unredirected_header(name, value)
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        content_range = re.match(
            r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or ""
        )
        if have and response.status == 206 and content_range and int(content_range[1]) == have:
            total, mode = int(content_range[2]), "ab"
        else:  # the server sends the whole file
            have, mode = 0, "wb"
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
        with (
            part.open(mode) as file,
            tqdm(
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                desc=asked.shown,
                disable=None,
            ) as bar,
        ):
            # read1 hands over what has come, so that nothing is lost when the rest never does.
            while chunk := response.read1(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if total is not None and have < total:
        raise BrokenOff(f"the connection ended after {have:,} of {total:,} bytes")


def _mistake(part: Path, expected: str | None) -> str | None:
    """Returns what is wrong with `part`, None if nothing is."""
    if not expected:
        return None if part.stat().st_size else "it is empty"
    got = sha256_of(part)[: len(expected)]
    wanted = expected.lower()
    return None if got == wanted else f"its hash is {got} where {wanted} was expected"


def _full(asked: Asked, part: Path) -> OSError:
    return OSError(
        f"the disk of {part.parent} is full: {part.stat().st_size:,} bytes of {asked.shown} have "
        f"come; make room, or name a folder on another disk (HF_HOME for names of the hub), and "
        f"run the same command again to go on"
    )


def _unavailable(url: str, part: Path, reason) -> OSError:
    target = part.with_name(part.name.removesuffix(".part"))
    return OSError(
        f"cannot download {url} ({reason}); get it elsewhere and put it at {target}, or run the "
        f"same command again to go on"
    )


def fetch_flower_photos(folder: str | Path) -> Path:
    """Returns `folder`, into which the five flowers are downloaded and unpacked when it is missing.

    218 MiB, 3,670 photos by many photographers on Flickr (CC BY 2.0), collected by TensorFlow.
    """
    folder = Path(folder)
    if not folder.is_dir():
        archive = fetch_file(FLOWERS_URL, folder.parent, FLOWERS_SHA256)
        unpack(archive, "flower_photos", folder)
    return folder


def unpack(archive: Path, member: str, target: Path) -> None:
    """Unpacks the folder `member` of a .tgz to `target`, which appears whole or not at all.

    What would land outside of it is refused. Raises OSError for a damaged archive.
    """
    with tempfile.TemporaryDirectory(prefix=target.name, dir=target.parent) as staging:
        try:
            shutil.unpack_archive(archive, staging, "gztar", filter="data")
            os.replace(Path(staging) / member, target)
        except (shutil.ReadError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise OSError(
                f"cannot unpack {archive} ({error}); if it is damaged, delete it to download anew"
            ) from None
