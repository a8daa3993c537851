"""export.py: files for other programs give the checkpoint's logits, and say what they are."""

import copy
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import export
import predict
from formats.portable import (
    PortableGroupKANLinear,
    PortableKANLinear,
    PowerBasis,
    norms_folded,
    portable,
)
from imaging.digests import digests
from imaging.preprocess import Preprocess
from kan import GroupKANLinear, KANLinear
from predicting import classifier
from pretrained import load_model
from vit_model import create_model

CLASSES = ["daisy", "郁金香", "roses"]
KINDS = {
    "vit": {"mlp": "mlp"},
    "kan": {"mlp": "kan"},
    "low rank": {"mlp": "kan", "kan_rank": 3, "kan_blocks": "last:1"},
    "gkan": {"mlp": "gkan", "kan_groups": 4},
    "features": {"mlp": "gkan", "kan_groups": "feature", "kan_blocks": "last:1"},
}


def write_checkpoint(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    model = create_model(
        "custom", 3, embed_dim=16, depth=2, num_heads=2, img_size=32, patch_size=8, **KINDS[kind]
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    facts = {"classes": CLASSES, "preprocess": Preprocess(img_size=32).to_dict(), "epoch": 2}
    facts |= {"metrics": {"val_acc": 0.75}, "version": 1, "config": model.config}
    torch.save({"model": model.state_dict(), **facts}, folder / "best.pth")
    return folder / "best.pth"


@pytest.fixture
def photo(tmp_path) -> str:
    image = Image.effect_noise((50, 40), 80).convert("RGB")
    image.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def run(monkeypatch, program, *argv) -> int:
    monkeypatch.setattr(sys, "argv", [program.__name__ + ".py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        program.run_cli(program.main)
    return exit_.value.code


def predictions(monkeypatch, capsys, photo, weights) -> dict[str, float]:
    capsys.readouterr()
    assert run(monkeypatch, predict, photo, "--weights", weights, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    return {entry["class"]: entry["probability"] for entry in json.loads(line)["predictions"]}


# ------------------------------------------------------------------------- portable layers


@pytest.mark.parametrize("outside", ["linear", "held"])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("cells", [1, 2, 5, 8])
def test_portable_layers_equal_the_layers_of_kan(outside, order, cells):
    torch.manual_seed(0)
    x = torch.randn(4, 7, 12) * 2  # many values lie outside the grids
    layers = [
        KANLinear(12, 5, cells, order, outside=outside, bias=True),
        KANLinear(12, 30, cells, order, outside=outside, spline_rank=2, bias=False),
        GroupKANLinear(12, 5, 3, grid_size=cells, spline_order=order, outside=outside),
    ]
    for layer, kind in zip(
        layers, (PortableKANLinear, PortableKANLinear, PortableGroupKANLinear), strict=True
    ):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(0, 0.3)
            layer.set_range(-0.3 - torch.rand(layer.curves), 0.5 + torch.rand(layer.curves))
            assert torch.allclose(kind(layer)(x), layer(x), atol=1e-4)


def test_portable_layers_follow_knots_that_are_not_uniform():
    torch.manual_seed(0)
    layer = KANLinear(6, 4, outside="linear")
    with torch.no_grad():
        layer.update_grid(torch.randn(300, 6))
        layer.spline_weight.normal_()
        x = torch.randn(50, 6) * 3
        assert torch.allclose(PortableKANLinear(layer)(x), layer(x), atol=1e-4)


def test_the_basis_stays_small_on_the_grid():
    functions = PowerBasis(KANLinear(1, 1, outside="held"))(torch.linspace(-1, 1, 101)[:, None])
    assert len(functions) == 5 + 3 - 1
    assert max(float(values.abs().max()) for values in functions) <= 2.5**3


def test_a_portable_copy_leaves_the_model_alone():
    model = create_model(
        "custom", 3, embed_dim=16, depth=1, num_heads=2, img_size=32, patch_size=8, mlp="kan"
    )
    copy = portable(model)
    assert isinstance(model.blocks[0].mlp.fc1, KANLinear)
    assert isinstance(copy.blocks[0].mlp.fc1, PortableKANLinear)


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_gives_the_same_answers_and_says_what_it_is(
    kind, tmp_path, monkeypatch, capsys, photo
):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    checkpoint = write_checkpoint(tmp_path, kind)
    assert run(monkeypatch, export, checkpoint) == 0
    assert "checked" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.onnx",
        "best.pth",
        "photo.png",
    ]
    model = onnx.load(tmp_path / "best.onnx")
    onnx.checker.check_model(model)
    facts = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert facts["classes"] == CLASSES
    assert facts["preprocess"]["img_size"] == 32
    assert facts["metrics"]["val_acc"] == 0.75
    (shape,) = [value.type.tensor_type.shape for value in model.graph.input]
    assert shape.dim[0].dim_param
    exported = classifier.open_exported(str(tmp_path / "best.onnx"))
    images = torch.randn(7, 3, 32, 32)
    loaded = load_model(checkpoint)
    with torch.inference_mode():
        assert torch.allclose(exported.forward(images), loaded.model(images), atol=1e-4)
    assert predictions(monkeypatch, capsys, photo, tmp_path / "best.onnx") == pytest.approx(
        predictions(monkeypatch, capsys, photo, checkpoint), abs=1e-4
    )


@pytest.mark.parametrize("kind", ["vit", "kan"])
def test_pt2_gives_the_same_logits_and_is_not_opened_by_predict(
    kind, tmp_path, monkeypatch, capsys
):
    checkpoint, target = write_checkpoint(tmp_path, kind), tmp_path / "model.pt2"
    assert run(monkeypatch, export, checkpoint, "--output", target) == 0
    images, model = torch.randn(2, 3, 32, 32), load_model(checkpoint).model
    program = torch.export.load(target).module()
    assert torch.allclose(program(images), model(images), atol=1e-4)
    assert run(monkeypatch, predict, "x.jpg", "--weights", target) == 2
    assert "model.pt2 is a program" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["vit", "kan"])
def test_safetensors_give_the_same_answers(kind, tmp_path, monkeypatch, capsys, photo):
    checkpoint = write_checkpoint(tmp_path, kind)
    target = tmp_path / "new" / "model.safetensors"
    assert run(monkeypatch, export, checkpoint, "--output", target) == 0
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert predictions(monkeypatch, capsys, photo, target) == pytest.approx(
        predictions(monkeypatch, capsys, photo, checkpoint), abs=1e-4
    )


def test_int8_weights_are_smaller_and_answer_alike(tmp_path, monkeypatch, capsys, photo):
    pytest.importorskip("onnxruntime")
    checkpoint = write_checkpoint(tmp_path, "vit")
    for name in CLASSES[:2]:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "data" / name / "x.png")
    assert run(monkeypatch, export, checkpoint, "--int8", "--data", tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert "float32" in out
    assert "int8" in out
    exact = predictions(monkeypatch, capsys, photo, checkpoint)
    rounded = predictions(monkeypatch, capsys, photo, tmp_path / "best_int8.onnx")
    assert rounded == pytest.approx(exact, abs=0.15)
    assert rounded != exact


def class_folders(folder: Path) -> list[Path]:
    """Four photos of two classes."""
    paths = [folder / name / f"{n}.png" for name in CLASSES[:2] for n in range(2)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * number, 90, 0)).save(path)
    return paths


def test_photos_of_other_classes_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnxruntime")
    checkpoint, data = write_checkpoint(tmp_path, "vit"), tmp_path / "data"
    class_folders(data)
    for name in CLASSES[:2]:
        (data / name).rename(data / f"other {name}")
    before = sorted(tmp_path.rglob("*"))
    assert run(monkeypatch, export, checkpoint, "--int8", "--data", data) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"--data {data} holds no folder named after one of the model's classes" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("trained", [2, 4])
def test_photos_that_were_trained_on_are_left_out_of_the_accuracy(tmp_path, capsys, trained):
    pytest.importorskip("onnxruntime")
    paths = class_folders(tmp_path / "data")
    loaded = load_model(write_checkpoint(tmp_path, "vit"))
    loaded.weights.meta["trained_on"] = digests(paths[:trained])
    export.export_int8(loaded, tmp_path / "x.onnx", str(tmp_path / "data"))
    told = capsys.readouterr().out
    assert f"not judged: {trained} that the model was trained on" in told
    accuracies = re.findall(r" of 48 +(\S+)$", told, re.MULTILINE)
    fresh = {"unknown"} if trained == 4 else {"0.0000", "0.5000", "1.0000"}
    assert len(accuracies) == 2
    assert {*accuracies} <= fresh
    loaded.weights.meta["trained_on"] = ""
    export.export_int8(loaded, tmp_path / "x.onnx", str(tmp_path / "data"))
    assert "does not tell which photos it was trained on" in capsys.readouterr().out


def unfolded(model):
    """The same function: factors of 1000 in some channels of the norms, undone by the maps."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.blocks:
            for norm, after in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[::4] *= 1000
                norm.bias[::4] *= 1000
                after.weight[:, ::4] /= 1000
    return model


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"qkv_bias": False}])
def test_norms_are_folded_into_the_maps_after_them(options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
    model = create_model("custom", 3, **sizes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    images = torch.randn(2, 3, 32, 32)
    folded = norms_folded(model)
    assert all(block.norm1.weight.eq(1).all() for block in folded.blocks)
    for found, wanted in zip(folded.look(images), model.look(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    kan = create_model("custom", 3, mlp="kan", **sizes).eval()
    torch.testing.assert_close(norms_folded(kan)(images), kan(images), rtol=1e-4, atol=1e-5)


def test_int8_changes_no_more_answers_however_norms_are_stored(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "photos_per_second", lambda *_: 0.0)
    loaded = load_model(write_checkpoint(tmp_path, "vit"))
    images = export.pictures(loaded)
    answers = {}
    for name, model in (("plain", loaded.model), ("unfolded", unfolded(loaded.model))):
        export.export_int8(replace(loaded, model=model), tmp_path / f"{name}.onnx", None)
        told = re.search(r"int8 .*?(\d+) of 48 +unknown", capsys.readouterr().out)
        forward = predict.open_classifier(str(tmp_path / f"{name}.onnx"), None, "cpu").forward
        # The steps of 8 bits follow from all photos of a batch.
        found = [forward(some).argmax(1) for some in images.split(export.BATCH)]
        answers[name] = torch.cat(found)
        with torch.inference_mode():
            changed = int((answers[name] != loaded.model(images).argmax(1)).sum())
        assert int(told[1]) == changed
    assert int((answers["plain"] != answers["unfolded"]).sum()) <= 1


def test_answers_that_8_bits_change_are_told_without_data(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    loaded = load_model(write_checkpoint(tmp_path, "vit"))
    monkeypatch.setattr(export, "norms_folded", unfolded)
    export.export_int8(loaded, tmp_path / "x.onnx", None)
    out = capsys.readouterr().out
    assert re.search(r"8 bits change \d+ of 48 answers, on drawn flowers and noise", out)
    assert "float32" in out
    assert re.search(r"float32 .* 0 of 48", out)


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_a_wrong_export_is_not_written_and_an_earlier_one_stays(
    kind, tmp_path, monkeypatch, capsys
):
    checkpoint = write_checkpoint(tmp_path, "vit")
    earlier = tmp_path / f"best.{kind}"
    earlier.write_bytes(b"an earlier one")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert run(monkeypatch, export, checkpoint, "--format", kind) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert earlier.read_bytes() == b"an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"best.pth", earlier.name}


def test_what_rounding_changes_is_judged_by_how_large_logits_are(tmp_path):
    loaded = export.load_model(write_checkpoint(tmp_path, "vit"))
    wanted = export.Classifier.of(loaded).forward
    with pytest.raises(ValueError, match="differ by"):
        export.checked_difference(loaded, lambda images: wanted(images) + 5e-4)
    with torch.no_grad():
        loaded.model.head.bias += 100
    assert export.checked_difference(loaded, lambda images: wanted(images) + 5e-4) < 1e-3


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert run(monkeypatch, predict, "x.jpg", "--weights", tmp_path / "model.onnx") == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a model at all"])
def test_files_that_are_no_exports_are_refused(content, tmp_path, monkeypatch, capsys):
    (tmp_path / "model.onnx").write_bytes(content)
    assert run(monkeypatch, predict, "x.jpg", "--weights", tmp_path / "model.onnx") == 2
    error = capsys.readouterr().err
    assert "not a file that export.py wrote" in error
    assert len(error.splitlines()) == 1


def test_the_checkpoint_is_never_overwritten(tmp_path, monkeypatch, capsys):
    checkpoint = write_checkpoint(tmp_path, "vit")
    before = checkpoint.read_bytes()
    assert run(monkeypatch, export, checkpoint, "--output", checkpoint) == 2
    assert checkpoint.read_bytes() == before
    assert run(monkeypatch, export, checkpoint, "--int8", "--format", "pt2") == 2


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_no_file_names_a_folder_of_the_machine(ending, tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path, "kan")
    target = tmp_path / f"model{ending}"
    assert run(monkeypatch, export, checkpoint, "--output", target) == 0
    assert str(Path(export.__file__).parent).encode() not in target.read_bytes()
    assert b"site-packages" not in target.read_bytes()
