"""explain.html: which splines matter, where they act, which classes they push; whose photos."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from test_explain import NAMES, SIZES, make_model, write_checkpoint

import explain
from explaining import curves, kan_vit, page_words, spline_page, spline_survey, words
from explaining.parts import told_apart
from explaining.spline_page import PAGE, Seen
from imaging.preprocess import Preprocess
from predicting.inputs import Photo
from predicting.run_photos import run_photos
from vit_model import create_model

FORMS = [
    {"mlp": "kan"},
    {"mlp": "kan", "kan_rank": 4, "kan_blocks": "last:2"},
    {"mlp": "gkan", "kan_groups": 4},
    {"mlp": "gkan", "kan_groups": "feature", "kan_at": "all"},
    {"mlp": "gkan", "kan_groups": "feature", "kan_at": "hidden", "global_pool": "avg"},
]
CHINESE = ["雛菊", "郁金香", "玫瑰", "向日葵", "蒲公英"]
SIX = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def small_splines(**options):
    """A model whose splines are so small that what they add is nearly linear in them."""
    model = make_model(**options)
    with torch.no_grad():
        for layer in curves.kan_layers(model).values():
            curves.coefficients(layer).mul_(0.02)
    return told_apart(model)


# --------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_a_spline_pushes_is_what_the_logits_lose_without_it(form):
    model, images = small_splines(**form), SIX
    found = spline_survey.survey_splines(model, images)
    assert found.shown == [0, 1, 2, 3, 4]
    assert sorted(found.blocks) == ([1, 2] if "kan_blocks" in form else [0, 1, 2])
    with torch.no_grad():
        before = model(images)
    for block, told in found.blocks.items():
        assert len(told) == min(10, sum(map(count, kan_vit.layers_by_block(model)[block])))
        sizes = [one.curve.contribution for one in told]
        assert sizes == sorted(sizes, reverse=True)
        for one in told[:2]:
            with torch.no_grad(), spline_survey.without_curves(model, [one.curve]):
                lost = before - model(images)
            exact = (lost - lost.mean(1, keepdim=True)).mean(0)
            assert torch.allclose(one.pushes, exact, rtol=0.05, atol=2e-5)
            for pushes in (one.pushes, one.low.pushes, one.high.pushes):
                assert float(pushes.sum()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        assert torch.equal(model(images), before)  # taken away for a while only


def count(layer) -> int:
    return curves.coefficients(layer)[..., 0].numel()


@pytest.mark.parametrize("form", [FORMS[0], FORMS[2], FORMS[4]], ids=str)
def test_the_photos_at_the_ends_of_an_axis_are_those_with_the_extreme_values(form):
    model = small_splines(**form)
    found = spline_survey.survey_splines(model, SIX)
    layers = curves.kan_layers(model)
    with torch.no_grad(), curves.recording(layers) as records:
        model(SIX)
    whole = set()
    for one in (one for told in found.blocks.values() for one in told):
        layer = layers[one.curve.layer_name]
        x = curves.acting_on(one.curve, layer, records[one.curve.layer_name].inputs)
        prefix = model.num_prefix_tokens
        x = x[:, :prefix] if one.whole else x[:, prefix:]
        whole.add(one.whole)
        for end, sign in ((one.low, -1), (one.high, 1)):
            values = (sign * x).amax((1, 2))
            order = values.argsort(descending=True)[:3].tolist()
            assert [spot.photo for spot in end.spots] == order  # so each photo once
            for spot in end.spots:
                assert spot.value == pytest.approx(float(sign * values[spot.photo]), rel=1e-4)
                patches = x[spot.photo, spot.patch or 0]
                assert float(patches.sub(spot.value).abs().min()) < 1e-4
    assert ("global_pool" in form) == (whole == {False})


def test_effects_of_blocks_are_those_of_whole_passes():
    model = make_model(mlp="gkan", kan_groups="feature", kan_at="all")
    with torch.no_grad():
        before = model(SIX)
        with kan_vit.without_splines(kan_vit.layers_by_block(model)[1]):
            after = model(SIX)
    found = kan_vit.block_effects(model, SIX)[1]
    assert found.moved == pytest.approx(float((after - before).abs().mean()), rel=1e-4)
    assert found.changed == float((after.argmax(1) != before.argmax(1)).float().mean())


def test_of_many_classes_those_answered_most_are_followed():
    logits = torch.zeros(5, 9)
    for photo, answer in enumerate([7, 7, 2, 2, 4]):
        logits[photo, answer] = 3.0
    assert spline_survey.most_answered(logits, logits.argmax(1), 3) == [2, 4, 7]


# --------------------------------------------------------------------------- the page


class Reader(HTMLParser):
    """The elements of a page by name, and those that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def page_of(folder, model, classes=NAMES, names="abcdef", truths=(0, 1, 2, 3, 4, None)):
    model, images = told_apart(model), SIX
    photos = [Photo(f"in/{n}.jpg", truth) for n, truth in zip(names, truths, strict=True)]
    inputs = kan_vit.layer_inputs(model, images)
    layers = curves.kan_layers(model)
    surveys = {name: kan_vit.survey(layers[name], x) for name, x in inputs.items()}
    folder.mkdir(exist_ok=True)
    path = spline_page.write_page(
        folder, "run/best.pth", model, classes, Preprocess(img_size=32),
        Seen(photos, images, ["told"]), surveys, kan_vit.block_effects(model, images),
    )  # fmt: skip
    return path.read_text("utf-8")


@pytest.mark.parametrize("form", FORMS[:4], ids=str)
def test_the_page_has_a_section_a_block_with_photos_curves_and_classes(form, tmp_path):
    model = make_model(**form)
    text = page_of(tmp_path, model)
    page = Reader(text)
    assert page.open == []
    blocks = kan_vit.layers_by_block(model)
    sections = [one["id"] for one in page.all("section") if "id" in one]
    assert sections == [f"block-{block + 1}" for block in blocks]
    splines = sum(min(10, sum(map(count, layers))) for layers in blocks.values())
    assert len(page.all("article")) == splines
    assert len(page.all("use")) == 6 * splines
    assert text.count("Where ") >= 2 * splines
    shown = {one["id"] for one in page.all("image")}
    assert {one["href"].lstrip("#") for one in page.all("use")} == shown
    addresses = [value for _, attrs in page.found for key, value in attrs.items()
                 if key in ("src", "href", "srcset")]  # fmt: skip
    assert all(value.startswith(("#", "data:")) for value in addresses)
    drawings = [one for one in page.all("svg") if "aria-hidden" not in one]
    assert all(one["role"] == "img" and one["aria-label"] for one in drawings)
    assert '<meta name="generator" content="explain.py">' in text


def test_names_of_photos_and_classes_stay_text(tmp_path):
    bad = '<b>&"x"</b><script>alert(1)</script>'
    text = page_of(tmp_path, make_model(**FORMS[2]), [bad, *NAMES[1:]], [bad, *"bcdef"])
    assert "<script" not in text
    assert "<b>&" not in text
    assert "&lt;script&gt;" in text


def test_the_page_is_in_chinese_where_the_class_names_are(tmp_path):
    text = page_of(tmp_path, make_model(**FORMS[3]), CHINESE)
    assert '<html lang="zh-Hant">' in text
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S).replace("run/best.pth", "")
    terms = {"Vision", "Transformer", "logit", "qkv", "proj", "told", "jpg", "kan", "scale"}
    assert set(re.findall(r"[A-Za-z]{3,}", body)) <= terms
    assert "這個特徵高的地方" in body


def test_both_languages_of_the_page_have_the_same_words_with_the_same_gaps():
    english, chinese = page_words.PAGE_WORDS.values()
    assert english.keys() == chinese.keys()
    assert not english.keys() & words.WORDS["en"].keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\d\}", text)) == set(re.findall(r"\{\d\}", chinese[key])), key


def test_splines_that_change_little_are_said_to(tmp_path):
    model = make_model(**FORMS[0])
    assert "hardly change an answer" not in page_of(tmp_path, model)
    with torch.no_grad():
        for layer in curves.kan_layers(model).values():
            curves.coefficients(layer).mul_(1e-4)
    text = page_of(tmp_path, model)
    assert "These splines hardly change an answer: without all of them 0 of 6 photos" in text


def test_a_sentence_tells_the_photos_the_bend_and_the_classes():
    told = spline_survey.Told(
        curves.Curve("blocks.0.mlp.fc2", (3,), 1.0), curves.Place(0, "fc2", 3, 3), False,
        torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60), torch.ones(32),
        spline_survey.End([spline_survey.Spot(n, -1.0, n) for n in (2, 3, 4)], -0.001,
                          torch.tensor([0.1, 0.0, 0.0, 0.0, -0.1])),
        spline_survey.End([spline_survey.Spot(n, 1.0, n) for n in (0, 1, 5)], 0.5,
                          torch.tensor([0.12, -0.02, -0.02, -0.08, 0.0])),
        torch.zeros(5),
    )  # fmt: skip
    photos = [Photo("x", label) for label in (0, 0, 1, 2, 3, 1)]
    survey = spline_survey.Survey(torch.zeros(6, dtype=torch.long), [0, 1, 2, 3, 4])
    patches = make_model().patch_embed
    classes = ["daisy", "roses", "iris", "tulips", "sun"]
    say = page_words.page_words(classes)[1]
    teller = spline_page.Teller(survey, Seen(photos, SIX), classes, say, patches)
    plain = str.maketrans({"\u2068": "", "\u2069": "", "\u00a0": " "})
    assert teller.sentence(told, told.high, "high").translate(plain) == (
        "Where this feature is high, as in photos of daisy, the spline raises it (by 0.5); "
        "that speaks for daisy (+0.12) and against tulips (−0.080)."
    )
    assert teller.sentence(told, told.low, "low").translate(plain) == (
        "Where this feature is low, the spline hardly changes it; "
        "that speaks for daisy (+0.10) and against sun (−0.10)."
    )
    told.low.pushes = told.low.pushes * 0.002
    assert teller.speaks(told.low) == "that moves no class noticeably"
    assert teller.spot(told.low.spots[2])["frame"] == (0, 8, 8)  # the fifth of four a row


# --------------------------------------------------------------------------- the command


@pytest.fixture
def quick(monkeypatch):
    """Without the pictures of blocks, which take a second each."""

    for name in ("draw_block", "draw_importance"):
        monkeypatch.setattr(kan_vit, name, lambda *_: None)
    monkeypatch.setattr(kan_vit, "save", lambda _, path: path.touch())


def write_run(folder, data, *, val=2, classes=NAMES, model=None, **choice):
    """A run's checkpoint, split.json and args.json; photos are drawn into `data`."""
    sides = {"train": {}, "val": {}}
    for number, name in enumerate(classes):
        (data / name).mkdir(parents=True)
        paths = [f"{name}/{n}.png" for n in range(4)]
        for n, path in enumerate(paths):
            colour = (40 * number, 60 * n, 200 - 30 * number)
            Image.new("RGB", (40, 30), colour).save(data / path)
        sides["train"][name], sides["val"][name] = paths[val:], paths[:val]
    folder.mkdir(exist_ok=True)
    split = {"classes": classes, **sides, "choice": choice, "groups": []}
    (folder / "split.json").write_text(json.dumps(split))
    (folder / "args.json").write_text(json.dumps({"data_path": str(data)}))
    write_checkpoint(folder / "best.pth", model or make_model(**FORMS[2]))
    return folder / "best.pth"


def test_the_photos_of_a_run_are_those_it_kept_for_validation(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "data")
    (tmp_path / "data" / NAMES[0] / "0.png").unlink()
    found = run_photos(run, NAMES[::-1])
    names = {photo.path.removeprefix(str(tmp_path / "data") + "/") for photo in found.photos}
    wanted = {f"{name}/{n}.png" for name in NAMES for n in (0, 1)} - {f"{NAMES[0]}/0.png"}
    assert names == wanted
    assert (found.listed, found.in_folds) == (10, False)
    for photo in found.photos:
        assert f"/{NAMES[::-1][photo.truth]}/" in photo.path


def test_of_a_run_in_folds_they_are_all_photos(tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "data", val=0, folds=4)
    found = run_photos(run, NAMES)
    assert (len(found.photos), found.in_folds) == (20, True)


def test_a_page_of_the_runs_own_photos_needs_no_data(call, quick, tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "data")
    status, out, _ = call(explain.main, run, "--photos", "4")
    assert status == 0
    page = tmp_path / "run" / "explain" / PAGE
    assert f"page: {page}" in out
    text = page.read_text("utf-8")
    assert "Measured on 4 of the 10 photos that its run kept for validation." in text
    assert {path.name for path in page.parent.iterdir()} > {"block_01.png", "importance.png"}
    assert call(explain.main, run, "--photos", "4")[0] == 0  # its own page may be replaced
    page.write_text("<p>mine</p>")
    status, _, said = call(explain.main, run, "--photos", "4")
    assert (status, page.read_text()) == (2, "<p>mine</p>")
    assert "--output" in said


def test_where_a_runs_photos_are_gone_a_sentence_says_what_to_give(call, quick, tmp_path):
    run = write_run(tmp_path / "run", tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    status, out, _ = call(explain.main, run)
    assert status == 0  # the curves are drawn as without photos
    assert f"are no longer in {tmp_path / 'data'}: give the folder where they are now with" in out
    assert not (tmp_path / "run" / "explain" / PAGE).exists()
    status, _, said = call(explain.main, run, "--photos", "4")
    assert status == 2
    assert said.count("\n") == 1
    assert "--photos 4: " in said
    assert "--data DIR" in said
    (tmp_path / "run" / "split.json").write_text('["no split"]')
    assert "are not known" in call(explain.main, run, "--photos", "4")[2]
    status, _, _ = call(explain.main, run, "--photos", "4", "--data", tmp_path / "moved")
    assert status == 0
    assert (tmp_path / "run" / "explain" / PAGE).exists()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_of_splines_as_before_training_page_and_words_say_so(form, call, quick, tmp_path):
    model = create_model("custom", **SIZES, **form).eval()
    run = write_run(tmp_path / "run", tmp_path / "data", model=model, classes=CHINESE)
    write_checkpoint(run, model)
    status, out, _ = call(explain.main, run, "--photos", "3")
    assert status == 0
    assert "nothing has been learned" in out
    page = Reader(text := (tmp_path / "run" / "explain" / PAGE).read_text("utf-8"))
    assert "nothing has been learned" in text
    assert page.all("article") == []


def test_pictures_of_splines_as_before_training_say_so_too():
    model = create_model("custom", **SIZES, mlp="kan").eval()
    surveys = {
        name: kan_vit.survey(layer, torch.randn(9, layer.in_features))
        for name, layer in curves.kan_layers(model).items()
    }
    say = page_words.page_words(CHINESE)[1]
    figure = kan_vit.draw_block(
        1, curves.kan_layers(model), surveys, say, kan_vit.note_on(model, say)
    )
    assert figure.get_suptitle().endswith("還沒有學到任何可以解釋的東西。")
    assert kan_vit.note_on(make_model(mlp="kan"), say) == ""
