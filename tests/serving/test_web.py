"""export.py --format web: the folder is whole, says what 8 bits change, and spoils nothing."""

import hashlib
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_server import CLASSES, write_checkpoint

import export
from formats import onnx_files
from formats.onnx_files import onnx_session, weights_in_bytes
from imaging.digests import digests
from predicting.classifier import Classifier, open_exported
from pretrained import load_model
from serving import rounding, runtime, web

STAND_IN = {"ort.js": b"// runtime", "ort-wasm-simd-threaded.wasm": b"\0asm"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(
        tmp_path_factory.mktemp("run") / "flowers" / "best.pth", mlp="mlp", depth=1
    )


@pytest.fixture
def quick(monkeypatch):
    """Exports without the runtime and the work of making ONNX."""
    monkeypatch.setattr(export, "runtime_files", lambda folder: STAND_IN)
    monkeypatch.setattr(export, "web_bytes", lambda loaded, small: b"model")
    monkeypatch.setattr(export, "onnx_session", lambda model: None)
    monkeypatch.setattr(export, "session_forward", lambda session: None)
    monkeypatch.setattr(export, "changes", lambda *_: None)


def exported(call, checkpoint, folder, *words):
    return call(export.main, checkpoint, "--format", "web", "--output", folder, *words)


# --- the folder ---


def test_the_model_of_a_page_answers_as_the_checkpoint_and_tells_no_photos(checkpoint):
    loaded = load_model(checkpoint)
    loaded.facts["trained_on"] = "0123456789abcdef"
    data = export.web_bytes(loaded, True)
    assert len(data) < 0.4 * checkpoint.stat().st_size
    images = export.sample_images(loaded, 3)
    path = checkpoint.with_name("model.onnx")
    path.write_bytes(data)
    found = open_exported(str(path))
    assert found.facts["trained_on"] == ""
    wanted = Classifier.of(loaded).forward(images)
    assert torch.allclose(found.forward(images), wanted, atol=0.1 * float(wanted.detach().std()))


def test_a_page_finds_all_that_it_names(call, checkpoint, tmp_path, quick):
    status, out, _ = exported(call, checkpoint, tmp_path / "page")
    assert status == 0
    assert "MB of onnxruntime-web" in out
    assert "http.server" in out
    files = {path.relative_to(tmp_path / "page").as_posix() for path in tmp_path.rglob("page/**/*")}
    for path in [*tmp_path.glob("page/*.js"), tmp_path / "page" / "index.html"]:
        pattern = r"""(?:from|src=|href=)\s*"(?!data:)(?:\./)?([^"]+)\""""
        for name in re.findall(pattern, path.read_text("utf-8")):
            assert name in files, f"{path.name} wants {name}"
    facts = json.loads((tmp_path / "page" / "facts.json").read_text("utf-8"))
    assert facts["classes"] == CLASSES
    assert {facts["model"], f"runtime/{facts['runtime']}", "runtime/LICENSE.txt"} <= files
    assert facts["preprocess"]["img_size"] == 64
    assert str(tmp_path) not in json.dumps(facts)


def test_the_policy_stands_before_all_that_it_is_for(call, checkpoint, tmp_path, quick):
    exported(call, checkpoint, tmp_path / "page")
    start = (tmp_path / "page" / "index.html").read_text("utf-8")
    policy = start.index("Content-Security-Policy")
    assert "connect-src 'self'" in start
    assert all(policy < start.index(word) for word in ("<script", "stylesheet", "<link"))


def test_a_page_is_written_anew_and_leaves_what_is_not_its_own(call, checkpoint, tmp_path, quick):
    assert exported(call, checkpoint, tmp_path / "page")[0] == 0
    (tmp_path / "page" / "CNAME").write_text("flowers.example")
    (tmp_path / "page" / "model.onnx").write_bytes(b"old")
    assert exported(call, checkpoint, tmp_path / "page")[0] == 0
    assert (tmp_path / "page" / "CNAME").read_text() == "flowers.example"
    assert (tmp_path / "page" / "model.onnx").read_bytes() == b"model"


@pytest.mark.parametrize("kind", ["empty", "new/and/deep"])
def test_an_empty_or_new_folder_is_taken(kind, call, checkpoint, tmp_path, quick):
    (tmp_path / "empty").mkdir()
    assert exported(call, checkpoint, tmp_path / kind)[0] == 0


def test_a_folder_with_other_things_is_refused_before_any_work(call, checkpoint, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    (tmp_path / "thesis" / "facts.json").write_text("[1]")
    status, _, errors = exported(call, checkpoint, tmp_path / "thesis")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "thesis holds other files" in errors
    assert (tmp_path / "thesis" / "index.html").read_text() == "mine"
    status, _, errors = exported(call, checkpoint, tmp_path / "thesis" / "facts.json")
    assert status == 2
    assert "is a file" in errors


def test_without_onnxruntime_it_is_said_what_to_install(call, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(export, "runtime_files", lambda folder: STAND_IN)
    monkeypatch.setattr(export, "onnx_bytes", lambda *_: b"")
    status, _, errors = exported(call, checkpoint, tmp_path / "page")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "pip install" in errors
    assert not (tmp_path / "page" / "index.html").exists()


# --- the runtime ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package unpacked, whose files are small; their hashes are those that are wanted."""
    (tmp_path / "package" / "dist").mkdir(parents=True)
    (tmp_path / "package" / "package.json").write_text('{"version": "1.30.0"}')
    known = {}
    for name, (packed, _) in runtime.FILES.items():
        (tmp_path / "package" / "dist" / packed).write_bytes(packed.encode())
        known[name] = packed, hashlib.sha256(packed.encode()).hexdigest()
    monkeypatch.setattr(runtime, "FILES", known)
    return tmp_path / "package"


def test_the_runtime_comes_from_a_folder_and_from_an_archive(package, tmp_path):
    wanted = {name: packed.encode() for name, (packed, _) in runtime.FILES.items()}
    assert runtime.runtime_files(str(package)) == wanted
    assert runtime.runtime_files(str(tmp_path)) == wanted  # where the package lies
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(package, "package")
    assert runtime._of_archive(tmp_path / "a.tgz") == wanted


def test_another_version_a_damaged_file_and_a_missing_one_are_told(package):
    first = package / "dist" / runtime.FILES["ort.js"][0]
    first.write_bytes(b"other")
    with pytest.raises(ValueError, match="is damaged"):
        runtime.runtime_files(str(package))
    (package / "package.json").write_text('{"version": "1.2.3"}')
    with pytest.raises(ValueError, match=r"is of version 1\.2\.3: name the npm package"):
        runtime.runtime_files(str(package))
    first.unlink()
    with pytest.raises(ValueError, match="does not hold dist/ort"):
        runtime.runtime_files(str(package))


def test_a_damaged_archive_is_told(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"no archive")
    with pytest.raises(OSError, match="delete it to download it anew"):
        runtime._of_archive(tmp_path / "a.tgz")


def test_without_a_network_the_flag_is_named(call, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/")
    monkeypatch.chdir(tmp_path)
    status, _, errors = exported(call, checkpoint, tmp_path / "page")
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "http://127.0.0.1:9/onnxruntime-web/-/onnxruntime-web-" in errors
    assert "--runtime" in errors


def test_the_registry_is_npms_own(monkeypatch):
    monkeypatch.setenv("npm_config_registry", "https://mirror.example/npm/")
    assert runtime.registry() == "https://mirror.example/npm/"
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    assert runtime.registry() == "https://registry.npmjs.org/"


# --- 8 bits ---


def graph_of(weights: dict[str, np.ndarray]):
    """ONNX whose answer is the sum of its weights."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    nodes = [make.make_node("ReduceSum", [name], [f"sum {name}"], keepdims=0) for name in weights]
    nodes.append(make.make_node("Sum", ["x", *(f"sum {name}" for name in weights)], ["y"]))
    ends = [[make.make_tensor_value_info(name, 1, [1])] for name in ("x", "y")]
    stored = [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = make.make_graph(nodes, "g", *ends, stored)
    opsets = [make.make_opsetid("", 18)]
    return make.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("shape", [(192, 96), (197, 64), (3, 100, 40), (64, 3, 16, 16), (1, 5000)])
def test_weights_of_any_shape_are_restored_to_within_half_a_step(shape):
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weights[..., 0] = 0  # a column of zeros has no step
    data = graph_of({"w": weights})
    small = weights_in_bytes(data)
    assert len(small) < 0.45 * len(data)
    (found,) = onnx_session(small).run(None, {"x": np.zeros(1, np.float32)})
    error = abs(float(found[0]) - float(weights.sum()))
    assert error < np.abs(weights).max() / 254 * np.sqrt(weights.size)


def test_parts_of_different_sizes_keep_their_precision():
    weights = np.ones((128, 64), np.float32)
    weights[:64] = 1000 * np.linspace(-1, 1, 64)  # a spline's higher powers, say
    weights[64:] = 0.01 * np.linspace(-1, 1, 64)[::-1] + 0.02
    stored, steps, shape = onnx_files._in_blocks(weights)
    restored = (stored * steps).reshape(shape)
    np.testing.assert_allclose(restored[64:], weights[64:], rtol=0.01)


def photos_in(folder: Path, count=4) -> list[str]:
    paths = [folder / name / f"{n}.png" for name in CLASSES for n in range(count)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 70), (number * 20, 90, 255 - number * 20)).save(path)
    return [path.relative_to(folder).as_posix() for path in paths]


def test_the_photos_are_those_that_the_run_kept_also_where_they_lie_now(checkpoint, tmp_path):
    names = photos_in(tmp_path / "now")
    sides = {c: [n for n in names if n.startswith(c)] for c in CLASSES}
    train, val = (
        {c: paths[part] for c, paths in sides.items()} for part in (slice(2), slice(2, 4))
    )
    split = {"classes": CLASSES, "train": train, "val": val, "choice": {}, "groups": []}
    (tmp_path / "split.json").write_text(json.dumps(split))
    (tmp_path / "args.json").write_text(json.dumps({"data_path": str(tmp_path / "gone")}))
    run, model = str(tmp_path / "best.pth"), Classifier.of(load_model(checkpoint))
    assert rounding.own_photos(run, None, model) == []
    found = rounding.own_photos(run, str(tmp_path / "now"), model)
    kept = {str(tmp_path / "now" / name) for names in val.values() for name in names}
    assert set(found) == kept
    (tmp_path / "split.json").unlink()
    assert len(rounding.own_photos(run, str(tmp_path / "now"), model)) == len(names)
    model.facts["trained_on"] = digests([str(tmp_path / "now" / name) for name in names[:-1]])
    assert rounding.own_photos(run, str(tmp_path / "now"), model) == [
        str(tmp_path / "now" / names[-1])
    ]


def test_changed_answers_are_counted_and_advised_against(checkpoint, tmp_path):
    paths = [str(tmp_path / name) for name in photos_in(tmp_path)]
    (tmp_path / "no photo.jpg").write_bytes(b"x")
    classifier = Classifier.of(load_model(checkpoint))
    same = rounding.changes(
        classifier, classifier.forward, [*paths, str(tmp_path / "no photo.jpg")]
    )
    assert same == (len(paths), 0, 0.0)
    assert same.advice == ""
    other = rounding.changes(classifier, lambda images: -classifier.forward(images), paths)
    assert other.changed == len(paths)
    assert "--int8 false" in other.advice
    assert f"{len(paths)} of {len(paths)} answers (100.0%)" in other.words
    assert rounding.changes(classifier, classifier.forward, []) is None


def test_without_photos_a_line_says_so(call, checkpoint, tmp_path, quick):
    _, out, _ = exported(call, checkpoint, tmp_path / "page")
    assert "no photo is here that the model was not trained on (--data DIR)" in out
    _, out, _ = exported(call, checkpoint, tmp_path / "page", "--int8", "false")
    assert "8 bits" not in out


def test_facts_hold_the_features_by_which_a_photo_is_unknown(checkpoint):
    classifier = Classifier.of(load_model(checkpoint))
    facts = web.facts_of_page(classifier, "flowers", b"")
    assert facts["known"] == {}
    assert json.load(io.StringIO(json.dumps(facts)))["answers"] == "softmax"
