"""benchmarks/worth.py searches rates until none lies at an edge, and judges by other photos."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import worth
from benchmarks.forms import training
from benchmarks.forms.pack import Pack, PhotoSet, write
from benchmarks.forms.paired import difference
from benchmarks.forms.table import BASE, FORMS, VARIANTS
from benchmarks.forms.training import Job, drawn, sides, train
from vit_model import create_model

SETS = ("a", "b")
STAGE = replace(worth.STAGES["night"], search=SETS)


def finished_with(values: dict[float, float], form: str, of: str = "loss") -> dict:
    return {
        worth.choosing(form, name, rate).key: {"loss": 0.0, "accuracy": 0.0} | {of: value}
        for rate, value in values.items()
        for name in SETS
    }


def test_a_rate_is_chosen_only_once_it_lies_between_two_that_are_worse():
    form = "LoRA r=4"
    low, middle, high = FORMS[form].rates
    jobs, found = worth.search(form, STAGE, {})
    assert (len(jobs), found) == (6, None)
    falling = {low: 3.0, middle: 2.0, high: 1.0}
    jobs, found = worth.search(form, STAGE, finished_with(falling, form))
    assert {job.rate for job in jobs} == {2 * high}
    assert found is None
    done = finished_with(falling | {2 * high: 1.5}, form)
    assert worth.search(form, STAGE, done) == ([], high)
    rising = finished_with({low: 1.0, middle: 2.0, high: 3.0}, form)
    assert {job.rate for job in worth.search(form, STAGE, rising)[0]} == {low / 2}


def test_where_accuracy_is_judged_it_chooses_the_rate():
    form = "LoRA r=4"
    low, middle, high = FORMS[form].rates
    stage = replace(STAGE, by="accuracy")
    done = finished_with({low: 0.7, middle: 0.8, high: 0.6}, form, "accuracy")
    assert worth.search(form, stage, done) == ([], middle)
    done = finished_with({low: 0.7, middle: 0.8, high: 0.9}, form, "accuracy")
    assert {job.rate for job in worth.search(form, stage, done)[0]} == {2 * high}


@pytest.fixture(scope="module")
def photos():
    labels = torch.arange(90) % 3
    images = torch.zeros(90, 3, 4, 4, dtype=torch.uint8)
    return PhotoSet("a", ["x", "y", "z"], images, labels, torch.zeros(90, dtype=torch.bool))


def test_photos_that_judge_or_choose_are_in_no_other_part_of_the_same_seed(photos):
    test = torch.zeros(90, dtype=torch.bool)
    test[60:] = True
    own = PhotoSet("a", photos.classes, photos.images, photos.labels, test)
    for which in (photos, own):
        train_part, judging = sides(which, Job("f", "a", 1, 20, 1.0, choosing=False))
        assert len(train_part) == 20
        assert not set(train_part.tolist()) & set(judging.tolist())
        ours, choosers = sides(which, Job("f", "a", 1, 20, 1.0, choosing=True))
        assert torch.equal(ours, train_part)
        assert not set(choosers.tolist()) & {*judging.tolist(), *ours.tolist()}
    assert sides(own, Job("f", "a", 5, 20, 1.0, choosing=False))[1].tolist() == [*range(60, 90)]


def test_every_class_is_drawn_and_shares_stay():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    counts = torch.bincount(labels[drawn(labels, 20)]).tolist()
    assert sum(counts) == 20
    assert counts[2] == 1
    assert 15 <= counts[0] <= 18


def test_the_interval_of_a_difference_holds_it_and_narrows_with_photos():
    random = np.random.default_rng(1)

    def values(shift, photos):
        return {"a": {s: random.normal(shift, 1.0, photos).tolist() for s in (1, 2, 3)}}

    few, many = (difference(values(0.0, n), values(0.0, n), set()) for n in (50, 5000))
    assert few.low < 0 < few.high
    assert many.high - many.low < (few.high - few.low) / 4
    clear = difference(values(0.5, 500), values(0.0, 500), {"a"})
    assert clear.decided
    assert clear.low < 0.5 < clear.high


def test_steps_of_two_arithmetics_do_not_stand_in_one_column():
    done = {
        "cost of ours": {"step_ms": 5.0, "peak_mb": 9},  # the first lines are in bfloat16 unsaid
        "cost of theirs": {"bf16": True, "step_ms": 4.0, "peak_mb": 8},
        "cost of slow": {"bf16": False, "step_ms": 12.0, "peak_mb": 9},
    }
    assert worth.spent("ours", "ours", done) == ["5.0", "9"]
    assert worth.spent("theirs", "ours", done) == ["4.0", "8"]
    assert worth.spent("slow", "ours", done) == ["", ""]
    assert worth.spent("slow", "slow", done) == ["12.0", "9"]
    assert worth.spent("missing", "ours", done) == ["", ""]


def test_no_number_of_seeds_decides_what_the_photos_that_they_share_do_not():
    random = np.random.default_rng(1)
    photos = random.normal(0.01, 0.5, 300)

    def ours(each):
        return {"a": {s: (photos + random.normal(0, each, 300)).tolist() for s in range(5)}}

    zero = {"a": {s: [0.0] * 300 for s in range(5)}}
    shared = difference(ours(0.01), zero, {"a"})
    assert not shared.decided
    assert shared.seeds == math.inf
    own = difference(ours(2.0), zero, set())
    assert not own.decided
    assert 5 < own.seeds < math.inf
    clear = difference({"a": {s: [0.5] * 300 for s in range(5)}}, zero, {"a"})
    assert clear.decided
    assert clear.seeds == 2


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A pack of two colours in a folder with a test part, and a tiny model."""
    root = tmp_path_factory.mktemp("worth")
    for part, count in (("train", 8), ("test", 4)):
        for shade, name in ((40, "dark"), (220, "light")):
            folder = root / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (170, 180), (shade + i, shade, shade)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    model = create_model("custom", 3, embed_dim=16, depth=2, num_heads=2, patch_size=32)
    torch.nn.init.normal_(model.head.weight)
    save_file(model.state_dict(), root / "tiny.safetensors")
    write(root / "pack", [str(root / "colours")], str(root / "tiny.safetensors"))
    return Pack(root / "pack")


@pytest.mark.parametrize(
    "form",
    [
        "head alone",
        "biases",
        "LoRA r=4",
        "spline per feature, 4 maps",
        "all layers, spline per feature, 4 maps",
    ],
)
def test_a_form_is_trained_from_a_pack_and_judged_photo_by_photo(pack, form):
    job = Job(form, "colours", 1, 12, 1e-2, choosing=False)
    short = replace(FORMS[form], epochs=2)
    result = train(job, short, pack, torch.device("cpu"))
    assert len(result["right"]) == len(result["millinats"]) == 8
    assert result["accuracy"] == result["right"].count("1") / 8
    assert (result["numbers"] == 0) == (form == "head alone")
    assert result == train(job, short, pack, torch.device("cpu")) | {
        "train_seconds": result["train_seconds"]
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_another_training_than_its_base(pack, variant):
    job = Job("", "colours", 1, 12, 0.1, choosing=False)  # large, for half precision hides little
    form = VARIANTS[variant]
    forms = (replace(one, epochs=4) for one in (BASE, form))
    losses = {train(job, one, pack, torch.device("cpu"))["loss"] for one in forms}
    assert len(losses) == 2


def test_splines_refined_in_the_middle_have_more_cells_and_keep_their_form(pack, monkeypatch):
    seen, judge = [], training.judge

    def looked(rest, *others):
        seen.extend(m.grid_size for m in rest.modules() if isinstance(m, training.SplineLayer))
        return judge(rest, *others)

    monkeypatch.setattr(training, "judge", looked)
    job = Job("", "colours", 1, 12, 1e-2, choosing=False)
    train(job, replace(VARIANTS["3 cells, later 6"], epochs=2), pack, torch.device("cpu"))
    assert set(seen) == {6}


def test_without_its_pack_it_says_what_writes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["worth", "--show", "--file", str(tmp_path / "no.pack")])
    with pytest.raises(SystemExit) as left:
        worth.main()
    assert left.value.code == 2
    assert "no.pack does not exist: --pack writes it" in capsys.readouterr().err
