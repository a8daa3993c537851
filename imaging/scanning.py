"""Which photos are there: class folders, walked without opening a single file.

    data/roses/*.jpg, data/tulips/*.jpg, ...            a folder for each class
    data/train/roses/*.jpg, data/val/roses/*.jpg, ...   the same, split already; also with test/

Classes and photos come in sorted order, as in torchvision's ImageFolder, photos in folders inside
a class folder belong to the class, links are followed. What is left out is noted as a `Problem`.
"""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imaging.data_report import SHOWN, Problem
from imaging.decoding import readable_extensions
from system.files import composed
from system.terminal import counted, printable

# In any case; of each kind the first that exists is used.
TRAIN_NAMES, TEST_NAMES = ("train", "training"), ("test", "testing")
VAL_NAMES = ("val", "valid", "validation")
SIDE_NAMES = {*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES}
NEVER_A_CLASS = {"__pycache__", "__macosx", "@eadir", "lost+found", "$recycle.bin"}  # lower case
SUSPICIOUS = {"runs", *SIDE_NAMES}


class File(NamedTuple):
    path: str
    size: int  # in bytes


class Folders(NamedTuple):
    """Where the photos of each side are; None: to be split off those to train on."""

    train: str
    val: str | None
    test: str | None


def find_sides(
    data_path: str,
    val_path: str | None,
    problems: list[Problem],
    test_path: str | None = None,
) -> Folders:
    """The training folder and, where the data come split, those for validation and for testing."""
    _require_apart({"--data-path": data_path, "--val-path": val_path, "--test-path": test_path})
    folders = _by_side(data_path)

    def first(names: Collection[str]) -> str | None:
        return next((folders[name] for name in names if name in folders), None)

    train, test = first(TRAIN_NAMES), test_path or first(TEST_NAMES)
    val = val_path or first(VAL_NAMES)
    only_sides = bool(folders) and not folders.keys() - SIDE_NAMES
    if not train or not (val or first(TEST_NAMES) or (test_path and only_sides)):
        if only_sides:
            names = " and ".join(sorted(os.path.basename(folder) for folder in folders.values()))
            raise ValueError(
                f"{printable(data_path)} holds {names} where class folders should be: give the "
                "folder that holds the class folders as --data-path and, if there is one, the "
                "validation folder as --val-path"
            )
        return Folders(data_path, val_path, test_path)
    if test and val and os.path.samefile(test, val):
        test = None
    if test and test != test_path and not _shares_a_class(train, test):
        problems.append(Problem("unlabelled", test, photos_in(test)))
        test = None
    named = {train, val, test, *(problem.path for problem in problems)}
    for folder in sorted(set(folders.values()) - named):
        if not any(
            folder_given and os.path.samefile(folder, folder_given)
            for folder_given in (val_path, test_path)
        ):
            problems.append(Problem("not a class", folder, f"beside train; {photos_in(folder)}"))
    return Folders(train, val, test)


def _by_side(data_path: str) -> dict[str, str]:
    """The folders in `data_path`: by the side that a name is of, in any case, else by the name.

    Raises ValueError for two of one side.
    """
    folders = {}
    for name in sorted(_folder_names(data_path)):
        path, key = os.path.join(data_path, name), name.lower()
        other = folders.setdefault(key if key in SIDE_NAMES else name, path)
        if not os.path.samefile(other, path):
            raise ValueError(
                f"{printable(other)} and {printable(path)} differ in capital letters alone: put "
                "the photos of both into one of them, or rename the other"
            )
    return folders


def _require_apart(paths: Mapping[str, str | None]) -> None:
    """Raises an error unless the paths that flags gave are folders, each another one."""
    given = [(flag, path) for flag, path in paths.items() if path is not None]
    for number, (flag, path) in enumerate(given):
        _require_folder(path, flag)
        for other, before in given[:number]:
            if os.path.samefile(path, before):
                raise ValueError(f"{flag} is {other} itself: name other photos, or leave it out")


def _shares_a_class(train: str, test: str) -> bool:
    """Whether a folder in `test` is named after one in `train`."""
    return bool({*map(composed, _folder_names(train))} & {*map(composed, _folder_names(test))})


def photos_in(folder: str) -> str:
    """How many photos are below a folder that is left out, in words."""
    return f"its photos: {sum(1 for _ in scan_folder(folder, (), []))}"


def _require_folder(path: str, flag: str) -> None:
    if not os.path.isdir(path):
        what = "is not a folder" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(
            f"{printable(path)} {what}: {flag} needs a folder that holds a folder for each class"
        )


def _folder_names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if is_folder(e) and not _is_hidden(e)]
    except OSError as error:
        raise OSError(f"{printable(folder)} cannot be opened: {error.strerror}") from error


def scan_classes(root: str, problems: list[Problem]) -> dict[str, list[File]]:
    """The photos of each class folder of `root`, both sorted; what else is there is noted.

    Folders whose names differ only in how accents are stored are one class, under the first name.
    """
    classes, names = {}, {}
    above = {identity(folder) for folder in (root, *Path(root).resolve().parents)}
    for entry in _entries(root, problems):
        if _is_hidden(entry):
            problems.append(Problem("hidden", entry.path))
        elif not is_folder(entry):
            if (photo := _photo(entry, problems)) is not None:
                problems.append(Problem("loose", photo.path))
        elif entry.name.lower() in NEVER_A_CLASS:
            problems.append(Problem("not a class", entry.path))
        elif photos := sorted(scan_folder(entry.path, above, problems)):
            name = as_text(entry.name)
            name = names.setdefault(composed(name), name)
            classes[name] = sorted(classes.get(name, []) + photos)
            _look_at_level(entry, photos, problems)
        else:
            problems.append(Problem("empty class", entry.path))
    return classes


def scan_folder(folder: str, above: Collection, problems: list[Problem]) -> Iterator[File]:
    """All photos below `folder`; see `walk`."""
    for found in walk(folder, above):
        if isinstance(found, Problem):
            problems.append(found)
        elif (photo := _photo(found, problems)) is not None:
            yield photo


def walk(folder: str, above: Collection = ()) -> Iterator[os.DirEntry | Problem]:
    """Yields the files below `folder`, sorted by name, and what was passed over.

    Links are followed. Each real folder is entered once, however many links lead to it, and none of
    `above`, the identities of the folders that hold this one: a link up there would bring in what
    is beside it.
    """
    waiting: list[str | os.DirEntry | Problem] = [folder]
    seen = set(above)
    while waiting:
        found = waiting.pop()
        if not isinstance(found, str):
            yield found
        elif (here := identity(found)) in seen:
            yield Problem("loop", found)
        else:
            seen.add(here)
            waiting += reversed(_inside(found))


def _inside(folder: str) -> list[str | os.DirEntry | Problem]:
    """What a folder holds: folders by their paths, files, and what is passed over."""
    problems: list[Problem] = []
    found: list[str | os.DirEntry | Problem] = []
    for entry in _entries(folder, problems):
        if _is_hidden(entry):
            found.append(Problem("hidden", entry.path))
        else:
            found.append(entry.path if is_folder(entry) else entry)
    return found + problems


def as_text(name: str) -> str:
    """A name of the file system as it was meant: UTF-8, also where the locale says otherwise."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def identity(folder: str | Path) -> tuple:
    """What two paths of one folder have in common."""
    try:
        status = os.stat(folder)
    except OSError:
        return (folder,)
    # Some network file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else (folder,)


def _entries(folder: str, problems: list[Problem]) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(Problem("closed", folder, error.strerror or str(error)))
        return []


def _is_hidden(entry: os.DirEntry) -> bool:
    return entry.name.startswith(".")


def is_folder(entry: os.DirEntry) -> bool:
    """Tells whether the entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_photo(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in readable_extensions()


def _photo(entry: os.DirEntry, problems: list[Problem]) -> File | None:
    """The entry as a photo by its name and type, or None and a problem."""
    if not is_photo(entry.name):
        problems.append(Problem("unsupported", entry.path))
        return None
    try:
        status = entry.stat()
    except OSError as error:
        problems.append(Problem("not a file", entry.path, error.strerror or str(error)))
        return None
    if not stat.S_ISREG(status.st_mode):
        problems.append(Problem("not a file", entry.path))
        return None
    return File(entry.path, status.st_size)


def _look_at_level(entry: os.DirEntry, photos: list[File], problems: list[Problem]) -> None:
    """Notes a class folder that is rather a level of the tree, or the output of a program."""
    start = len(entry.path) + 1
    parts = [photo.path[start:].partition(os.sep) for photo in photos]
    folders = {first for first, slash, _ in parts if slash}
    if len(folders) > 1 and all(slash for _, slash, _ in parts):
        detail = f"all its photos are in folders inside: {', '.join(sorted(folders)[:SHOWN])}"
        problems.append(Problem("wrong level", entry.path, detail))
    elif entry.name.lower() in SUSPICIOUS:
        problems.append(Problem("wrong level", entry.path, "is this the name of a class?"))


def match_classes(
    train: Collection[str], val: dict[str, list[File]], root: str, problems: list[Problem]
) -> dict[str, list[File]]:
    """The validation photos under the names of the training classes; unknown ones are noted."""
    names = {composed(name): name for name in train}
    matched = {}
    for name, photos in val.items():
        own = names.get(composed(name))
        if own is None:
            detail = f"its photos: {len(photos)}"
            problems.append(Problem("extra class", os.path.join(root, name), detail))
        else:
            matched[own] = photos
    if not matched:
        some = ", ".join(printable(name) for name in sorted(train)[:SHOWN])
        raise ValueError(
            f"{printable(root)} holds no photo of any training class ({some} ...): the folders "
            "for validation and testing must have the same names as those for training"
        )
    return matched


def require_classes(root: str, found: dict[str, list[File]], problems: list[Problem]) -> None:
    """Raises ValueError unless at least two classes were found."""
    if len(found) > 1:
        return
    where = printable(root)
    if found:
        (name,) = found
        inner = printable(os.path.join(root, name))
        raise ValueError(
            f"{where} holds one class only, {printable(name)!r}: at least two are needed, each a "
            f"folder of photos; if they are inside {inner}, give that as --data-path"
        )
    loose = sum(problem.kind == "loose" for problem in problems)
    if loose:
        raise ValueError(
            f"{where} holds {counted(loose, 'photo')} but no folder of photos: put the photos of "
            f"each class into a folder with its name"
        )
    raise ValueError(f"there is no photo in {where}: it needs a folder of photos for each class")
