"""--weights auto finds which weights suit the photos, by training photos alone."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import train
from training import assembly, ranking

sys.path.insert(0, str(Path(__file__).parent.parent / "formats"))
from oracles import as_timm, saved, vit

FAST = ("--epochs", 2, "--workers", 1, "--device", "cpu", "--output", "run")


@pytest.fixture
def photos(make_photos, tmp_path, monkeypatch):
    """Photos of three colours; weights/ with a model that sees and one that is blind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train, "write_results", lambda *_: None)  # plots and pages take seconds
    Path("weights").mkdir()
    as_timm(vit(img_size=32), Path("weights/sees"))
    blind = vit(img_size=32)
    blind.patch_embed.proj.weight.data.zero_()
    saved(blind.state_dict(), Path("weights"), "blind.pth")
    return make_photos(tmp_path / "photos", per_class=12)


def tell(call, photos, weights="auto", *words):
    return call(train.main, "--data-path", photos, "--weights", weights, *FAST, *words)


def row(out, name):
    """The accuracy and its interval that the table has for a candidate."""
    found = re.search(rf"^{re.escape(name)} +([\d.]+) +([\d.]+) to ([\d.]+) .*M$", out, re.M)
    assert found, out
    return tuple(map(float, found.groups()))


def test_the_weights_that_tell_the_classes_apart_are_taken(call, photos):
    status, out, err = tell(call, photos)
    assert status == 0, err
    share, low, high = row(out, "weights/sees")
    assert low < share <= high
    assert share > 0.8
    assert row(out, "weights/blind.pth")[0] < 0.6
    assert "--weights weights/sees  (the best of 2 on training photos alone)" in out
    assert "not tried, for they are not here: vit_small_patch16_dinov3.lvd1689m" in out
    assert json.loads(Path("run/args.json").read_text("utf-8"))["weights"] == "weights/sees"


def test_dry_run_shows_the_table_and_trains_nothing(call, photos):
    status, out, _ = tell(call, photos, "auto", "--dry-run")
    assert status == 0
    assert row(out, "weights/sees")
    assert not Path("run").exists()


def test_photos_to_judge_by_have_no_part_in_it(call, photos, make_photos, tmp_path):
    """Other validation photos, of which every label is wrong: the same table."""
    right = make_photos(tmp_path / "val", per_class=4, seed=3)
    wrong = tmp_path / "wrong"
    names = sorted(path.name for path in right.iterdir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copytree(right / name, wrong / other)
    tables = [
        re.findall(r"^weights/\S+ +[\d.]+ +[\d.]+ to [\d.]+", out, re.M)
        for val in (right, wrong)
        if (out := tell(call, photos, "auto", "--val-path", val, "--dry-run")[1])
    ]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_what_ran_serves_the_training_to_the_last_bit(call, photos, monkeypatch):
    filled = []

    def fill(model, skip, loader, *words, **more):
        filled.append(len(loader.dataset))
        return real(model, skip, loader, *words, **more)

    real = assembly.feature_cache.fill
    monkeypatch.setattr(assembly.feature_cache, "fill", fill)
    assert tell(call, photos)[0] == 0
    assert filled == [6]  # the validation photos alone
    best = torch.load("run/best.pth", weights_only=True)["model"]
    shutil.rmtree("run")
    assert tell(call, photos, "weights/sees")[0] == 0
    assert filled[1:] == [30, 6]
    named = torch.load("run/best.pth", weights_only=True)["model"]
    assert all(torch.equal(best[name], named[name]) for name in named)


@pytest.mark.slow
def test_all_layers_and_splines_train_from_the_weights_that_were_chosen(call, photos):
    status, out, err = tell(call, photos, "auto", "--freeze-layers", "false", "--mlp", "kan")
    assert status == 0, err
    assert "--weights weights/sees" in out


def test_candidates_can_be_named(call, photos):
    status, out, err = tell(call, photos, "auto:weights/blind.pth", "--dry-run")
    assert status == 0, err
    assert "the best of 1" in out
    status, _, err = tell(call, photos, "auto:weights/blind.pth,nowhere.pth")
    assert status == 2
    assert "there is no such file as nowhere.pth" in err


def test_runs_and_what_cannot_be_read_are_left_out_with_the_reason(call, photos):
    assert tell(call, photos, "weights/sees", "--output", "weights/old")[0] == 0
    shutil.copy("weights/old/best.pth", "weights/mine.pth")
    Path("weights/torn.pth").write_bytes(b"\x80torn")
    status, out, err = tell(call, photos, "auto", "--dry-run")
    assert status == 0, err
    assert "not tried: weights/mine.pth (trained here, perhaps on these photos" in out
    assert re.search(r"not tried: weights/torn.pth \(.*damaged", out)
    assert "weights/old" not in out


def test_models_in_the_hubs_cache_are_candidates(call, photos, tmp_path):
    folder = tmp_path / "cache" / "models--timm--vit_base_patch16_224.mae"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc", "utf-8")
    shutil.copytree("weights/sees", folder / "snapshots" / "abc")
    text = tmp_path / "cache" / "models--some--words" / "snapshots" / "def"
    shutil.copytree("weights/sees", text)
    (text / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    _, out, _ = tell(call, photos, "auto", "--dry-run")
    assert row(out, "hf:timm/vit_base_patch16_224.mae") == row(out, "weights/sees")
    assert "some/words" not in out
    missing = next(line for line in out.splitlines() if line.startswith("of --list-models"))
    assert "vit_base_patch16_224.mae" not in missing


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--eval"], "--weights auto chooses what to train from: --eval needs --weights FILE"),
        (["--weights", "auto:"], "there are none: `pretrained.py NAME` fetches one"),
    ],
)
def test_auto_without_anything_to_choose_is_told(call, photos, words, sentence):
    shutil.rmtree("weights")
    status, _, err = tell(call, photos, "auto", *words)
    assert status == 2
    assert sentence in err


def test_a_class_of_too_few_photos_is_told(call, photos):
    for path in sorted((photos / "roses").iterdir())[2:]:
        path.unlink()
    status, _, err = tell(call, photos)
    assert status == 2
    assert "--weights auto needs two training photos of each class or more" in err


def test_a_file_called_auto_is_a_file(photos):
    assert ranking.is_auto("auto")
    saved(vit().state_dict(), Path(), "auto")
    assert not ranking.is_auto("auto")
