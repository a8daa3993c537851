"""From an RGB picture to the tensor that a model sees.

`Preprocess` holds every number of it and travels in the checkpoint, so that prediction sees what
training saw. `eval_transform` has nothing random, `train_transform` adds random changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import torch
from PIL import Image

from imaging.depth import COLOUR_SPACES, Range, Reading, checked_ranges

RESIZE_MODES = ("crop", "squash", "pad")
AUGMENTATIONS = ("none", "basic", "trivial", "rand")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
MAX_IMG_SIZE = 4096  # of the model's input; a checkpoint that claims more is damaged or hostile
# The smallest crop of RandomResizedCrop is 8 % of a photo's area at a side ratio of 3:4, a quarter
# (0.245) of the short side: a photo decoded at four times the size wanted serves it undiminished.
# Half of that margin would save only a tenth of the time for a photo of 12 megapixels.
CROP_SCALE = (0.08, 1.0)
CROP_MARGIN = 4
# What a checkpoint meant that was written before these fields were.
OLD_FIELDS = {"ranges": None, "colour_space": "stored"}


@dataclass(frozen=True)
class Preprocess:
    """What happens between a photo and the model, as kept in the checkpoint.

    img_size: side of the square input. resize_mode: `crop` scales the short side to `resize`,
    `squash` both sides, ignoring the proportions, `pad` the long side, and fills the rest with the
    mean colour; of what is larger than the input the centre is taken. resize: None stands for
    img_size * 256 / 224 (crop) or img_size. interpolation: also of training's random crops. mean,
    std: of the normalisation, for values in [0, 1]. ranges, colour_space: how the numbers of
    pictures become 8-bit colours, see `depth.Reading`.
    """

    img_size: int = 224
    resize_mode: str = "crop"
    resize: int | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"
    ranges: Mapping[str, Range] | None = field(default_factory=dict)
    colour_space: str = "srgb"

    def __post_init__(self):
        if not _is_int(self.img_size) or not 1 <= self.img_size <= MAX_IMG_SIZE:
            raise ValueError(
                f"the image size must be between 1 and {MAX_IMG_SIZE}, not {self.img_size!r}"
            )
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(
                f"the resize mode must be one of {', '.join(RESIZE_MODES)}, "
                f"not {self.resize_mode!r}"
            )
        if self.resize is not None and not (
            _is_int(self.resize) and self.img_size <= self.resize <= 2 * MAX_IMG_SIZE
        ):
            raise ValueError(
                f"resize must be at least the image size ({self.img_size}), not {self.resize!r}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"the interpolation must be one of {', '.join(INTERPOLATIONS)}, "
                f"not {self.interpolation!r}"
            )
        if self.colour_space not in COLOUR_SPACES:
            raise ValueError(
                f"the colour space must be one of {', '.join(COLOUR_SPACES)}, "
                f"not {self.colour_space!r}"
            )
        object.__setattr__(self, "ranges", checked_ranges(self.ranges))
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        if min(self.std) <= 0:
            raise ValueError(f"std must be above zero, not {self.std}")

    @property
    def short_side(self) -> int:
        """The side that a photo is scaled to: the short one, or with squash both, pad the long."""
        share = 256 / 224 if self.resize_mode == "crop" else 1
        return self.resize or round(self.img_size * share)

    @property
    def min_size(self) -> int:
        """What `load_image(min_size=...)` must keep for `eval_transform`."""
        return self.short_side

    @property
    def words(self) -> str:
        """How a photo becomes the input, in words."""
        side = {"crop": "short side", "squash": "both sides", "pad": "long side"}[self.resize_mode]
        scaled, size = self.short_side, self.img_size
        cut = self.resize_mode == "crop" or scaled != size
        return f"{side} to {scaled} pixels{f', centre {size}' * cut}, {self.interpolation}"

    @property
    def normalisation(self) -> str:
        """Mean and standard deviation in words."""
        mean, std = (",".join(f"{value:g}" for value in part) for part in (self.mean, self.std))
        return f"mean {mean}, std {std}"

    def of_size(self, img_size: int) -> "Preprocess":
        """The same for a model of another input size: as large a share of a photo."""
        if self.resize is None or img_size == self.img_size:
            return replace(self, img_size=img_size)
        resize = max(img_size, round(self.resize * img_size / self.img_size))
        return replace(self, img_size=img_size, resize=resize)

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The 8-bit colour that becomes 0 when normalised: what fills empty places."""
        return tuple(round(255 * min(max(value, 0.0), 1.0)) for value in self.mean)

    @property
    def reading(self) -> Reading:
        """What `load_image(reading=...)` must know."""
        return Reading(self.ranges, self.colour_space)

    def with_ranges(self, ranges: Mapping[str, Range]) -> "Preprocess":
        """The same for a data set with these ranges, where none are known of the model's own."""
        if self.ranges is None:
            return self
        return replace(self, ranges={**ranges, **self.ranges})

    def to_dict(self) -> dict:
        """Plain Python, for the checkpoint and for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocess":
        """The inverse of `to_dict`; unknown keys, of a later version, are an error.

        What an earlier version did not write keeps the meaning that it had there.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            raise ValueError(f"not a description of preprocessing: {values!r:.200}")
        return cls(**OLD_FIELDS | values)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _three_numbers(name: str, values) -> tuple[float, float, float]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be three numbers, not {values!r:.100}")
    return numbers


class Fit:
    """Scales a picture to a square of `img_size`: the random-free part of `eval_transform`.

    `crop` and `squash` equal torchvision's Resize (of the short side, of both) and
    CenterCrop(img_size), but compute only what the crop keeps: cheaper, and a picture of
    1 x 10,000 pixels needs no 256 x 2,560,000.
    """

    def __init__(self, preprocess: Preprocess):
        self.preprocess = preprocess
        self.filter = Image.Resampling[preprocess.interpolation.upper()]

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.preprocess.resize_mode == "pad":
            return self.pad(image)
        size = self.preprocess.img_size
        return image.resize((size, size), self.filter, box=self.crop_box(*image.size))

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The centre crop in the coordinates of the original (left, top, right, bottom)."""
        size, target = self.preprocess.img_size, self.preprocess.short_side
        squash = self.preprocess.resize_mode == "squash"
        box = []
        for side in (width, height):
            # Truncated as torchvision does.
            scaled = target if squash else int(target * side / min(width, height))
            start = round((scaled - size) / 2)
            box.append((start * side / scaled, (start + size) * side / scaled))
        (left, right), (top, bottom) = box
        return left, top, min(right, width), min(bottom, height)

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What the model sees, in shares of a photo's sides (left, top, right, bottom).

        With pad it reaches beyond the photo.
        """
        if self.preprocess.resize_mode != "pad":
            left, top, right, bottom = self.crop_box(width, height)
            return left / width, top / height, right / width, bottom / height
        size, ends = self.preprocess.img_size, []
        for side in self.padded(width, height):
            start = -((size - side) // 2) / side
            ends.append((start, start + size / side))
        (left, right), (top, bottom) = ends
        return left, top, right, bottom

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """The sides to which `pad` scales a photo."""
        share = self.preprocess.short_side / max(width, height)
        return max(1, round(share * width)), max(1, round(share * height))

    def pad(self, image: Image.Image) -> Image.Image:
        size = self.preprocess.img_size
        width, height = self.padded(*image.size)
        square = Image.new("RGB", (size, size), self.preprocess.mean_colour)
        small = image.resize((width, height), self.filter)
        square.paste(small, ((size - width) // 2, (size - height) // 2))
        return square


class ToTensor:
    """PIL image (RGB) -> normalised float tensor (3, H, W).

    By numpy, so that prediction does without torchvision, whose import takes longer than a photo,
    and without torch's threads, which cost more than they save here: 0.5 instead of 7 ms.
    """

    def __init__(self, preprocess: Preprocess):
        mean, std = (
            np.array(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std)
        )
        self.scale = (1 / (255 * std)).astype(np.float32)
        self.shift = (mean / std).astype(np.float32)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        values = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        values *= self.scale  # (H, W, 3) -> (3, H, W)
        values -= self.shift
        return torch.from_numpy(values)


class ToBytes:
    """PIL image (RGB) -> uint8 tensor (3, H, W): a quarter of what `ToTensor` would hand on."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())  # from (H, W, 3)


class Normalise:
    """Images of `ToBytes` (B, 3, H, W), on `device`, as `ToTensor` makes them, to the last bit."""

    def __init__(self, preprocess: Preprocess, device: torch.device | str = "cpu"):
        by_hand = ToTensor(preprocess)
        self.scale = torch.from_numpy(by_hand.scale).to(device)
        self.shift = torch.from_numpy(by_hand.shift).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mul_(self.scale).sub_(self.shift)


class Transform:
    """The steps from a PIL image to a tensor, and what `load_image` needs: `min_size`, `reading`.

    fit: the first step, if it is the same in every epoch, so that its result can be kept.
    """

    def __init__(
        self,
        fit: Fit | None,
        steps: Sequence[Callable],
        min_size: int,
        reading: Reading = Reading(),  # noqa: B008 (frozen)
    ):
        self.fit, self.transforms = fit, list(steps)
        self.min_size, self.reading = min_size, reading

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.finish(self.prepare(image))

    def prepare(self, image: Image.Image) -> Image.Image:
        """What comes before anything random."""
        return self.fit(image) if self.fit else image

    @property
    def prepared_size(self) -> tuple[int, int] | None:
        """The size of `prepare`'s pictures; None if that is the photos' own."""
        return 2 * (self.fit.preprocess.img_size,) if self.fit else None

    def finish(self, image: Image.Image) -> torch.Tensor:
        for step in self.transforms:
            image = step(image)
        return image


def eval_transform(preprocess: Preprocess, as_bytes: bool = False) -> Transform:
    """PIL image (RGB) -> normalised tensor (3, img_size, img_size); nothing random.

    as_bytes: uint8, to be normalised batch by batch where the model is (`Normalise`).
    """
    last = ToBytes() if as_bytes else ToTensor(preprocess)
    return Transform(Fit(preprocess), [last], preprocess.min_size, preprocess.reading)


def train_transform(
    preprocess: Preprocess, aug: str = "basic", reprob: float = 0.0, as_bytes: bool = False
) -> Transform:
    """The same with random changes, drawn from torch's global generator.

    aug: `none` is the evaluation transform; `basic` a random crop and mirror image, as in the
    reference; `trivial` adds TrivialAugmentWide (arXiv 2103.10158), `rand` RandAugment (arXiv
    1909.13719). reprob: probability of erasing a rectangle (arXiv 1708.04896).
    """
    if aug not in AUGMENTATIONS:
        raise ValueError(f"the augmentation must be one of {', '.join(AUGMENTATIONS)}, not {aug!r}")
    if not 0 <= reprob <= 1:
        raise ValueError(f"the probability of erasing must be between 0 and 1, not {reprob}")
    transform = eval_transform(preprocess, as_bytes)
    if aug != "none":
        steps = _random_steps(preprocess, aug) + transform.transforms
        min_size = CROP_MARGIN * preprocess.img_size
        transform = Transform(None, steps, min_size, preprocess.reading)
    if reprob:
        from torchvision.transforms import v2  # late, see ToTensor

        # The mean colour, which is 0 once normalised.
        fill = list(preprocess.mean_colour) if as_bytes else 0.0
        transform.transforms.append(v2.RandomErasing(reprob, value=fill))
    return transform


def _random_steps(preprocess: Preprocess, aug: str) -> list:
    from torchvision.transforms import InterpolationMode, v2

    mode = InterpolationMode(preprocess.interpolation)
    crop = v2.RandomResizedCrop(preprocess.img_size, scale=CROP_SCALE, interpolation=mode)
    steps = [crop, v2.RandomHorizontalFlip()]
    fill = list(preprocess.mean_colour)
    if aug in ("trivial", "rand"):
        policy = v2.TrivialAugmentWide if aug == "trivial" else v2.RandAugment
        steps.append(policy(interpolation=InterpolationMode.BILINEAR, fill=fill))
    return steps
