"""colour.py: colours are those of the profile, and an sRGB photo stays as it is, to the bit."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from imaging import colour
from imaging.decoding import load_image
from imaging.depth import Reading
from imaging.preprocess import Preprocess, eval_transform
from imaging.splitting import prepare_data
from my_dataset import MyDataSet
from predicting import inputs, predictor

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Columns of the matrix from RGB to XYZ under D50, as the profiles of these names state them.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


def tags(profile):
    """Offset and size of each tag of an ICC profile (ICC.1:2010, 7.3)."""
    count = int.from_bytes(profile[128:132])
    entries = (profile[132 + 12 * n : 144 + 12 * n] for n in range(count))
    return {e[:4]: (int.from_bytes(e[4:8]), int.from_bytes(e[8:])) for e in entries}


def with_tags(profile, **changed):
    """The profile with other contents of tags of the same size."""
    changed_profile = bytearray(profile)
    for name, content in changed.items():
        offset, size = tags(profile)[name.encode()]
        assert len(content) == size
        changed_profile[offset : offset + size] = content
    return bytes(changed_profile)


def fixed(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in values))


def with_primaries(red, green, blue):
    return with_tags(SRGB, rXYZ=fixed(red), gXYZ=fixed(green), bXYZ=fixed(blue))


def exchanged():
    at = tags(SRGB)
    red, blue = (SRGB[o : o + size] for o, size in (at[b"rXYZ"], at[b"bXYZ"]))
    return with_tags(SRGB, rXYZ=blue, bXYZ=red)


WIDE = {
    "exchanged": exchanged(),
    "Display P3": with_primaries(*DISPLAY_P3),
    "Adobe RGB": with_primaries(*ADOBE_RGB),
}


def picture(mode="RGB", side=24):
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def by_littlecms(image, profile, mode="RGB"):
    srgb = ImageCms.createProfile("sRGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = image.convert(mode)
    return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))


def difference(first, second):
    return np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max()


@pytest.mark.parametrize("profile", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_other_colours_than_srgb_are_converted(profile, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(picture(), kind, icc_profile=profile, **options)
    stored = Image.open(file)
    stored.load()
    assert difference(load_image(file), by_littlecms(stored, profile)) == 0
    assert difference(load_image(file), stored.convert("RGB")) > 20


def test_red_is_blue_where_the_profile_says_so():
    file = saved(Image.new("RGB", (8, 8), (255, 0, 0)), icc_profile=WIDE["exchanged"])
    assert load_image(file).getpixel((0, 0)) == (0, 0, 255)


def test_srgb_under_any_name_is_left_alone_to_the_bit():
    renamed = SRGB.replace("sRGB built-in".encode("utf-16-be"), "Display P3!!!".encode("utf-16-be"))
    assert renamed != SRGB
    off_by_little = with_tags(SRGB, rXYZ=fixed((0.4362, 0.2225, 0.0139)))
    for profile in (SRGB, renamed, off_by_little):
        for mode in ("RGB", "L", "P", "RGBA", "LA"):
            plain, marked = (saved(picture(mode), icc_profile=p) for p in (None, profile))
            assert difference(load_image(plain), load_image(marked)) == 0


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "L", "1"])
def test_every_mode_is_converted_and_transparency_laid_on_white(mode):
    image, profile = picture(mode), WIDE["exchanged"]
    expected = by_littlecms(image.convert("RGB"), profile)
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
        image.paste(0, (0, 0, 2, 2), mask=None)
        expected = expected.copy()
        expected[:2, :2] = 255
    assert difference(load_image(saved(image, icc_profile=profile)), expected) == 0


def lab_profile(colours, channels):
    """A printer's profile whose table of 2 points a colour runs from paper to black (lut8)."""
    steps = np.array(list(np.ndindex(*(2,) * channels)))
    light = np.clip(255 - 90 * steps.sum(1), 0, 255)
    table = np.stack([light, np.full(len(steps), 128), np.full(len(steps), 128)], 1)
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0]) + matrix + ramp * channels
    lut += table.astype(np.uint8).tobytes() + ramp * 3
    white = fixed((0.9642, 1, 0.8249))
    parts = [(b"wtpt", white), (b"A2B0", lut + bytes(-len(lut) % 4))]
    offset, index, body = 128 + 4 + 12 * len(parts), b"", b""
    for name, content in parts:
        index += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    size = offset + len(body)
    head = struct.pack(">I4s4s4s4s4s", size, b"", b"\x02\x40\0\0", b"prtr", colours, b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + index + body


def test_printers_colours_are_converted_by_their_profile():
    profile = lab_profile(b"CMYK", 4)
    image = picture("CMYK")
    for kind in ("TIFF", "JPEG"):
        file = saved(image, kind, icc_profile=profile)
        stored = Image.open(file)
        stored.load()
        expected = by_littlecms(stored, profile, "CMYK")
        assert difference(load_image(file), expected) == 0
        assert difference(expected, stored.convert("RGB")) > 20


BROKEN = {
    "garbage": b"no profile at all" * 20,
    "cut": SRGB[:300],
    "black": with_primaries((0, 0, 0), (0, 0, 0), (0, 0, 0)),
    "of a link": SRGB[:12] + b"link" + SRGB[16:],
    "CMYK": lab_profile(b"CMYK", 4),
}


@pytest.mark.parametrize("profile", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_profile_that_makes_no_sense_counts_for_nothing(profile, kind):
    plain, marked = (saved(picture(), kind, icc_profile=p) for p in (None, profile))
    assert difference(load_image(plain), load_image(marked)) == 0
    marked.seek(0)
    with Image.open(marked) as image:
        image.load()
        assert colour.odd_profile(image).broken


def test_old_checkpoints_see_the_stored_colours(tmp_path):
    path = tmp_path / "x.png"
    picture().save(path, icc_profile=WIDE["exchanged"])
    described = Preprocess(24).to_dict()
    old = Preprocess.from_dict({k: described[k] for k in ("img_size", "mean", "std")})
    for preprocess, expected in ((old, picture()), (Preprocess(24), load_image(path))):
        transform = eval_transform(preprocess)
        assert (MyDataSet([str(path)], [0], transform)[0][0] == transform(expected)).all()
        decoded = predictor.decode(inputs.Photo(str(path)), transform, True)
        assert difference(decoded.image, expected) == 0
    assert difference(load_image(path, reading=Reading(None, "stored")), picture()) == 0


def test_the_report_names_photos_of_other_colours_and_no_others(tmp_path):
    for number, profile in enumerate([None, SRGB, WIDE["Adobe RGB"], BROKEN["garbage"]]):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            colours = picture(side=16 + number + 10 * (name == "b"))
            colours.save(tmp_path / name / f"{number}.png", icc_profile=profile)
    lines = prepare_data(str(tmp_path)).report.lines()[1:]
    assert [line.split(": ")[0] for line in lines] == [
        "with a profile of other colours than sRGB, converted to sRGB",
        "with a colour profile that makes no sense, taken for sRGB",
    ]
    assert all(": 2 (" in line for line in lines)
