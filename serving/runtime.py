"""onnxruntime-web, which runs a model in a browser: its files out of the npm package.

Two files of the package are enough: WebAssembly for one thread, which needs no headers that static
hosts do not send. They are known by their hash, wherever they come from.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path

from system.downloads import fetch_file
from system.files import WEIGHTS_FOLDER, json_if_any

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
ARCHIVE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SCRIPT = "ort.js"  # its name in a page: hosts know better what that is than .mjs
# By the name in the page: that in the package's dist/, and its SHA-256.
FILES = {
    SCRIPT: (
        "ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "ort-wasm-simd-threaded.wasm": (
        "ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
REGISTRY = "https://registry.npmjs.org/"  # where nobody has set another


def runtime_files(folder: str | None = None) -> dict[str, bytes]:
    """Returns the runtime's files by name: of the package unpacked in `folder`, else downloaded.

    Raises ValueError for a folder that does not hold them, OSError where they cannot be had.
    """
    return _of_folder(Path(folder)) if folder else _of_archive(_archive())


def _of_folder(folder: Path) -> dict[str, bytes]:
    package = next((f for f in (folder, folder / "package") if (f / "dist").is_dir()), folder)
    told = json_if_any(package / "package.json")
    version = told.get("version") if isinstance(told, dict) else None
    found = {}
    for name, (packed, digest) in FILES.items():
        path = package / "dist" / packed
        if not path.is_file():
            raise ValueError(f"--runtime {folder} does not hold dist/{packed}: {_wanted()}")
        found[name] = path.read_bytes()
        if hashlib.sha256(found[name]).hexdigest() != digest:
            other = f"is of version {version}" if version not in (None, VERSION) else "is damaged"
            raise ValueError(f"dist/{packed} in --runtime {folder} {other}: {_wanted()}")
    return found


def _wanted() -> str:
    return f"name the npm package {PACKAGE} {VERSION}, unpacked (npm pack {PACKAGE}@{VERSION})"


def _archive() -> Path:
    address = f"{registry().rstrip('/')}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    try:
        return fetch_file(address, WEIGHTS_FOLDER, ARCHIVE_SHA256)
    except OSError as error:
        raise OSError(f"{error}; or {_wanted()} with --runtime") from None


def registry() -> str:
    """The address of npm's packages, as npm is configured on this machine."""
    for name, value in os.environ.items():
        if name.lower() == "npm_config_registry" and value:
            return value
    npm = shutil.which("npm")
    if npm is None:
        return REGISTRY
    asked = [npm, "config", "get", "registry"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return REGISTRY
    return told.strip() if told.startswith(("https://", "http://")) else REGISTRY


def _of_archive(archive: Path) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(archive) as package:
            for name, (packed, digest) in FILES.items():
                found[name] = package.extractfile(f"package/dist/{packed}").read()
                if hashlib.sha256(found[name]).hexdigest() != digest:
                    raise OSError(f"its {packed} is another")
    except (tarfile.TarError, KeyError, AttributeError, EOFError, zlib.error, OSError) as error:
        raise OSError(f"{archive} is damaged ({error}): delete it to download it anew") from None
    return found
