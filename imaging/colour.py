"""What the colours of a picture mean: those of its profile, converted to sRGB.

Phones write Display P3, cameras Adobe RGB, printers' files CMYK with a profile of the paper. Nearly
all other photos are sRGB, with or without saying so: their pixels stay as they are, to the bit.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

SAME = 4  # of 255: writers of sRGB profiles round its curve differently
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pictures, by their profile's colours


class Profile(NamedTuple):
    """What a profile asks for: nothing (`transform` None), a conversion, or it makes no sense."""

    name: str
    mode: str
    transform: object = None  # an ImageCms transform from `mode` to RGB
    broken: bool = False


def odd_profile(image: Image.Image) -> Profile | None:
    """The profile of an opened picture, unless it has none or one of sRGB."""
    data = image.info.get("icc_profile")
    profile = read_profile(data) if data else None
    if profile is None or (profile.transform is None and not profile.broken):
        return None
    return profile if profile.broken or _fits(image, profile) else profile._replace(broken=True)


def to_srgb(image: Image.Image, data: bytes | None) -> Image.Image:
    """A picture without alpha, of 8 bits, in sRGB: converted where its profile `data` asks for it.

    A profile that is damaged, or of other colours than the picture has, counts for nothing.
    """
    profile = read_profile(data) if data else None
    if profile is None or profile.transform is None or not _fits(image, profile):
        return image.convert("RGB")  # a copy even if RGB already: the file can then be closed
    mode = profile.mode
    return profile.transform.apply(image if image.mode == mode else image.convert(mode))


def _fits(image: Image.Image, profile: Profile) -> bool:
    """Whether the picture has colours of the profile's kind; a grey one fits those of RGB, too."""
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))
    return (image.mode == "CMYK") == (profile.mode == "CMYK") and (grey or profile.mode != "L")


@lru_cache(maxsize=16)
def read_profile(data: bytes) -> Profile:
    """What an ICC profile asks for, tried on a few colours: its name is not to be trusted."""
    from PIL import ImageCms  # rarely wanted

    name = "a profile without a name"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = " ".join(ImageCms.getProfileDescription(profile).split())[:60] or name
        mode = MODES[profile.profile.xcolor_space.strip()]
        srgb = ImageCms.createProfile("sRGB")
        tried, (colours, plain) = [], _few_colours(mode)
        for intent in (ImageCms.Intent.PERCEPTUAL, ImageCms.Intent.RELATIVE_COLORIMETRIC):
            transform = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent)
            tried.append((transform, np.asarray(transform.apply(colours)).astype(int)))
    except Exception:  # parsed from untrusted bytes; a photo is worth more than its metadata
        return Profile(name, "", broken=True)
    transform, found = tried[0]
    if found.max(axis=-1)[0, 0] > 128 or found.min(axis=-1)[0, -1] < 128:
        return Profile(name, mode, broken=True)  # black is no black, or white no white
    if plain is not None and min(np.abs(found - plain).max() for _, found in tried) <= SAME:
        return Profile(name, mode)
    return Profile(name, mode, transform)


def _few_colours(mode: str) -> tuple[Image.Image, np.ndarray | None]:
    """Colours of all kinds in one row, from black to white, and what they are in sRGB."""
    if mode == "L":
        plain = np.repeat(np.arange(256)[None, :, None], 3, axis=2)
        return Image.fromarray(plain[..., 0].astype(np.uint8)), plain
    steps = np.arange(0, 256, 51)
    plain = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    colours = Image.fromarray(plain.astype(np.uint8))
    return (colours, plain) if mode == "RGB" else (colours.convert("CMYK"), None)
