"""How photos were prepared for somebody else's weights, as timm and Hugging Face state it.

    found = prepared(path, "timm", sizes, facts, levels, model=None)
    found.preprocess.words, found.photos_from

timm crops the share `crop_pct` of each side from the centre, after scaling the short side
(`crop_mode` center), both sides (squash) or the long one (border). Hugging Face scales to `size`, a
short side or a square, and may crop `crop_size` from the centre.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formats.fact_table import NORMALISATION
from formats.facts import Decided, Source
from imaging.preprocess import INTERPOLATIONS, Preprocess
from vit_model import FAMILIES, find_variant

OPEN_CLIP = {"shortest": "crop", "squash": "squash", "longest": "pad"}  # its resize_mode
MODES = {"center": "crop", "squash": "squash", "border": "pad"}  # timm's crop_mode
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic")  # Pillow's numbers
TIMM = ("crop_pct", "crop_mode", "interpolation")
PROCESSOR = ("image_processor_type", "feature_extractor_type", "do_resize", "resample")
# Mean and standard deviation of what OpenAI's CLIP was trained on; OpenCLIP took them over.
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
UNTOLD = "nothing tells; --resize-mode of train.py overrules it"
# Hugging Face's processors whose size, where it is one number, is that of the short side; and those
# that crop unless told otherwise.
SHORT_SIDE = ("CLIP", "Bit", "Levit", "ConvNext")
CROPPING = ("CLIP", "Bit", "Levit", "DeiT")


@dataclass(frozen=True)
class Preparation:
    """How photos become squares. share: the side of the square in that of the scaled photo.

    side: of the square, in pixels, where that is told. whence: in words. not_followed: what is done
    otherwise here, in words. down: whether a side between two whole numbers is rounded down.
    """

    mode: str
    share: float
    interpolation: str
    side: int | None = field(compare=False, default=None)
    whence: str = field(compare=False, default="")
    not_followed: tuple[str, ...] = field(compare=False, default=())
    down: bool = field(compare=False, default=False)

    def fields(self, img_size: int, patch_size: int = 1) -> dict[str, Any]:
        """Returns `resize_mode`, `resize` and `interpolation` for a model of that size.

        Of a square that patches do not fill, libraries leave the rest out; here its centre is
        taken at the same scale.
        """
        side = (self.side if self.fits(img_size, patch_size) else img_size) / self.share
        side = math.floor(side) if self.down else round(side)
        told = {"resize_mode": self.mode, "interpolation": self.interpolation}
        return told | {"resize": side if self.mode == "crop" or side != img_size else None}

    def fits(self, img_size: int, patch_size: int) -> bool:
        """Whether the square that is told has as many patches as a model of that size."""
        return self.side is not None and self.side // patch_size * patch_size == img_size


@dataclass(frozen=True)
class Prepared:
    """What is known of the photos of a file, and whence: their normalisation, and all else."""

    preprocess: Preprocess
    mean_from: str
    photos_from: str


def prepared(
    path: Path,
    format_name: str,
    sizes: Mapping[str, Any],
    facts: Decided,
    levels: Sequence[Sequence[Source]],
    model: str | None,
) -> tuple[Prepared, list[str]]:
    """Returns how photos are prepared for a file's model, and in words what is not followed.

    model: as the user named it.
    """
    mean, std, mean_from = normalisation(path, format_name, sizes, facts, model)
    told, size, patch = preparation(levels), sizes["img_size"], sizes["patch_size"]
    if told is None:
        return Prepared(Preprocess(size, mean=mean, std=std), mean_from, UNTOLD), []
    preprocess = Preprocess(size, mean=mean, std=std, **told.fields(size, patch))
    notes = [f"{what} cannot be followed; photos: {preprocess.words}" for what in told.not_followed]
    if told.side and not told.fits(size, patch):
        notes.append(
            f"photos of {told.side} pixels are told by {told.whence}, and the model's positions "
            f"are for {size}: --img-size {told.side // patch * patch or patch} of train.py "
            f"follows it"
        )
    return Prepared(preprocess, mean_from, told.whence), notes


def preparation(levels: Sequence[Sequence[Source]]) -> Preparation | None:
    """Returns what the first level tells that tells anything.

    Raises ValueError, worded to follow a file's name, where a level tells two things.
    """
    for level in levels:
        found = [told for source in level if (told := _of_source(source))]
        for other in found[1:]:
            if other != found[0]:
                raise ValueError(
                    f"is for photos prepared in two ways, by {found[0].whence} and by "
                    f"{other.whence}; make them agree"
                )
        if found:
            return found[0]
    return None


def _of_source(source: Source) -> Preparation | None:
    told = {key: said[0][0] for key, said in source.said.items()}
    if any(key in told for key in PROCESSOR):
        return _of_hugging_face(told, source.name)
    if any(key.startswith("preprocess_cfg.") for said in source.said.values() for _, key in said):
        return _of_open_clip(told, source.name)
    if any(told.get(key) not in (None, "") for key in TIMM):
        return _of_timm(told, source.name)
    return None


def _of_open_clip(told: dict[str, Any], name: str) -> Preparation:
    """Reads an open_clip_config.json: nothing is cut off beyond the square."""
    left: list[str] = []
    mode = _mode(OPEN_CLIP, told, "resize_mode", left, name)
    how = _interpolation(told.get("interpolation", "bicubic"), left, name)
    return Preparation(mode, 1.0, how, None, name, tuple(left))


def _of_timm(told: dict[str, Any], name: str) -> Preparation:
    """Reads `pretrained_cfg` of a config.json, or options of timm's own training script."""
    left: list[str] = []
    share = told.get("crop_pct") or 0.875
    if not isinstance(share, int | float) or not 0 < share <= 1:
        left.append(f"crop_pct {share!r:.40} in {name}")
        share = 0.875
    mode = _mode(MODES, told, "crop_mode", left, name)
    how = _interpolation(told.get("interpolation") or "bicubic", left, name)
    size = told.get("input_size")
    side = size[-1] if isinstance(size, list | tuple) and size else None
    side = side if type(side) is int and side > 0 else None
    return Preparation(mode, share, how, side, name, tuple(left), down=True)


def _mode(meanings: Mapping[str, str], told: dict, key: str, left: list[str], name: str) -> str:
    """Returns the resize mode that a word means, a crop where none is said; others are left."""
    stated = told.get(key) or next(iter(meanings))
    if isinstance(stated, str) and stated in meanings:
        return meanings[stated]
    left.append(f"{key} {stated!r:.40} in {name}")
    return "crop"


def _interpolation(stated: Any, left: list[str], name: str) -> str:
    """Returns what a number or a word of Pillow's filters means; what cannot be done is left."""
    number = type(stated) is int and 0 <= stated < len(RESAMPLE)
    word = RESAMPLE[stated] if number else str(stated).lower()
    if word in INTERPOLATIONS:
        return word
    if word != "random":  # of timm's training: any of two, judged with the second
        left.append(f"interpolation {stated!r:.40} in {name}")
    return "bicubic"


def _of_hugging_face(told: dict[str, Any], name: str) -> Preparation | None:
    """Reads a preprocessor_config.json; None where it leaves photos as large as they are."""
    if told.get("do_resize") is False or "size" not in told:
        return None
    kind = str(told.get("image_processor_type") or told.get("feature_extractor_type") or "")
    left: list[str] = []
    short, square = _size(told["size"], square=not kind.startswith(SHORT_SIDE))
    crops = told.get("do_center_crop", kind.startswith(CROPPING)) is True
    side = _size(told.get("crop_size", told["size"]), square=True)[0] if crops else short
    share = told.get("crop_pct") if not square else None
    if isinstance(share, int | float) and 0 < share < 1 and not crops:  # ConvNeXt's
        short = None if short is None else int(short / share)
    how = _interpolation(told.get("resample", _usual(kind)), left, name)
    if short is None or side is None or side > short:
        left.append(f"size {told['size']!r:.60} in {name}")
        return Preparation("crop", 0.875, how, None, name, tuple(left))
    return Preparation("squash" if square else "crop", side / short, how, side, name, tuple(left))


def _usual(kind: str) -> str:
    """The interpolation of a processor that names none."""
    return "bilinear" if kind.startswith(("ViT", "DINOv3")) else "bicubic"


def _size(stated: Any, square: bool) -> tuple[int | None, bool]:
    """Returns (side, whether it is that of a square and not the short side); None for others."""
    if isinstance(stated, dict):
        square = "shortest_edge" not in stated
        sides = {stated.get(key) for key in (("height", "width") if square else ["shortest_edge"])}
        stated = sides.pop() if len(sides) == 1 else None
    if isinstance(stated, list) and len(stated) == 2 and stated[0] == stated[1]:
        stated = stated[0]
    return (stated if type(stated) is int and stated > 0 else None), square


# --- normalisation ------------------------------------------------------------------------------


def family_of(mean: Iterable[float], std: Iterable[float]) -> str:
    for family, values in FAMILIES.items():
        if (tuple(mean), tuple(std)) == values:
            return family
    return "custom"


def normalisation(path: Path, format_name, sizes, facts: Decided, model) -> tuple:
    """Returns (mean, std, how it was found); the first witness that tells anything decides."""
    if "mean" in facts.values and "std" in facts.values:
        said = {key: facts.values[key] for key in ("mean", "std")}
        preprocess = Preprocess.from_dict(said)
        whence = facts.whence["mean"]
        if max(preprocess.mean) > 1:  # of pixels from 0 to 255, as some scripts count them
            said = {
                key: [round(value / 255, 6) for value in getattr(preprocess, key)] for key in said
            }
            preprocess = Preprocess.from_dict(said)
            whence = f"{whence}, over 255,"
        why = whence if whence.startswith("its name") else f"{whence} says so"
        return preprocess.mean, preprocess.std, why
    if format_name in ("OpenCLIP", "Hugging Face CLIP"):
        return *CLIP, "it is in the format of a CLIP"
    if format_name == "Hugging Face SigLIP":
        return *FAMILIES["half"], "it is a SigLIP"
    if sizes["rel_pos"] != "none":
        return *FAMILIES["half"], "it has BEiT's relative positions"
    if format_name == "torchvision":
        return *FAMILIES["imagenet"], "it is in torchvision's format"
    if format_name == "DINOv2" or sizes["init_values"] is not None:
        return *FAMILIES["imagenet"], "it has the layer scale of DINOv2 or DeiT III"
    if sizes["distilled"]:
        return *FAMILIES["imagenet"], "it has DeiT's distillation token"
    if format_name == "Google npz":
        return *FAMILIES["half"], "it is in Google's format"
    for pattern, family in NORMALISATION:
        for name in (*facts.names, path.name.lower()):
            if found := re.search(pattern, name):
                return *FAMILIES[family], f"its name has {found[0]!r}"
    if model is not None:
        return *FAMILIES[find_variant(model).family], f"--model is {model}"
    facts.assumed["normalisation"] = "0.5 (--mean and --std of train.py overrule it)"
    return *FAMILIES["half"], "nothing tells, so 0.5 is assumed; --mean and --std overrule it"
