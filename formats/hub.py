"""Models of the Hugging Face hub by name, fetched into the hub's own cache.

    path = fetch("hf-hub:timm/vit_small_patch16_dinov3.lvd1689m")    # or hf:OWNER/NAME@REVISION

The package huggingface_hub, which is optional, speaks with the hub: HF_ENDPOINT (a mirror),
HF_HOME, tokens and HF_HUB_OFFLINE mean what they mean to it. Of a repository only tensors and what
describes them are fetched, never code. Large files come by `system.downloads`: they go on where a
killed program left them, and have their SHA-256 checked, which the package does neither of.
"""

import difflib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from formats.beside import BESIDE
from formats.opening import ENDINGS, INDEX
from system.downloads import fetch_file
from system.files import json_if_any, write_text
from system.terminal import command, listed
from vit.catalogue import BY_NAME, OWNER, family_of, repository

T = TypeVar("T")
PREFIXES = re.compile(r"(?:hf[-_]hub|hf|huggingface):(?://)?")
PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/([^?#]*)")
PART = r"\w[\w.-]*"
REVISION = rf"{PART}(?:/{PART})*"
NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>{REVISION}))?(?::(?P<file>{PART}))?")
EXAMPLE = "hf-hub:timm/vit_small_patch16_dinov3.lvd1689m"
# What holds the tensors of a repository; the first that is there is fetched.
TENSORS = (
    "adapter_model.safetensors", "adapter_model.bin",
    "model.safetensors", f"model.safetensors{INDEX}", "open_clip_model.safetensors",
    "pytorch_model.bin", f"pytorch_model.bin{INDEX}", "open_clip_pytorch_model.bin",
)  # fmt: skip
ADAPTER_CONFIG = "adapter_config.json"
ABOUT = (*BESIDE, ADAPTER_CONFIG)
VISION = "vit|dino|beit|deit|clip|siglip|data2vec-vision|eva"
COMMIT = re.compile("[0-9a-f]{40}")
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class HubName:
    """A repository, the revision of it, and which of its files, where that was said."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repo}{revision}" + (f":{self.file}" if self.file else "")


def is_hub_name(text: str) -> bool:
    """Whether `text` names a repository, well or badly, and no file."""
    return bool(PREFIXES.match(text) or PAGE.match(text)) or text in BY_NAME


def parsed(text: str) -> HubName:
    """Returns what a name says; a page's address and the bare name of a listed model serve, too."""
    if page := PAGE.match(text):
        place = re.sub(r"/(tree|blob|resolve)/([\w.-]+).*", r"@\2", page[1].rstrip("/"))
    else:
        place = repository(text) or PREFIXES.sub("", text, count=1)
    found = NAME.fullmatch(place)
    if not found:
        raise ValueError(
            f"{text} names no model of the hub: that is hf:OWNER/NAME or hf:OWNER/NAME@REVISION, "
            f"such as {EXAMPLE}"
        )
    return HubName(found["repo"], found["revision"] or "main", found["file"])


def fetch(text: str) -> Path:
    """Returns the weights file of a name, with what belongs to it beside it, fetched if need be.

    Raises ValueError or OSError with a sentence where it cannot be had.
    """
    name, hub = parsed(text), _library(text)
    held = cached(name, Path(hub.constants.HF_HUB_CACHE))
    if held and COMMIT.fullmatch(name.revision):
        return _with_backbone(held)
    if hub.constants.HF_HUB_OFFLINE:
        if held:
            return _with_backbone(held)
        raise OSError(
            f"{name} is not in {hub.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: unset it, "
            f"or copy the folder here and name that"
        )
    try:
        return _with_backbone(_Repository(name, hub).fetched())
    except Unreachable as problem:
        if not held:
            raise
        print(f"{problem}; taken instead: {held}, fetched before", file=sys.stderr)
        return _with_backbone(held)


def folder_of(repo: str, cache: Path) -> Path:
    """Returns where a cache of the hub's form keeps a repository."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached(name: HubName, cache: Path) -> Path | None:
    """Returns what `fetch` does, of what lies whole in a cache of the hub's form; else None."""
    folder = folder_of(name.repo, cache)
    commit = name.revision
    with suppress(OSError, ValueError):  # there is none, or it is no text
        commit = (folder / "refs" / name.revision).read_text("utf-8").strip()
    snapshot = folder / "snapshots" / commit
    names = [path.name for path in snapshot.iterdir()] if snapshot.is_dir() else []
    try:
        main = main_file(names, name)
    except ValueError:
        return None
    shards = _shards(snapshot / main, name) if main.endswith(INDEX) else []
    return snapshot / main if set(shards) <= set(names) else None


def held(cache: Path) -> Iterator[tuple[HubName, Path]]:
    """Yields the repositories that lie whole in a cache and have the config of a vision model."""
    for folder in sorted(cache.glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        revisions = ["main", *(path.name for path in sorted(folder.glob("snapshots/*")))]
        names = [HubName(repo, revision) for revision in revisions if NAME.fullmatch(repo)]
        found = next(((name, path) for name in names if (path := cached(name, cache))), None)
        if found and _may_see(json_if_any(found[1].with_name("config.json"))):
            yield found


def _may_see(config: Any) -> bool:
    """Whether a config may be a vision model's: no other is opened, for some are very large."""
    if not isinstance(config, dict):
        return False
    told = f"{config.get('model_type')} {config.get('architectures')}"
    return "architecture" in config or bool(re.search(VISION, told, re.IGNORECASE))


def main_file(names: Collection[str], name: HubName) -> str:
    """Returns which file of a repository holds the weights, or tells which files do.

    Raises ValueError where none does, or several do.
    """
    if name.file:
        if name.file in names:
            return name.file
        raise ValueError(f"{name}: {name.repo} has no file {name.file}; it has {_some(names)}")
    usual = [file for file in TENSORS if file in names]
    others = sorted(file for file in names if file.endswith(ENDINGS) and "/" not in file)
    if not usual and not others:
        raise ValueError(
            f"{name} holds no weights that can be read here (.safetensors, .bin, .pth, .npz); it "
            f"has {_some(names)}"
        )
    if not usual and len(others) > 1:
        one = command(f"hf:{name.repo}:{others[0]}")
        raise ValueError(f"{name} holds {listed(others)}: name one of them, such as {one}")
    return (usual or others)[0]


def _some(names: Collection[str]) -> str:
    return listed(sorted(names)) if names else "no file"


def _shards(index: Path, name: HubName) -> list[str]:
    """Returns the files that an index names; raises ValueError where it is none."""
    told = json_if_any(index)
    files = told.get("weight_map") if isinstance(told, dict) else None
    files = sorted(set(files.values())) if isinstance(files, dict) and files else [None]
    if not all(isinstance(file, str) and re.fullmatch(PART, file) for file in files):
        raise ValueError(f"{name}: {index.name} does not say which files hold the tensors")
    return files


def _with_backbone(file: Path) -> Path:
    """Returns `file`; where it is an adapter of the peft library, its backbone is fetched, too."""
    adapter = file.name.startswith("adapter_")
    told = json_if_any(file.with_name(ADAPTER_CONFIG)) if adapter else None
    base = told.get("base_model_name_or_path") if isinstance(told, dict) else None
    if isinstance(base, str) and NAME.fullmatch(base) and not os.path.exists(base):
        try:
            revision = base_revision(told)
        except ValueError as error:
            raise ValueError(f"{file.parent} {error}") from None
        fetch(f"hf:{base}@{revision}" if revision else f"hf:{base}")
    return file


def base_revision(config: Mapping[str, Any]) -> str | None:
    """Returns at which revision peft's config of an adapter takes its backbone, None for main.

    Raises ValueError, worded to follow the adapter's name, for what is no revision.
    """
    revision = config.get("revision")
    if revision and not (isinstance(revision, str) and re.fullmatch(REVISION, revision)):
        raise ValueError(f"is for a backbone at the revision {revision!r:.60}, which is none")
    return revision or None


# --- the hub --------------------------------------------------------------------------------------


class Unreachable(OSError):
    """The hub does not answer, or not as a hub does: what was fetched before may serve."""


def _library(text: str):
    """Returns the package, imported where a name is used alone: it takes half a second."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(
            f"{text}: names of the hub need the package huggingface_hub, which is not installed: "
            f"pip install huggingface_hub; or download the files and name the folder"
        ) from None
    return huggingface_hub


@dataclass
class _Repository:
    """A repository at one commit, while its files are fetched."""

    name: HubName
    hub: Any
    commit: str = ""
    sizes: dict[str, int] = field(default_factory=dict)

    def fetched(self) -> Path:
        """Returns what `fetch` does."""
        self.ask()
        main = main_file(self.sizes, self.name)
        about = [file for file in ABOUT if file in self.sizes]
        self.announce([main, *about])
        snapshot = [self.file(file) for file in (*about, main)][-1].parent
        if main.endswith(INDEX):
            shards = _shards(snapshot / main, self.name)
            if missing := set(shards) - self.sizes.keys():
                raise ValueError(f"{self.name} lacks {_some(missing)}, which its {main} names")
            self.announce(shards)
            for shard in shards:
                self.file(shard)
        return snapshot / main

    @property
    def folder(self) -> Path:
        """Its place in the cache."""
        return folder_of(self.name.repo, Path(self.hub.constants.HF_HUB_CACHE))

    def ask(self) -> None:
        """Learns which commit the revision is, and its files; other programs then find it, too."""
        repo, revision = self.name.repo, self.name.revision

        def call() -> tuple[str, dict[str, int]]:
            info = self.hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
            if not COMMIT.fullmatch(info.sha or "") or info.siblings is None:
                raise ValueError("it names no commit or no files")
            return info.sha, {file.rfilename: file.size or 0 for file in info.siblings}

        self.commit, self.sizes = self.answer(call)
        if revision != self.commit:
            reference = self.folder / "refs" / revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, self.commit)

    def answer(self, call: Callable[[], T]) -> T:
        """Returns what a call of the package does; what it raises becomes one sentence."""
        try:
            return call()
        except Exception as error:  # among them those of whichever HTTP client it has
            raise _explained(error, self.name, self.hub) from None

    def announce(self, files: Sequence[str]) -> None:
        """Says what is fetched, under which licence, and refuses what the disk has no room for."""
        snapshot = self.folder / "snapshots" / self.commit
        left = {file: self.sizes[file] for file in files if not (snapshot / file).exists()}
        if not left:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        size, free = sum(left.values()), shutil.disk_usage(self.folder).free
        begun = sum(part.stat().st_size for part in self.folder.glob("blobs/*.part"))
        if size - begun > free:
            raise OSError(
                f"{self.name} takes {megabytes(size)} and {self.folder} has room for "
                f"{megabytes(free)}: make some, or set HF_HOME to a folder on another disk"
            )
        where = self.hub.constants.ENDPOINT
        print(
            f"fetching {', '.join(left)} of {self.name} ({megabytes(size)}) from {where} into "
            f"{self.folder}{licence(self.name.repo)}",
            file=sys.stderr,
        )

    def file(self, file: str) -> Path:
        """Returns the path of one file in the cache, fetched if need be."""
        snapshot = self.folder / "snapshots" / self.commit
        if not (snapshot / file).exists():
            repo, commit = self.name.repo, self.commit
            url = self.hub.hf_hub_url(repo, file, revision=commit)
            told = self.answer(lambda: _with_etag(self.hub.get_hf_file_metadata(url)))
            if SHA256.fullmatch(told.etag):  # the package then links what is there
                self.large(file, url, told)
            self.answer(lambda: self.hub.hf_hub_download(repo, file, revision=commit))
        return snapshot / file

    def large(self, file: str, url: str, told) -> None:
        """Fetches a file that its hash names into the cache, or goes on with it."""
        headers = {}
        if urlsplit(told.location).netloc == urlsplit(url).netloc:  # a token is for the hub alone
            headers = self.hub.utils.build_hf_headers()
        blobs = self.folder / "blobs"
        fetch_file(told.location, blobs, told.etag, name=told.etag, shown=file, headers=headers)


def _with_etag(told: Any) -> Any:
    """Returns what the hub tells of a file; raises ValueError where that is nothing."""
    if not told.etag or not told.commit_hash or not told.location:
        raise ValueError("it gives a file no ETag or no commit")
    return told


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def licence(repo: str) -> str:
    """Returns the end of a sentence on a repository: its licence, where the family is listed."""
    family = family_of(repo)
    if family is None:
        return "; its page there tells the licence"
    terms = f" ({family.terms})" if family.terms else ""
    return f"; {family.title} has the licence {family.licence}{terms}"


def _explained(error: Exception, name: HubName, hub) -> Exception:
    """Returns an error of the package as one sentence that says what to do."""
    errors, where = hub.errors, hub.constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return ValueError(
            f"{name} is gated: accept its licence at {where}/{name.repo}, then log in with "
            f"`hf auth login` (or set HF_TOKEN) and run the same command again"
        )
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"{name} names no model of the hub: {' '.join(str(error).split())}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{name.repo} has no revision {name.revision} at {where}")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        near = difflib.get_close_matches(name.repo.split("/")[1], BY_NAME, n=1)
        hint = f"; did you mean hf-hub:{OWNER}/{near[0]}?" if near else ""
        return ValueError(
            f"there is no {name.repo} at {where}, or it is private and `hf auth login` opens it"
            f"{hint}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return OSError(error.errno, error.strerror, hub.constants.HF_HUB_CACHE)
    reason = " ".join(str(error).split())[:150] or type(error).__name__
    if status is None and isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return Unreachable(f"{where} does not answer as the hub does ({reason}): see HF_ENDPOINT")
    return Unreachable(
        f"{where} cannot be reached for {name} ({reason}): run the same command again with a "
        f"network, set HF_ENDPOINT to a mirror, or name a folder that was copied here"
    )
