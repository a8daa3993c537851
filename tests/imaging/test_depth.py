"""depth.py: equal numbers are equal greys in all pictures of a data set, whatever holds them."""

import io
import struct

import numpy as np
import pytest
from hostile_photos import colour_png
from PIL import Image

from imaging.decoding import PhotoError, load_image
from imaging.depth import Reading, Wide, checked_ranges, data_ranges
from imaging.preprocess import Preprocess, eval_transform
from imaging.splitting import prepare_data
from my_dataset import MyDataSet
from predicting import inputs, predictor

SIDE = 24
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def saved(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return str(path)


def data(root, dtype, white, ending, factors=(1.0,) * 10, scale=RAMP):
    """Two classes of ramps from 0 to `white` times a factor each, all a little different."""
    for number, factor in enumerate(factors):
        values = (scale * factor * white).astype(dtype)
        values[0] = number * white / 64  # no two alike
        saved(root / ("dark", "light")[number % 2] / f"{number}.{ending}", values)
    return str(root)


def greys(split, reading=None):
    """The red values of the photos, by name."""
    reading = Preprocess(16, ranges=split.ranges).reading if reading is None else reading
    paths = split.train.paths + split.val.paths
    loaded = {p.rsplit("/", 1)[1].split(".")[0]: load_image(p, reading=reading) for p in paths}
    return {name: np.asarray(image)[..., 0].astype(int) for name, image in loaded.items()}


# dtype, white, ending of the files, kind of number
INTEGERS = [
    (np.uint16, 2**bits - 1, ending, "16-bit")
    for bits in (8, 10, 12, 14, 16)
    for ending in ("png", "tif")
]
OTHERS = [
    (np.int32, 255, "tif", "32-bit"),
    (np.int32, 4095, "tif", "32-bit"),
    (np.int32, 65535, "tif", "32-bit"),
    (np.float32, 1.0, "tif", "float"),
    (np.float32, 255.0, "tif", "float"),
    (np.float32, 65535.0, "tif", "float"),
]


@pytest.mark.parametrize(("dtype", "white", "ending", "kind"), INTEGERS + OTHERS)
def test_all_greys_are_kept_of_any_depth_in_any_container(tmp_path, dtype, white, ending, kind):
    split = prepare_data(data(tmp_path, dtype, white, ending))
    assert split.ranges == {kind: (0, white)}
    for grey in greys(split).values():
        assert np.abs(grey - 255 * RAMP)[1:].max() <= 1
    assert f"10 photos of {kind} numbers" in split.report.lines()[1]
    assert f"0 is black and {white:g} is white" in split.report.lines()[1]


@pytest.mark.parametrize("white", [1, 255])
def test_a_picture_a_little_beyond_the_range_is_as_bright_as_the_others(tmp_path, white):
    split = prepare_data(data(tmp_path, np.float32, white, "tif", (1, 1, 1, 1.02)))
    assert split.ranges == {"float": (0, white)}
    found = greys(split)
    assert np.abs(found["3"] - np.clip(255 * 1.02 * RAMP, 0, 255))[1:].max() <= 1


def test_a_dark_picture_stays_dark_among_the_others(tmp_path):
    for dtype, white in ((np.float32, 1), (np.float32, 255), (np.uint16, 4095)):
        root = tmp_path / f"{dtype.__name__}{white}"
        found = greys(prepare_data(data(root, dtype, white, "tif", (1, 1, 1, 1, 1, 0.1))))
        assert np.abs(found["5"] - 25.5 * RAMP)[1:].max() <= 1


def test_photos_of_fewer_bits_among_others_are_told(tmp_path):
    data(tmp_path, np.uint16, 65535, "png", (1, 1, 1, 1))
    saved(tmp_path / "dark" / "12.png", (4095 * RAMP).astype(np.uint16))
    line = prepare_data(str(tmp_path)).report.lines()[1]
    assert line.endswith("65535 is white; 1 end below 4095.94 and are nearly black")


def test_measured_degrees_are_spread_over_all_greys(tmp_path):
    degrees = -20 + 60 * RAMP
    root = data(tmp_path, np.float32, 1, "tif", (1, 1, 1, 1, 0.999), degrees)
    split = prepare_data(root)
    assert split.ranges == {"float": (pytest.approx(-17.5, abs=0.1), 40)}
    assert np.ptp(greys(split)["0"]) > 250


def test_one_stray_number_does_not_make_all_others_black(tmp_path):
    root = tmp_path / "photos"
    data(root, np.float32, 1, "tif", (1,) * 30)
    values = RAMP.astype(np.float32)
    values[3, 3] = 1e6
    saved(root / "dark" / "hot.tif", values)
    split = prepare_data(str(root))
    assert split.ranges == {"float": (0, 1)}
    assert np.abs(greys(split)["hot"] - 255 * RAMP).max(initial=0, where=values < 2) <= 1


def test_a_picture_in_other_units_is_named_and_left_out(tmp_path):
    root = tmp_path / "photos"
    data(root, np.float32, 1, "tif", (1,) * 30)
    saved(root / "dark" / "bytes.tif", (200 + 50 * RAMP).astype(np.float32))
    split = prepare_data(str(root))
    (problem,) = (p for p in split.report.problems if p.kind == "unreadable")
    assert problem.path.endswith("bytes.tif")
    assert "go from 200 to 250, beyond 0 to 1, the range of the data set" in problem.detail
    assert len(split.train.paths + split.val.paths) == 30


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_12_bits_in_16_keep_all_their_greys(tmp_path, channels):
    for number in range(4):
        values = np.repeat((4095 * RAMP).round()[..., None], channels, axis=2).astype(np.uint16)
        values[..., 0] = values[::-1, :, 0] if channels > 2 else values[..., 0]
        values[0, 0] = number
        if channels in (2, 4):
            values[..., -1] = 4095 if number % 2 else 65535
        path = tmp_path / ("dark", "light")[number // 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(colour_png(values))
    split = prepare_data(str(tmp_path))
    assert split.ranges == {"16-bit": (0, 4095)}
    reading = Preprocess(ranges=split.ranges).reading
    for path in split.train.paths + split.val.paths:
        pixels = np.asarray(load_image(path, reading=reading)).astype(int)
        expected = 255 * (RAMP[::-1] if channels > 2 else RAMP)
        assert np.abs(pixels[..., 0] - expected)[1:-1].max() <= 1
        assert np.abs(pixels[..., 2] - 255 * RAMP)[1:-1].max() <= 1


def colour_tiff(values):
    """A 16-bit RGB TIFF of values (H, W, 3) in one strip, written by hand."""
    height, width = values.shape[:2]
    rows = values.astype("<u2").tobytes()
    bits, strip = 8 + 2 + 12 * 9 + 4, 8 + 2 + 12 * 9 + 4 + 6
    tags = [(256, 1, width), (257, 1, height), (258, 3, bits), (259, 1, 1), (262, 1, 2)]
    tags += [(273, 1, strip), (277, 1, 3), (278, 1, height), (279, 1, len(rows))]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    entries = b"".join(struct.pack("<HHII", tag, 3 + (tag == 279), n, v) for tag, n, v in tags)
    return head + entries + struct.pack("<I3H", 0, 16, 16, 16) + rows


@pytest.mark.parametrize("white", [65535, 4095])
def test_colours_of_fewer_bits_are_read_in_full_or_refused_with_the_reason(tmp_path, white):
    for number in range(4):
        values = np.repeat((white * RAMP).round()[..., None], 3, axis=2).astype(np.uint16)
        values[0] = number * white // 64
        path = tmp_path / ("dark", "light")[number // 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(colour_tiff(values))
    if white == 65535:
        split = prepare_data(str(tmp_path))
        assert all(np.abs(grey - 255 * RAMP)[1:].max() <= 1 for grey in greys(split).values())
        return
    with pytest.raises(ValueError, match=r"none of the 4 photos can be used, .*save it as PNG"):
        prepare_data(str(tmp_path))


def test_colours_of_all_16_bits_are_read_as_ever():
    values = np.repeat((65535 * RAMP)[..., None], 3, axis=2).astype(np.uint16)
    file = io.BytesIO(colour_png(values))
    pixels = np.asarray(load_image(file, reading=Reading({"16-bit": (0, 65535)}, strict=True)))
    assert (pixels == values >> 8).all()


def test_a_format_that_states_its_depth_is_believed(tmp_path):
    dark = Image.fromarray((1000 * RAMP).astype(np.uint16))
    pixels = {}
    for kind in ("PPM", "JPEG2000"):
        file = io.BytesIO()
        dark.save(file, kind)
        image = load_image(file, reading=Reading({"16-bit": (0, 4095)}, strict=True))
        pixels[kind] = np.asarray(image).max()
    assert pixels == {"PPM": 4, "JPEG2000": 4}


def test_the_range_travels_in_the_checkpoint_to_prediction(tmp_path):
    split = prepare_data(data(tmp_path / "photos", np.uint16, 4095, "png", (1, 1, 1, 0.5)))
    kept = Preprocess.from_dict(Preprocess(16, ranges=split.ranges).to_dict())
    transform = eval_transform(kept)
    half = str(tmp_path / "photos" / "light" / "3.png")
    for tensor in (
        MyDataSet([half], [0], transform)[0][0],
        predictor.decode(inputs.Photo(half), transform, False).tensor,
        predictor.decode(inputs.Photo(None, source=Image.open(half)), transform, False).tensor,
    ):
        assert tensor.max() == pytest.approx(0, abs=0.1)  # 0.5, normalised


def test_an_old_checkpoint_keeps_its_meaning(tmp_path):
    values = (1.02 * RAMP).astype(np.float32)
    bright = saved(tmp_path / "bright.tif", values)
    twelve = saved(tmp_path / "twelve.png", (4095 * RAMP).astype(np.uint16))
    described = Preprocess(16).to_dict()
    old = Preprocess.from_dict({k: described[k] for k in ("img_size", "mean", "std")})
    assert old.with_ranges({"float": (0, 1)}) == old
    assert np.asarray(load_image(bright, reading=old.reading)).max() == 1
    assert np.asarray(load_image(twelve, reading=old.reading)).max() == 16
    found = predictor.decode(inputs.Photo(twelve), eval_transform(old), True)
    assert np.asarray(found.image).max() <= 16


# --- prediction with a model whose data set had no such pictures ---------------------------------


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.uint16, 65535), (np.uint16, 9000), (np.float32, 1), (np.float32, 1.05),
     (np.float32, 255), (np.float32, 0), (np.uint16, 0), (np.int32, 255)],
)  # fmt: skip
def test_a_picture_that_tells_its_range_is_predicted(tmp_path, dtype, white):
    path = saved(tmp_path / "x.tif", (white * RAMP).astype(dtype))
    found = predictor.decode(inputs.Photo(path), eval_transform(Preprocess(16)), False)
    assert found.photo.error is None


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.uint16, 0, 4095), (np.uint16, 0, 1000), (np.float32, -1000, 3000), (np.float32, 5, 12),
     (np.int32, -5, 90000), (np.float32, 100, 900)],
)  # fmt: skip
def test_a_picture_that_tells_no_range_is_refused_in_a_sentence(tmp_path, dtype, low, high):
    path = saved(tmp_path / "x.tif", (low + (high - low) * RAMP).astype(dtype))
    found = predictor.decode(inputs.Photo(path), eval_transform(Preprocess(16)), False)
    assert f"numbers go from {low} to {high}" in found.photo.error
    assert "save it with 8 bits" in found.photo.error


def test_a_picture_beyond_the_models_range_is_refused(tmp_path):
    reading = Reading({"16-bit": (0, 4095), "float": (0, 255)})
    for dtype, high in ((np.uint16, 60000), (np.float32, 1.0), (np.float32, 65535)):
        path = saved(tmp_path / "x.tif", (high * RAMP).astype(dtype))
        with pytest.raises(PhotoError, match=f"numbers go from 0 to {high:g}, "):
            load_image(path, reading=reading)


@pytest.mark.parametrize("ranges", [{}, {"16-bit": (0, 4095)}])
def test_a_picture_that_is_only_opened_is_read_as_its_file_is(tmp_path, ranges):
    colours = np.repeat((4000 * RAMP)[..., None], 3, axis=2).astype(np.uint16)
    (tmp_path / "x.png").write_bytes(colour_png(colours))
    stated = (40000 * RAMP).astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(b"P5 %d %d 65535\n" % (SIDE, SIDE) + stated)
    transform = eval_transform(Preprocess(16, ranges=ranges))
    for path in (tmp_path / "x.png", tmp_path / "x.pgm"):
        of_file = predictor.decode(inputs.Photo(str(path)), transform, True)
        with Image.open(path) as opened:
            found = predictor.decode(inputs.Photo(None, source=opened), transform, True)
            assert found.photo.error == of_file.photo.error
            assert found.image == of_file.image
            opened.load()  # and as it was
            assert opened.size == (SIDE, SIDE)
            if path.suffix == ".pgm":  # whose format still tells the depth
                found = predictor.decode(inputs.Photo(None, source=opened), transform, True)
                assert found.image == of_file.image


# --- the table of ranges -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("16-bit", 0, 0, (0, 65535)),
        ("16-bit", 7, 255, (0, 255)),
        ("16-bit", 7, 256, (0, 1023)),
        ("16-bit", 0, 3900, (0, 4095)),
        ("16-bit", 0, 16384, (0, 65535)),
        ("32-bit", 0, 1023, (0, 1023)),
        ("32-bit", -5, 1023, (-5, 1023)),
        ("32-bit", 0, 70000, (0, 70000)),
        ("float", 0, 0.9, (0, 1)),
        ("float", -0.05, 1.08, (0, 1)),
        ("float", -1, 1, (-1, 1)),
        ("float", 0, 0.01, (0, 0.01)),
        ("float", 3, 270, (0, 255)),
        ("float", 5, 35, (5, 35)),
        ("float", 0, 40000, (0, 65535)),
        ("float", 4, 4, (4, 5)),
    ],
)
def test_the_range_of_a_data_set_follows_from_its_lowest_and_highest_number(
    kind, low, high, expected
):
    assert data_ranges([Wide(kind, low, high, low)]) == {kind: expected}


def test_8_bit_data_sets_have_no_ranges(tmp_path):
    split = prepare_data(data(tmp_path, np.uint8, 255, "png"), group_by="none")
    assert split.ranges == {}
    assert len(split.report.lines()) == 1


@pytest.mark.parametrize(
    "ranges", [5, {"16-bit": 3}, {"8-bit": (0, 1)}, {"float": (1, 0)}, {"float": (0, float("nan"))}]
)
def test_ranges_of_a_damaged_checkpoint_are_refused(ranges):
    with pytest.raises(ValueError, match="ranges must be"):
        checked_ranges(ranges)
