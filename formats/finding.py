"""What --weights and its like name: a file, a folder, a variant, or a repository of the hub."""

import difflib
from contextlib import suppress
from pathlib import Path

from formats import hub
from formats.opening import weights_in
from system.downloads import fetch_file
from system.files import WEIGHTS_FOLDER, near_file
from system.flags import existing_or
from vit.catalogue import BY_NAME
from vit_model import VARIANTS, find_variant


def find_weights(name: str | Path) -> Path:
    """Returns the file or folder that a name means, downloaded where it lies elsewhere.

    What is neither there nor a name comes back as it is: whoever opens it says so. Raises
    ValueError or OSError, with a sentence, for what cannot be downloaded.
    """
    text = str(name)
    if Path(text).exists() or not is_name(text):
        return Path(text)
    return hub.fetch(text) if hub.is_hub_name(text) else fetch_weights(text)


def check_output(flag: str, output: str | Path, source: str | Path) -> None:
    """Raises ValueError where a file to be written is the one that is read.

    source: a weights file or the folder that one is taken from.
    """
    source = Path(source)
    if source.is_dir():
        with suppress(ValueError, OSError):  # who opens it says what is wrong with it
            source = weights_in(source)
    if source.exists() and Path(output).exists() and source.samefile(output):
        raise ValueError(f"{flag} {output} is what is read; name another file")


def fetch_weights(name: str, folder: str | Path = WEIGHTS_FOLDER) -> Path:
    """Returns the path of the pretrained file of variant `name`, downloading it when missing.

    Raises ValueError for an unknown name or one without a known address, OSError when offline.
    """
    variant = find_variant(name)
    if variant.url is None:
        raise ValueError(
            f"no address is known for the weights of {name}; --weights FILE takes them from a file"
        )
    return fetch_file(variant.url, folder, variant.sha256)


def is_name(text: str) -> bool:
    """Whether `text` has the form of a name of weights that lie elsewhere."""
    return hub.is_hub_name(text) or text in VARIANTS


weights_name = existing_or(is_name)  # the parser of a flag that takes weights


def place_of(name: str) -> Path:
    """Returns the path beside which goes what is made of weights, where no flag says another.

    That of the file or folder; for what is called by a name, one of that name, here.
    """
    if Path(name).exists() or not is_name(name):
        return Path(name)
    return Path(hub.parsed(name).repo.split("/")[1] if hub.is_hub_name(name) else name)


def near_weights(name: str) -> str:
    """Returns what else a name that is none may mean: a file of nearly that name, or a model."""
    if hint := near_file(name):
        return hint
    stem = name.removesuffix(Path(name).suffix)
    if is_name(stem):
        return f"; to download it, give {stem}"
    if "/" in name or Path(name).suffix in hub.ENDINGS:
        return ""
    near = difflib.get_close_matches(name, [*VARIANTS, *BY_NAME], n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "--list-models shows all names"
    return f", and unknown model {name!r}: {hint}"
