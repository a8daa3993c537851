"""When a flag has an effect: each row of every command's table, refused, taken and idle."""

import importlib

import pytest
from conftest import ROOT

import train
from system.flags import flag_of
from training.flags import Options, parse_args

FILE = ["--weights", __file__]
HEAD = {"mlp": "mlp", "trainable": ["head.weight", "head.bias"]}
SPLINES = {"mlp": "kan", "trainable": ["head.weight", "blocks.0.mlp.fc1.spline_weight"]}
ALL = {"mlp": "mlp", "trainable": ["head.weight", "blocks.0.mlp.fc1.weight"]}
KAN, VIT, GKAN = {"mlp": "kan"}, {"mlp": "mlp"}, {"mlp": "gkan"}


# By command and flag: words with which it has no effect, what is known then, what is named; then
# words, and what is known, with which it is taken.
TABLE = {
    ("train", "val_split"): (["0.3"], {"val_folder": "val"}, "val/ or --val-path", ["0.3"], {}),
    ("train", "test_split"): (["0.3"], {"test_folder": "t"}, "test/ or --test-path", ["0.3"], {}),
    ("train", "allow_partial"): ([], {}, "--weights FILE", [*FILE], {}),
    ("train", "freeze_layers"): (["true"], {}, "--weights FILE", ["true", *FILE], {}),
    **{
        ("train", name): ([value], VIT, "--mlp kan or gkan", [value, "--mlp", "kan"], {})
        for name, value in {
            "kan_blocks": "0",
            "kan_hidden": "8",
            "kan_grid": "5",
            "kan_order": "2",
            "kan_range": "-1,1",
            "kan_at": "all",
        }.items()
    },
    ("train", "kan_rank"): (["16"], GKAN, "--mlp kan", ["16", "--mlp", "kan"], {}),
    ("train", "kan_groups"): (["4"], KAN, "--mlp gkan", ["4", "--mlp", "gkan"], {}),
    ("train", "kan_reg"): (["0.1"], HEAD, "splines that train", ["0.1", *FILE], SPLINES),
    ("train", "kan_lr_scale"): (["2"], ALL, "splines that train", ["2", *FILE], SPLINES),
    ("train", "adapt"): (["bias"], {}, "--weights FILE", ["bias", *FILE], {}),
    ("train", "lora_rank"): (["4"], {}, "--adapt lora", ["4", "--adapt", "lora", *FILE], {}),
    ("train", "lora_at"): (["all"], {}, "--adapt lora", ["all", "--adapt", "lora", *FILE], {}),
    ("train", "save_adapter"): ([], {}, "--weights FILE", [*FILE], {}),
    ("train", "folds"): (["5"], {"val_folder": "val"}, "val/ or --val-path", ["5"], {}),
    ("train", "ensemble"): ([], {}, "--folds N", ["--folds", "5"], {}),
    ("train", "layer_decay"): (["0.7", *FILE], HEAD, "--freeze-layers false", ["0.7", *FILE], ALL),
    ("train", "teacher_weight"): (["1"], {}, "--teacher FILE", ["1", "--teacher", __file__], {}),
    ("train", "cache_views"): (["4", *FILE], {"skip": 0}, "neither", ["4", *FILE], {"skip": 2}),
    ("predict", "explain_class"): (["a"], {}, "--explain DIR", ["a", "--explain", "out"], {}),
    ("explain", "photos"): (
        ["3"], {"plain": True}, "a Vision Transformer", ["3"], {"plain": False}
    ),
    ("explain", "prune"): (["0.3"], {"plain": False}, "--data DIR", ["0.3"], {"plain": True}),
    ("export", "data"): (["."], {}, "--int8", [".", "--int8"], {}),
    ("export", "runtime"): (["."], {}, "--format web", [".", "--format", "web"], {}),
    ("serve", "key"): ([__file__], {}, "--cert FILE", [__file__, "--cert", __file__], {}),
    ("pretrained", "merge"): ([], {}, "--save OUT", ["--save", "out"], {}),
    ("pretrained", "without_photos"): ([], {}, "--save OUT", ["--save", "out"], {}),
}  # fmt: skip
# What switches a flag off, which needs nothing.
OFF = {
    "test_split": "0",
    "freeze_layers": "false",
    "kan_rank": "full",
    "kan_reg": "0",
    "kan_lr_scale": "1",
    "adapt": "none",
    "layer_decay": "1",
    "teacher_weight": "0",
    "cache_views": "1",
    "prune": "0",
}
OTHERS = ("predict", "explain", "export", "pretrained", "serve")
TABLES = {name: importlib.import_module(name).Options for name in OTHERS} | {"train": Options}


def options_of(command, name, words):
    from system.flags import parse

    file = [] if command in ("train", "serve") else [__file__]
    words = [*file, *([flag_of(name)] if name else []), *words]
    return parse(TABLES[command], words, prog=f"{command}.py")


def refusal(command, name, words, known, capsys):
    """What is said of the flag, when it is read or once more is known; "" where it is taken."""
    try:
        options_of(command, name, words).refuse_idle(**known)
    except ValueError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err
    return ""


def test_every_row_that_needs_something_is_tried():
    rows = {
        (command, named.name): row
        for command, table in TABLES.items()
        for named, row in table.rows()
        if row.needs
    }
    assert rows.keys() == TABLE.keys()
    idle = {name for (_, name), row in rows.items() if row.idle}
    assert idle == OFF.keys()


@pytest.mark.parametrize("row", TABLE, ids=" ".join)
def test_a_flag_without_effect_is_refused_naming_what_it_needs_and_with_it_taken(row, capsys):
    lacking, known, needed, enough, known_then = TABLE[row]
    said = refusal(*row, lacking, known, capsys)
    assert f"{flag_of(row[1])} needs " in said
    assert needed in said
    assert refusal(*row, enough, known_then, capsys) == ""


@pytest.mark.parametrize("row", [row for row in TABLE if row[1] in OFF], ids=" ".join)
def test_a_value_that_switches_off_needs_nothing(row, capsys):
    assert refusal(*row, [OFF[row[1]]], TABLE[row][1], capsys) == ""


def test_what_cannot_be_told_yet_is_not_refused_yet(capsys):
    for name, words in {"kan_rank": ["16"], "layer_decay": ["0.7", *FILE]}.items():
        assert refusal("train", name, words, {}, capsys) == ""


@pytest.mark.parametrize("kind", ["bias", "affine", "lora"])
def test_what_was_not_pretrained_is_not_adapted(kind, capsys):
    assert "--weights FILE" in refusal("train", "adapt", [kind], {}, capsys)
    assert refusal("train", "adapt", [kind, *FILE], {}, capsys) == ""
    unfrozen = refusal("train", "adapt", [kind, *FILE, "--freeze-layers", "no"], {}, capsys)
    assert bool(unfrozen) == (kind == "bias")


def test_flags_that_idle_because_nothing_trains_are_taken():
    words = "--epochs 0 --lr 0.1 --mixup 0.2 --ema 0.9 --patience 3 --aug rand --save-steps 2"
    assert parse_args(words.split()).epochs == 0
    assert parse_args([*words.split(), "--dry-run"]).dry_run


@pytest.fixture
def trained(tmp_path, make_photos, monkeypatch, no_pictures, call):
    """Returns run(*words) -> status and all that is said, in a folder with a ViT's best.pth."""
    monkeypatch.chdir(tmp_path)
    photos = make_photos(tmp_path / "photos", ("cats", "dogs"), per_class=4, size=16)
    fast = ["--model", "vit_micro_patch8_64", "--img-size", "16"]

    def run(*words, small=fast):
        common = ["--data-path", photos, "--workers", "0"]
        status, out, err = call(train.main, *common, *small, *words)
        return status, out + err

    assert run("--epochs", "0", "--output", "vit")[0] == 0
    return run


def test_train_refuses_once_the_data_and_the_weights_have_told(trained, tmp_path, make_photos):
    status, said = trained("--weights", "vit/best.pth", "--layer-decay", "0.5", "--epochs", "1")
    assert (status, "--layer-decay needs blocks that train" in said) == (2, True)
    status, said = trained("--weights", "vit/best.pth", "--kan-rank", "16", small=[])
    assert (status, "--kan-rank needs --mlp kan" in said) == (2, True)
    assert "photos in 2 classes" not in said  # before a photo is opened
    for side in ("train", "val"):
        make_photos(
            tmp_path / "split" / side, ("cats", "dogs"), per_class=3, size=16, seed=len(side)
        )
    split = ["--data-path", tmp_path / "split"]
    status, said = trained("--val-split", "0.3", *split)
    assert (status, "--val-split needs data without a folder" in said) == (2, True)
    assert trained("--epochs", "0", *split)[0] == 0


@pytest.mark.parametrize("words", ["--adapt lora", "--mlp gkan", "--mlp kan --kan-blocks 0"])
def test_views_are_refused_where_nothing_would_be_kept_of_them(trained, words):
    weights = ["--weights", "vit/best.pth", "--cache-views", "2", "--dry-run"]
    status, said = trained(*weights, *words.split(), small=[])
    assert (status, "--cache-views needs frozen layers before all" in said) == (2, True)
    assert trained(*weights, "--mlp", "kan", "--kan-blocks", "last:1", small=[])[0] == 0


def test_the_same_flags_are_taken_where_they_have_an_effect(trained):
    words = ["--weights", "vit/best.pth", "--freeze-layers", "false", "--layer-decay", "0.5"]
    assert trained(*words, "--dry-run")[0] == 0
    kan = ["--mlp", "kan", "--kan-rank", "2", "--epochs", "0", "--output", "kan"]
    assert trained(*kan)[0] == 0
    # A file of a KAN-ViT needs no --mlp kan for the grid's flags.
    assert trained("--weights", "kan/best.pth", "--kan-grid", "5", "--dry-run", small=[])[0] == 0
    status, said = trained("--weights", "kan/best.pth", "--kan-reg", "0.1", "--dry-run", small=[])
    assert (status, "--kan-reg needs splines that train" in said) == (2, True)


def test_eval_takes_flags_of_training_with_one_line(trained):
    words = ["--eval", "--weights", "vit/best.pth", "--lr", "0.1", "--epochs", "3"]
    status, said = trained(*words, "--freeze-layers", "true", "--kan-reg", "0.1", small=[])
    lines = [line for line in said.splitlines() if line.startswith("no effect with --eval")]
    assert (status, len(lines)) == (0, 1)
    assert lines[0].endswith(": --epochs, --freeze-layers, --kan-reg, --lr")
    _, said = trained("--eval", "--weights", "vit/best.pth", "--batch-size", "3", small=[])
    assert "no effect" not in said


@pytest.mark.parametrize("page", ["training.md", "training.zh-TW.md"])
def test_the_documents_have_the_table(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if ".py | `--" in line]
    for command, name in TABLE:
        flag = f"`{flag_of(name)}`"
        (row,) = [row for row in rows if row[1] == f" {command}.py " and flag in row[2]]
        field = {f.name: row for f, row in TABLES[command].rows()}[name]
        assert field.needs.words == row[3].replace("`", "").strip() or "zh-TW" in page
        assert all(f"`{str(value).lower()}`" in row[4] for value in field.idle)
