"""The page of serve.py in a real browser: `make test-page`.

See chromium.py for the browser.
"""

import re

import pytest
import torch
from chromium import drop, expect, real_browser, sent
from tiny_server import (
    CLASSES,
    OURS,
    THEIRS,
    Client,
    opened,
    photo,
    serving,
    write_checkpoint,
)

from predict import Predictor
from reporting.page import write_report

pytestmark = pytest.mark.page
SCRIPT = '<img src=x onerror="document.title=1">.jpg'


@pytest.fixture(scope="module")
def browser():
    with real_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    second = write_checkpoint(folder / "second" / "best.pth", 1, ["=1+1", "雏菊"], mlp="mlp")
    return write_checkpoint(folder / "first" / "best.pth"), second


@pytest.fixture(scope="module")
def server(checkpoints):
    with serving(opened(*checkpoints), [OURS]) as client:
        yield client


@pytest.fixture
def open_page(browser, server):
    """Returns open_page(host, **settings of the browser): the page, watched for faults."""
    contexts, faults = [], []

    def open_page(host="localhost", width=1280, **settings):
        size = {"width": width, "height": 800}
        context = browser.new_context(**{"viewport": size, "locale": "en-US"} | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://{host}:{server.port}/")
        return page

    asked = []
    yield open_page
    for context in contexts:
        context.close()
    assert not faults
    ours = re.compile(rf"(http://(localhost|{OURS}|{THEIRS}):{server.port}/|blob:|data:)")
    assert [url for url in asked if not ours.match(url)] == []


def test_a_dropped_photo_is_answered_as_predict_py_does(open_page, checkpoints, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photo(1))
    expected = Predictor(str(checkpoints[0]))(tmp_path / "photo.jpg")["predictions"]
    page = open_page()
    expect(page.locator("#about")).to_contain_text("daisy, roses, tulips")
    expect(page.locator("#about")).to_contain_text("81.3% (75.0% to 87.5%, 128 photos)")
    drop(page, photo(1))
    expect(page.locator(".verdict")).to_have_text(expected[0]["class"])
    rows = [row.inner_text().split() for row in page.locator(".bars li").all()]
    assert rows == [[one["class"], f"{100 * one['probability']:.1f}%"] for one in expected]
    said = f"photo.jpg: {expected[0]['class']}, {100 * expected[0]['probability']:.1f}%"
    expect(page.locator("[aria-live]")).to_have_text(said)


def test_where_it_looked_and_the_splines_are_shown(open_page):
    page = open_page()
    drop(page, photo(2))  # of one photo at once
    expect(page.locator(".splines svg")).to_have_count(6)
    heat, slider = page.locator(".heat"), page.get_by_label("strength of the overlay")
    expect(heat).to_have_css("opacity", "0.65")
    slider.fill("20")
    expect(heat).to_have_css("opacity", "0.2")
    picture, map_ = page.locator(".map").bounding_box(), heat.bounding_box()
    assert map_["width"] == pytest.approx(map_["height"], rel=0.02)  # the model saw a square
    assert picture["width"] >= map_["width"]
    measured = page.get_by_text(re.compile(r"the answer goes from \d+\.\d% to \d+\.\d% when"))
    expect(measured).to_be_visible()
    expect(page.get_by_text("nothing has been learned")).to_have_count(0)
    page.get_by_role("button", name="Hide photo.jpg").press("Enter")
    expect(page.locator(".why")).to_have_count(0)
    why = page.get_by_role("button", name="Why? photo.jpg")
    expect(why).to_be_focused()
    expect(why).to_have_attribute("aria-expanded", "false")


def test_a_photo_that_comes_before_the_models_are_known_is_explained_too(open_page):
    page, held = open_page(), []
    page.route("**/models", lambda route: held.insert(0, route))
    page.reload()
    drop(page, photo(2))
    expect(page.locator(".card")).to_have_count(1)
    held[0].continue_()
    expect(page.locator(".splines svg")).to_have_count(6)


def test_of_splines_as_before_training_the_page_says_that_nothing_was_learned(open_page):
    def told(route):
        route.fulfill(json=route.fetch().json() | {"splines": [], "unlearned": True})

    page = open_page(locale="zh-TW")
    page.route("**/explain?*", told)
    drop(page, photo(2))
    expect(page.get_by_text("還沒有學到任何可以解釋的東西")).to_be_visible()
    expect(page.get_by_text("實測：遮住最亮的五分之一")).to_be_visible()
    expect(page.locator(".splines svg")).to_have_count(0)


def test_a_model_that_cannot_say_why_is_not_asked(open_page):
    def told(route):
        models = route.fetch().json()
        route.fulfill(json=[models[0], models[1] | {"explains": False}])

    page = open_page()
    page.route("**/models", told)
    page.reload()
    drop(page, photo(2))
    expect(page.locator(".why")).to_have_count(1)
    page.get_by_label("model").select_option("second")
    expect(page.locator(".bars li")).to_have_count(2)
    expect(page.locator(".why, .trouble:visible")).to_have_count(0)
    expect(page.locator(".frame img")).to_be_visible()


def test_a_pasted_picture_is_answered(open_page):
    page = open_page()
    drop(page, photo(3), "image.png", "paste")
    expect(page.locator(".verdict")).to_have_count(1)


def test_the_language_is_the_browsers_and_can_be_switched(open_page):
    page = open_page(locale="zh-TW")
    expect(page.locator("h1")).to_have_text("模型看見了什麼？")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hant")
    page.set_input_files("#files", [sent(photo())])
    expect(page.get_by_text("起作用的樣條")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_text("The splines that mattered")).to_be_visible()
    expect(page.locator("h1")).to_have_text("What does the model see?")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")  # it is remembered


def test_a_bad_file_is_told_and_the_next_photo_answered(open_page):
    page = open_page()
    page.set_input_files("#files", [sent(b"no photo", "notes.jpg"), sent(b"", "empty.jpg")])
    expect(page.locator(".card .trouble")).to_have_count(2)
    expect(page.locator(".card .trouble").first).to_contain_text(
        "This is no photo that can be read"
    )
    page.set_input_files("#files", [sent(photo())])
    expect(page.locator(".verdict")).to_have_count(1)


def test_reasons_do_not_mix_two_languages(open_page):
    page = open_page(locale="zh-TW")
    page.set_input_files("#files", [sent(b"no photo", "notes.jpg")])
    told = page.locator(".card .trouble")
    expect(told).to_have_text("這不是可以讀取的照片")
    expect(told).to_have_attribute("title", re.compile("not a picture"))
    page.get_by_role("button", name="English").click()
    expect(told).to_have_text(re.compile(r"can be read \(not a picture .*\)"))


def test_a_photo_that_the_browser_cannot_show_is_shown_all_the_same(open_page):
    page = open_page()
    page.set_input_files("#files", [sent(photo(kind="TIFF"), "scan.tif", "image/tiff")] * 2)
    expect(page.locator(".verdict")).to_have_count(2)
    picture = page.locator(".frame img").first
    expect(picture).to_be_visible()
    page.wait_for_timeout(300)
    assert picture.evaluate("image => image.naturalWidth") == 90


def test_a_name_that_is_a_script_is_a_name(open_page):
    page = open_page()
    drop(page, photo(), SCRIPT)
    expect(page.locator(".file")).to_have_text(SCRIPT)
    expect(page).to_have_title("What does the model see?")


def test_nothing_sticks_out_at_the_width_of_a_phone(open_page):
    for locale, scheme in (("en-US", "light"), ("zh-TW", "dark")):
        page = open_page(width=360, locale=locale, color_scheme=scheme)
        drop(page, photo(), f"{'long' * 30}.jpg")
        expect(page.locator(".splines svg")).to_have_count(6)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        sizes = [
            one.bounding_box() for one in page.locator("button:visible, .button:visible").all()
        ]
        assert min(size["height"] for size in sizes) >= 40  # for fingers


def test_the_camera_is_answered_each_second(open_page):
    page = open_page()
    page.get_by_role("button", name="Camera", exact=True).click()
    expect(page.locator("#live-answer .verdict")).to_be_visible()
    page.get_by_role("button", name="Keep this picture").click()
    expect(page.locator(".card .verdict")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#live")).to_be_hidden()
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_focused()


def test_where_the_browser_allows_no_camera_the_page_says_so(open_page):
    page = open_page(OURS)
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_hidden()
    expect(page.get_by_text("over https only")).to_be_visible()
    expect(page.locator("#shot")).to_have_attribute("capture", "environment")
    page.set_input_files("#shot", [sent(photo())])
    expect(page.locator(".verdict")).to_have_count(1)


def test_photos_are_sorted_and_saved_as_a_table_that_runs_no_formula(open_page):
    page = open_page()
    page.locator("#model").select_option("second")
    files = [sent(photo(number), f"={number}.jpg") for number in range(4)]
    page.set_input_files("#files", [*files, sent(b"no photo", "bad.jpg")])
    expect(page.locator(".verdict")).to_have_count(4)
    expect(page.locator(".card .trouble")).to_have_count(1)
    page.locator("#sort").select_option("sure")
    shares = [
        float(share.inner_text()[:-1]) for share in page.locator("li:first-child > .share").all()
    ]
    assert shares == sorted(shares, reverse=True)
    page.locator("#sort").select_option("unsure")
    shares = [
        float(share.inner_text()[:-1]) for share in page.locator("li:first-child > .share").all()
    ]
    assert shares == sorted(shares)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = download.value.path().read_bytes().decode("utf-8-sig")
    head, *rows = text.splitlines()
    assert head == "image,answer,class_1,probability_1,class_2,probability_2,error"
    assert [row.split(",")[0] for row in rows] == [
        "'=0.jpg",
        "'=1.jpg",
        "'=2.jpg",
        "'=3.jpg",
        "bad.jpg",
    ]
    assert not re.search("(^|,)=", text, re.M)


def test_another_model_answers_for_the_photos_that_are_there(open_page):
    page = open_page()
    page.set_input_files("#files", [sent(photo(1)), sent(photo(2))])
    expect(page.locator(".bars li")).to_have_count(2 * len(CLASSES))
    page.get_by_label("model").select_option("second")
    expect(page.locator(".bars li")).to_have_count(2 * 2)
    expect(page.locator("#about")).to_contain_text("雏菊")


def test_the_keyboard_reaches_everything(open_page):
    page = open_page()
    page.set_input_files("#files", [sent(photo(1), "a.jpg"), sent(photo(2), "b.jpg")])
    expect(page.locator(".verdict")).to_have_count(2)
    page.locator("body").focus()
    reached = []
    for _ in range(11):
        page.keyboard.press("Tab")
        told = "e => e.ariaLabel || e.id || e.textContent"
        reached.append(page.locator(":focus").evaluate(told))
    places = ["model", "language", "files", "camera", "sort", "csv", "clear", "Why? b.jpg"]
    assert [place for place in reached if place in places] == places
    page.get_by_role("button", name="Remove b.jpg").press("Enter")
    expect(page.get_by_role("button", name="Remove a.jpg")).to_be_focused()


def test_pages_from_elsewhere_get_nothing(browser, server: Client):
    """Neither a page with a name that was made to point here, nor one of another origin."""
    context = browser.new_context()
    page = context.new_page()
    assert page.goto(f"http://{THEIRS}:{server.port}/").status == 403
    ask = f"fetch('http://localhost:{server.port}/models').then(r => r.text(), e => 'refused')"
    assert page.evaluate(ask) == "refused"
    send = ask.replace("/models'", "/predict', {method: 'POST', body: 'x', mode: 'no-cors'}")
    assert page.evaluate(send.replace("r.text()", "r.type")) in ("opaque", "refused")
    context.close()


def test_the_settings_of_a_report_fit_the_width_of_a_phone(browser, tmp_path):
    """Here, because a browser is: report.html is another page of ours."""
    settings = [("--data-path", f"/photos/{'long' * 12}", "given"), ("--lr", 0.001, "why " * 30)]
    write_report(
        tmp_path, title="a run", summary=[("Accuracy", 0.5)], classes=["a", "b"],
        matrix=torch.eye(2), rows=(), settings=settings,
    )  # fmt: skip
    page = browser.new_context(viewport={"width": 360, "height": 800}).new_page()
    page.goto((tmp_path / "report.html").as_uri())
    box = page.locator(".settings").evaluate("e => [e.parentElement.scrollWidth, e.clientWidth]")
    reason = page.locator(".settings td:last-child").last.bounding_box()
    page.context.close()
    assert box[0] <= box[1] <= 360
    assert reason["width"] > 250  # the whole line
