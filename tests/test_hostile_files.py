"""Files made to do harm: every command refuses them in one sentence, runs and writes nothing."""

import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import explain
import export
import predict
import pretrained
import train
from imaging.preprocess import Preprocess
from vit_model import create_model

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
CLASSES = ["daisy", "roses", "tulips"]
FAST = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--batch-size", "4"]
FAST += ["--workers", "0", "--amp", "off", "--epochs", "1"]
ROOM = 400_000_000  # bytes that a refusal may take; the files claim thousands of times as much


def state() -> dict:
    return create_model("custom", 3, **SIZES).state_dict()


def checkpoint(**changes) -> dict:
    """What train.py would write, with changes."""
    model = create_model("custom", 3, **SIZES)
    facts = {"config": model.config, "classes": CLASSES, "preprocess": Preprocess(16).to_dict()}
    facts |= {"epoch": 1, "metrics": {"val_acc": 0.5}, "version": 1}
    return {"model": model.state_dict(), **facts} | changes


def with_config(**changes) -> dict:
    values = checkpoint()
    return values | {"config": values["config"] | changes}


@pytest.fixture(scope="module")
def photos(tmp_path_factory, make_photos):
    return make_photos(tmp_path_factory.mktemp("data") / "photos", per_class=2, size=20)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> dict:
    """What lies below a folder: names and contents."""
    return {
        str(p): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
        if not p.is_fifo() and p.name != ".lock"
    }


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def refused(call, here):
    """Returns refused(main, *words, naming=...) -> the sentence with which the command ends."""

    def refused(main, *words, naming):
        before, memory = listing(here), peak()
        status, _, err = call(main, *words)
        assert (status, err.count("\n")) == (2, 1), err
        assert "Traceback" not in err
        assert naming in err
        assert listing(here) == before, "a refused command has written something"
        assert peak() - memory < ROOM
        return err

    return refused


# --- what a file can be -------------------------------------------------------------------------


class Payload:
    """Creates a file when unpickled by anything careless."""

    def __reduce__(self):
        return open, ("ran", "w")


class Call:
    """Calls a function when unpickled, which torch.load allows for a few."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(800):
                file.write(bytes(1 << 20))


def write_safetensors(path: Path, header: dict | bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text + bytes(64))


def entry(shape: list, start: int, end: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def holds_itself() -> dict:
    values: dict = {"epoch": 1}
    values["model"] = values | {"model": values}
    values["again"] = values
    return values


def doubled(levels: int = 45) -> dict:
    """A dict that a careless walk visits 2 ** levels times."""
    values: dict = {"leaf": 1}
    for _ in range(levels):
        values = {"model": values, "module": values}
    return values


def wide_without_rest() -> dict:
    """A megabyte whose shapes ask for a model of terabytes."""
    width = 2**16
    blocks = {f"blocks.0.{n}": torch.zeros(width) for n in ("norm1.weight", "norm1.bias")}
    return blocks | {
        "cls_token": torch.zeros(1, 1, width),
        "pos_embed": torch.zeros(1, 2, width),
        "patch_embed.proj.weight": torch.zeros(width, 1, 1, 1),
        "blocks.0.mlp.fc1.weight": torch.zeros(1, 1),
    }


def shared(blocks: int = 60) -> dict:
    """Many blocks of one and the same memory."""
    values, one = state(), state()["blocks.0.attn.qkv.weight"]
    for n in range(blocks):
        values |= {f"blocks.{n}.attn.qkv.weight": one, f"blocks.{n}.mlp.fc1.weight": one[:1]}
    return values


def changed(**tensors) -> dict:
    return state() | {name.replace("__", "."): value for name, value in tensors.items()}


PICKLES = {
    "a payload": lambda: checkpoint(extra=Payload()),
    "a payload among the tensors": lambda: {"model": state() | {"head.weight": Payload()}},
    "a bytearray of any length": lambda: checkpoint(extra=Call(bytearray, 1 << 36)),
    "memory that is not in the file": lambda: changed(
        head__weight=Call(torch.FloatTensor, 1 << 33)
    ),
    "a tensor of one number, repeated": lambda: changed(
        head__weight=torch.zeros(1, 1).expand(10**9, 10**6)
    ),
    "a repeated tensor beside the weights": lambda: checkpoint(extra=torch.zeros(1).expand(10**13)),
    "a sparse tensor": lambda: changed(
        head__weight=torch.empty(10**6, 16, layout=torch.sparse_coo)
    ),
    "a tensor without a device": lambda: changed(head__weight=torch.empty(3, 16, device="meta")),
    "a dict that holds itself": holds_itself,
    "a dict of dicts without an end": doubled,
    "shapes of a model of terabytes": wide_without_rest,
    "blocks that share their memory": shared,
    "no number": lambda: changed(head__weight=torch.full((3, 16), float("nan"))),
    "whole numbers": lambda: changed(norm__weight=torch.ones(16, dtype=torch.int64)),
    "a bias of another length": lambda: changed(head__bias=torch.zeros(2)),
    "a flat patch projection": lambda: changed(patch_embed__proj__weight=torch.zeros(16)),
    "positions without a shape": lambda: changed(pos_embed=torch.zeros(())),
    "an endless depth": lambda: with_config(depth=10**9),
    "a config of another size": lambda: with_config(embed_dim=65536, depth=1000),
}


def write_pickle(kind: str, path: Path) -> Path:
    torch.save(PICKLES[kind](), path)
    return path


OTHERS = {
    "bomb.pth": write_bomb,
    "bare.pth": lambda path: path.write_bytes(pickle.dumps(Payload(), 2)),
    "deep.pth": lambda path: path.write_bytes(b"\x80\x02" + b"}U\x01a" * 10**5 + b"s" * 10**5),
    "objects.npz": lambda path: np.savez(path, a=np.array([Payload()], object)),
    "terabytes.safetensors": lambda path: write_safetensors(path, {"a": entry([2**38], 0, 2**40)}),
    "overlap.safetensors": lambda path: write_safetensors(
        path, {"a": entry([8], 0, 32), "b": entry([8], 16, 48)}
    ),
    "negative.safetensors": lambda path: write_safetensors(path, {"a": entry([-8], 0, -32)}),
    "long.safetensors": lambda path: write_safetensors(path, {"a": entry([8], 0, 32)}, 1 << 31),
    "nested.safetensors": lambda path: write_safetensors(path, b'{"a":' + b"[" * 10**5),
    "pipe.pth": os.mkfifo,
}


# --- every place that loads weights -------------------------------------------------------------

PLACES = ["--weights", "--eval", "--teacher", "--resume", "predict", "explain", "export", "save"]


def words_for(place: str, path: Path, photos: Path) -> list:
    """The command that loads a file in some place."""
    data = ["--data-path", photos, *FAST, "--output", "out"]
    photo = next(photos.glob("*/*.jpg"))
    return {
        "--weights": [train.main, *data, "--weights", path],
        "--eval": [train.main, "--data-path", photos, "--eval", "--weights", path],
        "--teacher": [train.main, *data, "--teacher", path],
        "--resume": [train.main, "--resume", path.parent],
        "predict": [predict.main, photo, "--weights", path],
        "explain": [explain.main, path],
        "export": [export.main, path, "--format", "safetensors"],
        "save": [pretrained.main, path, "--save", "copy.pth"],
    }[place]


# Every file at every place is a matter of minutes: each file once and each place twice are not.
ALWAYS = ("a payload", "shapes of a model of terabytes")
PAIRS = [
    pytest.param(
        kind, place, marks=[] if place == "predict" or kind in ALWAYS else pytest.mark.slow
    )
    for kind in PICKLES
    for place in PLACES
]


@pytest.mark.parametrize(("kind", "place"), PAIRS)
def test_hostile_pickles_are_refused_everywhere(kind, place, here, photos, refused):
    name = "last.pth" if place == "--resume" else "evil.pth"
    path = write_pickle(kind, here / name)
    refused(*words_for(place, path, photos), naming=name)


@pytest.mark.parametrize("name", OTHERS)
def test_hostile_files_of_other_formats_are_refused(name, here, photos, refused):
    OTHERS[name](here / name)
    for place in ("--weights", "predict", "explain"):
        refused(*words_for(place, here / name, photos), naming=name)


def test_hostile_files_are_refused_as_last_pth(here, photos, refused):
    for name in ("bomb.pth", "bare.pth", "deep.pth", "negative.safetensors"):
        OTHERS[name](here / "last.pth")
        refused(train.main, "--resume", here, naming="last.pth")


def test_a_program_of_torch_export_is_never_opened(here, photos, refused, monkeypatch):
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: Path("ran").touch())
    with zipfile.ZipFile(here / "evil.pt2", "w") as archive:
        archive.writestr("archive/data/weights/weight_0", pickle.dumps(Payload()))
    refused(*words_for("predict", here / "evil.pt2", photos), naming="evil.pt2 is a program")


# --- facts that lie -----------------------------------------------------------------------------

LIES = {
    "sizes as text": with_config(img_size="16"),
    "a list for a size": with_config(depth=[2]),
    "a tensor for a size": with_config(num_heads=torch.tensor(2)),
    "keys that are no words": checkpoint(config={"name": "custom", 1: 2}),
    "a name that is no word": with_config(name=["custom"]),
    "a width that is none": with_config(mlp_hidden="wide"),
    "blocks that are none": with_config(mlp="kan", kan_blocks=5),
    "a rank that is none": with_config(mlp="kan", kan_rank=-1),
    "a range that is none": with_config(mlp="kan", kan_range=[0, "x"]),
    "splines without tensors": with_config(mlp="kan", kan_grid=1000, kan_order=10),
    "numbers as classes": checkpoint(classes=[1, 2, 3]),
    "a word as classes": checkpoint(classes="abc"),
    "a number as preprocessing": checkpoint(preprocess=7),
    "a mean that is none": checkpoint(preprocess={"img_size": 16, "mean": 3}),
    "images of another size": checkpoint(preprocess={"img_size": 4096}),
    "a list as metrics": checkpoint(metrics=[1]),
    "a word as accuracy": checkpoint(metrics={"val_acc": "high"}),
    "a word as version": checkpoint(version="one"),
}


@pytest.mark.parametrize("lie", LIES)
def test_facts_that_lie_are_refused(lie, here, photos, refused):
    torch.save(LIES[lie], here / "lie.pth")
    refused(*words_for("predict", here / "lie.pth", photos), naming="lie.pth")


@pytest.mark.parametrize("lie", ["a word as classes", "a word as accuracy", "sizes as text"])
def test_facts_that_lie_in_safetensors_and_onnx_are_refused(lie, here, photos, refused):
    facts = {k: json.dumps(v) for k, v in LIES[lie].items() if k != "model"}
    safetensors.torch.save_file(state(), here / "lie.safetensors", facts)
    refused(*words_for("predict", here / "lie.safetensors", photos), naming="lie.safetensors")
    if lie != "sizes as text":  # an .onnx has its sizes in its graph
        write_onnx(here / "lie.onnx", facts)
        refused(*words_for("predict", here / "lie.onnx", photos), naming="lie.onnx")


def write_onnx(path: Path, facts: dict[str, str], outputs: int = 3) -> None:
    """A graph that reads images of 16 pixels and averages them into logits."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = make.make_tensor("w", floats, [768, outputs], [0.0] * 768 * outputs)
    graph = make.make_graph(
        [make.make_node("Flatten", ["images"], ["flat"]),
         make.make_node("MatMul", ["flat", "w"], ["logits"])],
        "graph",
        [make.make_tensor_value_info("images", floats, ["batch", 3, 16, 16])],
        [make.make_tensor_value_info("logits", floats, ["batch", outputs])],
        [weights],
    )  # fmt: skip
    model = make.make_model(graph, ir_version=8, opset_imports=[make.make_opsetid("", 17)])
    make.set_model_props(model, facts)
    path.write_bytes(model.SerializeToString())


def test_onnx_with_more_outputs_than_classes_is_refused(here, photos, refused, call):
    facts = {k: json.dumps(v) for k, v in checkpoint().items() if k != "model"}
    write_onnx(here / "more.onnx", facts, outputs=5)
    refused(*words_for("predict", here / "more.onnx", photos), naming="more.onnx")
    write_onnx(here / "right.onnx", facts)
    assert call(*words_for("predict", here / "right.onnx", photos))[0] == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", '{"pretrained_cfg": 5, "hidden_act": ["x"]}'),
        ("config.json", '{"mean": 3, "std": [0.5]}'),
        ("config.json", '{"num_attention_heads": "two"}'),
        ("preprocessor_config.json", '{"image_mean": [NaN, 1, 2], "image_std": [1, 1, 1]}'),
    ],
)
def test_configs_beside_the_weights_that_lie_are_refused(name, content, here, photos, refused):
    torch.save(state(), here / "model.pth")
    (here / name).write_text(content, "utf-8")
    refused(*words_for("predict", here / "model.pth", photos), naming="model.pth")


def test_configs_beside_the_weights_that_cannot_be_read_count_for_nothing(here, photos, call):
    torch.save(state(), here / "model.pth")
    os.mkfifo(here / "config.json")
    (here / "preprocessor_config.json").write_text("[" * 10**5, "utf-8")
    assert call(*words_for("predict", here / "model.pth", photos))[0] == 0


@pytest.mark.parametrize(
    "content", ["[" * 10**5, '{"0": "a"}', '["a", "b", "c"]', "5", pickle.dumps(Payload())]
)
def test_hostile_class_indices_are_refused(content, here, photos, refused):
    torch.save(state(), here / "model.pth")
    data = content if isinstance(content, bytes) else content.encode()
    (here / "names.json").write_bytes(data)
    words = words_for("predict", here / "model.pth", photos)
    refused(*words, "--class-indices", here / "names.json", naming="names.json")


# --- a run that somebody else left --------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A folder with the run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(train, "show_start", lambda *_: None)
        patch.setattr(train, "write_results", lambda *_: None)
        words = ["--data-path", str(photos), *FAST, "--mlp", "kan", "--output", str(folder)]
        patch.setattr(sys, "argv", ["train.py", *words])
        assert train.main() == 0
    return folder


@pytest.fixture
def run(finished, here):
    """A copy of the finished run, which has an epoch to go."""
    folder = here / "run"
    folder.mkdir()
    for name in ("last.pth", "split.json"):
        (folder / name).write_bytes((finished / name).read_bytes())
    return folder


def inner(part: str, **changes):
    return lambda last: last | {part: last[part] | changes}


def first_state(value):
    def change(last):
        optimizer = last["optimizer"]
        spoilt = optimizer["state"] | {0: optimizer["state"][0] | {"exp_avg": value}}
        return last | {"optimizer": optimizer | {"state": spoilt}}

    return change


SPOILT = {
    "args that are none": lambda last: last | {"args": [1]},
    "args with keys that are no words": lambda last: last | {"args": last["args"] | {5: 5}},
    "epochs as text": inner("args", epochs="ten"),
    "a rate that is no number": inner("args", lr=float("nan")),
    "a batch below zero": inner("args", batch_size=-4),
    "an unknown optimiser": inner("args", opt="exec"),
    "a device of another kind": inner("args", device=7),
    "an optimiser of another model": lambda last: last | {
        "optimizer": {"state": {}, "param_groups": []}
    },
    "moments of another shape": first_state(torch.zeros(7)),
    "moments as text": first_state("all"),
    "a schedule with text for a step": inner("scheduler", last_epoch="now"),
    "a scaler that is none": lambda last: last | {"scaler": None},
    "random states that are none": inner("rng", torch="random"),
    "random states of another kind": inner("rng", numpy=["a", 5]),
    "an epoch that is none": inner("loader", epoch="first"),
    "sums of another shape": inner("loader", sums=torch.zeros(2)),
    "failures that are none": inner("loader", failed=[[1, 2, 3]]),
    "names that are none": lambda last: last | {"trainable": [1, 2]},
    "a history with formulas": lambda last: last | {"history": [{"epoch": "=cmd()"}]},
    "a best that is none": inner("best", val_acc="=1+1"),
    "images of another size": inner("preprocess", img_size=24),
    "a model of another depth": inner("config", depth=3),
    "a tensor that is none": inner("model", **{"norm.weight": 5}),
    "values that are no numbers": inner("model", **{"norm.weight": torch.full((128,), torch.inf)}),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_last_pth_is_refused(what, run, refused):
    last = torch.load(run / "last.pth", weights_only=True)
    torch.save(SPOILT[what](last), run / "last.pth")
    refused(train.main, "--resume", run, "--epochs", 2, naming="last.pth cannot be resumed: it ")


def spoilt_split(**changes):
    return lambda split: json.dumps(split | changes)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda split: "[" * 10**5,
        lambda split: "{" + json.dumps(split),
        lambda split: json.dumps([split]),
        spoilt_split(train=5),
        spoilt_split(classes=["daisy", "roses"]),
        spoilt_split(classes=[1, 2, 3]),
        spoilt_split(val={"daisy": [], "roses": [], "tulips": []}),
        spoilt_split(train={"daisy": [], "roses": ["r"], "tulips": ["t"]}),
    ],
)
def test_a_spoilt_split_is_refused(spoil, run, refused):
    split = json.loads((run / "split.json").read_text("utf-8"))
    (run / "split.json").write_text(spoil(split), "utf-8")
    refused(train.main, "--resume", run, "--epochs", 2, naming="split.json")


@pytest.mark.parametrize("name", ["../../../etc/passwd\0.jpg", "/dev/zero\0", "../" * 40 + "x"])
def test_a_split_whose_photos_are_elsewhere_is_refused(name, run, refused):
    split = json.loads((run / "split.json").read_text("utf-8"))
    split["train"]["daisy"] = [name]
    (run / "split.json").write_text(json.dumps(split), "utf-8")
    refused(train.main, "--resume", run, "--epochs", 2, naming="photos are gone")


def test_the_same_run_unspoilt_goes_on(run, call, monkeypatch):
    monkeypatch.setattr(train, "write_results", lambda *_: None)
    status, out, err = call(train.main, "--resume", run, "--epochs", 2)
    assert (status, err) == (0, ""), err
    assert "epoch 2/2" in out


# --- names --------------------------------------------------------------------------------------

NAMES = ["../../escaped", "/escaped", "..", "CON", "nul.txt", "a\0b", "x" * 400, "a\nb", "", "c:x"]


def test_class_names_never_leave_the_output_folder(here, photos, call):
    model = create_model("custom", len(NAMES), **SIZES)
    facts = {"config": model.config, "classes": NAMES}
    place = here / "deep" / "inside"
    place.mkdir(parents=True)
    photo = next(photos.glob("*/*.jpg"))
    for index in range(len(NAMES)):
        with torch.no_grad():
            model.head.bias.copy_(10.0 * (torch.arange(len(NAMES)) == index))
        torch.save(checkpoint(model=model.state_dict(), **facts), place / "named.pth")
        outputs = [x for flag in ("sort", "save") for x in (f"--{flag}", place / "out" / flag)]
        status, _, err = call(predict.main, photo, "--weights", place / "named.pth", *outputs)
        assert (status, err) == (0, "")
    found = {p.relative_to(here) for p in here.rglob("*")}
    inside = Path("deep/inside/out")
    assert {p for p in found if inside not in (p, *p.parents)} == {
        Path("deep"), Path("deep/inside"), Path("deep/inside/named.pth")
    }  # fmt: skip
    folders = [p.name for p in (place / "out" / "sort").iterdir()]
    assert len(folders) == len(NAMES)
    assert not {name.lower() for name in folders} & {"con", "nul.txt", "..", ""}
    assert all(len(name.encode()) <= 255 and name.isprintable() for name in folders)


MARKUP = ["<img src=x onerror=alert(1)>", '"onload="alert(1)', "=1+1", "$\\frac{", "&lt;b>"]


class Elements(HTMLParser):
    """Collects the elements of a page and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_classes_and_files_stay_text(here, call):
    classes = [*MARKUP, os.fsdecode(b"caf\xe9")]
    for hue, name in enumerate(classes):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(2):
            noise = Image.effect_noise((20 + hue, 20), 50 + number).convert("RGB")
            noise.save(here / "photos" / name / f'{number}"onload="alert(1)<script>.png')
    words = ["--data-path", here / "photos", *FAST, "--lr", 0, "--output", here / "run"]
    status, _, err = call(train.main, *words)
    assert (status, err) == (0, ""), err
    page = Elements((here / "run" / "report.html").read_text("utf-8"))
    assert not page.tags & {"script", "iframe"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(name in page.text for name in MARKUP)
    events = b"".join(p.read_bytes() for p in (here / "run").glob("events*"))
    assert b"&lt;img src=x" in events
    assert b"<img src=x" not in events
    assert b"<script" not in events
    for row in (here / "run" / "metrics.csv").read_text("utf-8").splitlines()[1:]:
        assert all(float(cell) == float(cell) for cell in row.split(","))
