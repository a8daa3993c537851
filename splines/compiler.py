"""native.c, compiled once a machine, by whatever C compiler there is: gcc, clang or MSVC.

Nothing here fails or speaks: without a compiler that works, torch does the arithmetic. The
environment is read at each call: KAN_COMPILE=0 forbids compiling and what was compiled, CC names
the compiler, with arguments if need be.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

REALS = {
    torch.float32: "-DREAL=float -DWHOLE=int32_t -DSIZE=4",
    torch.float64: "-DREAL=double -DWHOLE=int64_t -DSIZE=8",
}
COMPILERS = ("cc", "gcc", "clang", "cl")  # where CC names none; the last has no vectors
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}  # of libraries; elsewhere .so
OPTIMISED = "-O3 -fno-math-errno -fno-trapping-math -fno-strict-aliasing"
# What compiles for OpenMP, the best first. The library is linked without it: its threads are those
# of the OpenMP that torch has loaded, or it does not load and the next way is tried. A second pool
# of threads beside torch's would cost more than it brings, so Windows, where compilers link their
# own, has one thread.
OPENMP = {"win32": (), "darwin": ("-fopenmp", "-Xpreprocessor -fopenmp")}
MOST_SECONDS = 60  # of a command; a compiler that takes longer hangs

Command = tuple[str, ...]


class Build(NamedTuple):
    """How a library is made: the first of `ways` to succeed, in a folder with `source`."""

    ways: tuple[tuple[Command, ...], ...]  # each the commands that turn native.c into the library
    source: str
    library: Path


def plan(order: int, real: torch.dtype) -> Build | None:
    """Returns how native.c is compiled for an order and a type; None: forbidden, or no compiler."""
    if os.environ.get("KAN_COMPILE") == "0":
        return None
    return _plan(order, real, *map(os.environ.get, ("CC", "PATH", "XDG_CACHE_HOME")))


@functools.cache
def _plan(
    order: int, real: torch.dtype, wish: str | None, path: str | None, cache: str | None
) -> Build | None:
    compiler = find_compiler(wish, path)
    if compiler is None:
        return None
    suffix = SUFFIXES.get(sys.platform, ".so")
    ways = tuple(commands(compiler, f"-DORDER={order} {REALS[real]}".split(), f"kan{suffix}"))
    try:
        source = Path(__file__).with_name("native.c").read_text("utf-8")
        key = repr((source, ways, _identity(compiler[0]), _machine()))
        folder = _cache_folder(cache)
    except OSError:
        return None
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:24]
    return Build(ways, source, folder / f"kan-{digest}{suffix}")


@functools.cache
def load(build: Build) -> ctypes.CDLL | None:
    """Returns the library, which is made where it is missing or broken; None: it can't be."""
    with contextlib.suppress(OSError, AttributeError):
        return _opened(build.library)
    try:
        folder = tempfile.TemporaryDirectory(dir=build.library.parent, ignore_cleanup_errors=True)
        with folder as at:
            return _made(build, Path(at))
    except (OSError, subprocess.TimeoutExpired):
        return None


def _made(build: Build, folder: Path) -> ctypes.CDLL | None:
    name = f"kan{build.library.suffix}"
    (folder / "native.c").write_text(build.source, "utf-8")
    for way in build.ways:
        try:
            for command in way:
                _run(command, folder)
            library = _opened(folder / name)
        except (OSError, AttributeError, subprocess.CalledProcessError):
            continue
        with contextlib.suppress(OSError):  # on Windows, where another process made and uses it
            os.replace(folder / name, build.library)
        return library
    return None


def _opened(path: Path) -> ctypes.CDLL:
    """Raises OSError for what is no library that loads here, AttributeError for another one."""
    library = ctypes.CDLL(str(path))
    _ = library.width
    return library


def _run(command: Command, folder: Path) -> None:
    """Runs a command in silence; when it takes too long, all that it started is ended."""
    nothing = subprocess.DEVNULL  # a pipe would be waited for as long as any child holds it
    process = subprocess.Popen(
        command, cwd=folder, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    )
    try:
        status = process.wait(MOST_SECONDS)
    except BaseException:
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        raise
    if status:
        raise subprocess.CalledProcessError(status, command)


# --- compilers and their flags -------------------------------------------------------------------


def find_compiler(wish: str | None, path: str | None) -> Command | None:
    """Returns the command that CC wishes for, or else the first compiler in PATH.

    A program's path may have spaces, in quotes or not; arguments follow it.
    """

    def program(name: str) -> str | None:
        found = shutil.which(name, path=path)
        return found and os.path.abspath(found)

    if not (wish and wish.strip()):
        found = next(filter(None, map(program, COMPILERS)), None)
        return found and (found,)
    wish = wish.strip()
    ends = [len(wish), *(space.start() for space in reversed(list(re.finditer(r"\s+", wish))))]
    try:
        for end in ends:  # the longest name that is a program
            if found := program(wish[:end]):
                return found, *_words(wish[end:])
        first, *arguments = _words(wish)
        found = program(first)
    except ValueError:  # a quote without its partner
        return None
    return found and (found, *arguments)


def _words(line: str) -> list[str]:
    """The arguments of a line, whose backslashes belong to paths on Windows."""
    if sys.platform != "win32":
        return shlex.split(line)
    return [word.strip('"') for word in shlex.split(line, posix=False)]


def commands(compiler: Command, defines: list[str], library: str) -> Iterator[tuple[Command, ...]]:
    """Yields the ways to make a library of native.c in the current folder, the best first."""
    if any(re.fullmatch(r"(.*[\\/])?(clang-)?cl(\.exe)?", word, re.I) for word in compiler):
        yield ((*compiler, "/nologo", "/O2", *defines, "native.c", "/LD", f"/Fe{library}"),)
        return
    arm = platform.machine().lower() in ("arm64", "aarch64")
    place = [] if sys.platform == "win32" else ["-fPIC"]
    link = ["-Wl,-undefined,dynamic_lookup"] if sys.platform == "darwin" else []
    for tune in ("-mcpu=native" if arm else "-march=native", ""):
        for threads in (*OPENMP.get(sys.platform, ("-fopenmp",)), ""):
            flags = [*OPTIMISED.split(), *tune.split(), *threads.split(), *place, *defines]
            yield (
                (*compiler, *flags, "-c", "native.c", "-o", "kan.o"),
                (*compiler, "-shared", *link, "kan.o", "-o", library),
            )


# --- what a library depends on, and where it lies ------------------------------------------------


def _identity(program: str) -> tuple:
    """Tells a compiler from the one that had its name before an update."""
    file = Path(program).resolve()
    return str(file), file.stat().st_size, file.stat().st_mtime_ns


def _machine() -> tuple[str, ...]:
    """What -march=native depends on, and what tells machines apart that share a home."""
    system = sys.platform, platform.machine(), str(sys.maxsize)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return *system, next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return *system, platform.processor(), platform.node()


@functools.cache
def _cache_folder(cache: str | None) -> Path:
    """A folder that nobody else can write to: what lies there is run."""
    home = cache or os.path.expanduser("~/.cache")
    try:
        folder = Path(home, "kan-layers")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="kan-layers-"))
