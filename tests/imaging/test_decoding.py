"""decoding.py: any file to the same sound pixels, and to a sentence where there are none."""

import contextlib
import io
import os
import pickle
import random
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from imaging import decoding
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import Preprocess, eval_transform
from system import terminal

RED, GREEN, WHITE = (200, 30, 40), (20, 180, 60), (255, 255, 255)


def gradient(width=40, height=24):
    """A smooth RGB picture, no two corners of which are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray(np.uint8(np.stack([255 * x, 255 * y, 255 * (1 - x)], 2)))


def saved(image, kind, **options):
    """The picture as a file in memory."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def difference(first, second):
    return np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).max()


# --- modes and formats ---


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = gradient()
    # What a camera stores for each orientation, so that the viewer's turn brings it upright again.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        loaded = load_image(saved(stored, kind, exif=exif, **options))
        assert loaded.size == upright.size
        assert difference(loaded, upright) == 0, kind
    assert difference(load_image(saved(stored, "JPEG", exif=exif, quality=95)), upright) < 30


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_garbage_exif_is_ignored():
    for junk in (b"Exif\0\0" + os.urandom(60), b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        assert load_image(saved(gradient(), "JPEG", exif=junk)).size == (40, 24)
    exif = Image.Exif()
    exif[0x0112] = 77
    assert load_image(saved(gradient(), "JPEG", exif=exif)).size == (40, 24)


def test_exif_that_breaks_the_parser_does_not_cost_the_photo(monkeypatch):
    def fail(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert load_image(saved(gradient(), "JPEG")).size == (40, 24)


def half_clear(mode):
    """Left half opaque, right half fully transparent."""
    image = Image.new("RGBA", (8, 4), (*RED, 255))
    image.paste((*GREEN, 0), (4, 0, 8, 4))
    return image if mode == "RGBA" else image.convert(mode)


def test_alpha_is_laid_on_white():
    loaded = load_image(saved(half_clear("RGBA"), "PNG"))
    assert loaded.getpixel((0, 0)) == RED
    assert loaded.getpixel((7, 0)) == WHITE
    grey = load_image(saved(half_clear("LA"), "PNG"))
    assert grey.getpixel((0, 0)) != WHITE
    assert grey.getpixel((7, 0)) == WHITE


def test_half_transparent_is_blended_with_white():
    loaded = load_image(saved(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG"))
    assert loaded.getpixel((0, 0)) == (127, 127, 127)


def test_transparent_palette_and_colour_key_become_white():
    palette = Image.new("P", (8, 4), 1)
    palette.putpalette([0, 0, 0, *RED, *GREEN])
    palette.paste(2, (4, 0, 8, 4))
    for kind in ("PNG", "GIF"):
        loaded = load_image(saved(palette, kind, transparency=2))
        assert loaded.getpixel((0, 0)) == RED
        assert loaded.getpixel((7, 0)) == WHITE
        opaque = load_image(saved(palette, kind))
        assert opaque.getpixel((7, 0)) == GREEN
    key = Image.new("RGB", (4, 4), GREEN)
    assert load_image(saved(key, "PNG", transparency=GREEN)).getpixel((0, 0)) == WHITE
    grey = Image.new("L", (4, 4), 90)
    assert load_image(saved(grey, "PNG", transparency=90)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_is_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    loaded = np.asarray(load_image(saved(Image.fromarray(values), kind)))
    assert (loaded == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_dark_16_bit_photo_is_not_stretched(kind):
    dark = Image.fromarray(np.full((8, 8), 200, np.uint16))
    assert load_image(saved(dark, kind)).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("high", [1.0, 255.0, 65535.0])
def test_float_photo_is_scaled_by_the_range_that_holds_it(high):
    values = np.linspace(0, high, 256, dtype=np.float32).reshape(16, 16)
    loaded = np.asarray(load_image(saved(Image.fromarray(values), "TIFF")))
    assert (loaded == np.arange(256).reshape(16, 16, 1)).all()


def test_32_bit_photo_beyond_16_bits_is_stretched_from_minimum_to_maximum():
    values = np.linspace(-1_000_000, 3_000_000, 256).astype(np.int32).reshape(16, 16)
    loaded = np.asarray(load_image(saved(Image.fromarray(values), "TIFF"))).astype(int)
    assert np.abs(loaded - np.arange(256).reshape(16, 16, 1)).max() <= 1


def test_float_photo_with_nan_and_infinity_has_sound_pixels():
    values = np.float32([[0, 0.5, 1], [np.nan, np.inf, -np.inf]])
    loaded = np.asarray(load_image(saved(Image.fromarray(values), "TIFF")))[..., 0]
    assert loaded.tolist() == [[0, 128, 255], [0, 0, 0]]


def test_constant_float_photo_does_not_divide_by_zero():
    values = np.full((4, 4), -7.5, np.float32)
    assert load_image(saved(Image.fromarray(values), "TIFF")).getpixel((0, 0)) == (0, 0, 0)


def test_cmyk_keeps_its_colours():
    for kind in ("JPEG", "TIFF"):
        loaded = load_image(saved(Image.new("RGB", (16, 16), RED).convert("CMYK"), kind))
        assert difference(loaded, Image.new("RGB", (16, 16), RED)) < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "LAB"])
def test_plain_modes_keep_their_picture(mode):
    source = gradient().convert("L") if mode in ("1", "L") else gradient()
    image = decoding.to_rgb(_to_lab(source) if mode == "LAB" else source.convert(mode))
    assert image.mode == "RGB"
    if mode != "1":
        limit = {"P": 90, "LAB": 40}.get(mode, 12)  # few colours, a smaller range of colours
        assert difference(image, source.convert("RGB")) < limit


def _to_lab(image):
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_mode_with_alpha_is_laid_on_white(mode):
    image = Image.new("La" if mode == "La" else "RGBA", (4, 4), 0)
    loaded = decoding.to_rgb(image if mode == "La" else image.convert(mode))
    assert loaded.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, WHITE)]
    loaded = load_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert difference(loaded, frames[0]) < 12


def test_a_wrong_extension_does_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(gradient(), "PNG").getvalue())
    assert difference(load_image(path), gradient()) == 0


def test_file_stays_open_for_its_owner_and_paths_are_closed(tmp_path):
    file = saved(gradient(), "PNG")
    load_image(file)
    assert not file.closed
    path = tmp_path / "photo.png"
    gradient().save(path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        load_image(path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


# --- reduced decoding ---


def test_jpeg_is_decoded_at_reduced_scale_but_never_below_what_is_needed():
    file = saved(gradient(1600, 1200), "JPEG")
    sizes = {}
    for need in (None, 1300, 1200, 601, 600, 300, 256, 150, 1):
        file.seek(0)
        sizes[need] = load_image(file, need).size
    assert sizes[None] == sizes[1300] == sizes[1200] == sizes[601] == (1600, 1200)
    assert sizes[600] == (800, 600)
    assert sizes[300] == (400, 300)
    assert sizes[256] == (400, 300)
    assert sizes[150] == sizes[1] == (200, 150)


def test_reduced_scale_shows_the_same_picture():
    file = saved(gradient(1600, 1200), "JPEG", quality=95)
    transform = eval_transform(Preprocess())
    full = transform(load_image(file))
    file.seek(0)
    reduced = transform(load_image(file, transform.min_size))
    assert (full - reduced).abs().max() < 0.06


# --- what is no photo ---


def broken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_bad_files_get_a_sentence_that_names_them(tmp_path):
    jpeg = saved(gradient(200, 200), "JPEG").getvalue()
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>not found</html>", "not a picture"),
        "short.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "not a picture"),
    }
    for name, (content, meaning) in cases.items():
        with pytest.raises(ValueError, match=f"{name}: .*{meaning}"):
            load_image(broken(tmp_path, name, content))


def test_missing_file_folder_and_fifo_get_a_sentence(tmp_path):
    with pytest.raises(PhotoError, match="No such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(PhotoError, match="not a regular file"):
        load_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo.jpg")
        with pytest.raises(PhotoError, match="not a regular file"):
            load_image(tmp_path / "fifo.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_every_truncation_is_either_decoded_or_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    content = saved(Image.fromarray(noise), kind).getvalue()
    for tenth in range(10):
        path = broken(tmp_path, "cut", content[: len(content) * tenth // 10])
        with pytest.raises(PhotoError):
            load_image(path)
        with pytest.raises(PhotoError):  # the check's reduced decoding finds it as well
            load_image(path, min_size=1)


def test_flipped_bytes_never_escape_as_another_exception(tmp_path):
    rng = random.Random(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000"):
        content = saved(gradient(), kind).getvalue()
        for _ in range(12):
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 10)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            with contextlib.suppress(PhotoError):
                assert load_image(io.BytesIO(bytes(damaged)), min_size=16).mode == "RGB"


def test_decompression_bomb_is_refused(tmp_path):
    content = bytearray(saved(Image.new("1", (8, 8)), "PNG").getvalue())
    header = b"IHDR" + (30_000).to_bytes(4) + (30_000).to_bytes(4) + bytes(content[24:29])
    content[12:33] = header + zlib.crc32(header).to_bytes(4)  # claims 900 megapixels
    path = broken(tmp_path, "bomb.png", content)
    with pytest.raises(PhotoError, match=r"bomb\.png: too large: .*pixels"):
        load_image(path)


def test_jpeg_with_very_many_scans_is_refused():
    content = saved(Image.new("L", (64, 64)), "JPEG", progressive=True).getvalue()
    last = content.rfind(b"\xff\xda")
    bomb = content[:-2] + content[last:-2] * 500 + content[-2:]
    with pytest.raises(PhotoError, match="scans"):
        load_image(io.BytesIO(bomb))
    assert load_image(io.BytesIO(content)).size == (64, 64)


def chunk(name, body, spoil=0):
    return len(body).to_bytes(4) + name + body + (zlib.crc32(name + body) ^ spoil).to_bytes(4)


LONG = zlib.compress(bytes(2 * 2**20))
METADATA = {
    "compressed text": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "many texts": chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(2**20 - 9))) * 70,
    "a damaged text": chunk(b"tEXt", b"Comment\0hello", spoil=1),
    "an unknown compression": chunk(b"zTXt", b"Comment\0\7" + LONG),
    "a damaged time": chunk(b"tIME", b"\7", spoil=1),
    "a damaged density": chunk(b"pHYs", b"\7"),
    "a profile that unpacks to very much": chunk(b"iCCP", b"x\0\0" + LONG),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_metadata_of_any_size_or_state_never_cost_a_png_its_pixels(metadata, place, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(gradient(), "PNG", exif=exif).getvalue()
    at = content.index(b"IDAT" if place == "before" else b"IEND") - 4
    path = broken(tmp_path, "x.png", content[:at] + metadata + content[at:])
    upright = gradient().transpose(Image.Transpose.ROTATE_270)
    for source in (path, io.BytesIO(path.read_bytes())):
        tracemalloc.start()
        assert difference(load_image(source), upright) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**27
        tracemalloc.stop()


def test_a_large_profile_is_used_and_a_png_without_sound_pixels_refused(tmp_path):
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = swapped.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    large = (len(swapped) + 2**21).to_bytes(4) + swapped[4:] + bytes(2**21)
    content = saved(Image.new("RGB", (8, 8), (255, 0, 0)), "PNG").getvalue()
    at = content.index(b"IDAT") - 4
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(large))
    path = broken(tmp_path, "x.png", content[:at] + profile + content[at:])
    assert load_image(path).getpixel((0, 0)) == (0, 0, 255)
    cut = broken(tmp_path, "cut.png", content[:at] + METADATA["a damaged text"] + content[at:-30])
    with pytest.raises(PhotoError, match=r"cut\.png"):
        load_image(cut)


def test_of_several_jpegs_in_one_file_the_first_is_read():
    frames = [gradient(), Image.new("RGB", (40, 24))]
    content = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert difference(load_image(content), gradient()) < 30
    assert ".mpo" in decoding.readable_extensions()


def test_postscript_is_never_run(tmp_path):
    path = tmp_path / "photo.jpg"
    gradient().save(path, "EPS")
    with pytest.raises(PhotoError, match="not a picture"):
        load_image(path)
    assert not {".eps", ".ps", ".wmf", ".fits"} & decoding.readable_extensions()


def test_extensions_of_common_formats_are_readable():
    wanted = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".jp2"}
    assert wanted <= decoding.readable_extensions()
    assert ".pdf" not in decoding.readable_extensions()  # Pillow writes but does not read it


def heic_file(tmp_path):
    """A photo as phones write it; the test is skipped without a writer."""
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(gradient(160, 96)).save(path, quality=95)
    return path


def test_heic_is_read_like_any_photo(tmp_path):
    path = heic_file(tmp_path)
    for source in (path, io.BytesIO(path.read_bytes())):
        image = load_image(source)
        assert image.mode == "RGB"
        assert difference(image, gradient(160, 96)) < 30
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PhotoError):
        load_image(path)


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding.load_heic_reader.cache_clear()
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(PhotoError, match="pip install pillow-heif, or save it as JPEG"):
        load_image(path)
    assert ".heic" in decoding.readable_extensions()  # so that a folder of them is not called empty


def test_errors_can_be_pickled_and_name_odd_names_legibly():
    error = pickle.loads(pickle.dumps(PhotoError("a\udcff\x1b[2J.jpg", "it is empty")))
    assert str(error) == "a\\xff\\x1b[2J.jpg: it is empty"
    assert error.reason == "it is empty"
    assert terminal.printable("玫瑰 é/a b.jpg") == "玫瑰 é/a b.jpg"


def test_threads_may_load_at_once():
    content = saved(gradient(), "PNG").getvalue()
    results = []

    def work():
        results.append(difference(load_image(io.BytesIO(content)), gradient()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 8
