"""Names of the hub become files: fetched once, resumed, checked, refused with one sentence."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from hub_server import HubServer
from oracles import IMAGES, as_timm, assert_same, hugging_face, vit

import export
import predict
import pretrained
import train
from formats import hub
from formats.finding import find_weights, near_weights, place_of
from pretrained import load_model
from system import downloads
from vit import catalogue

constants = pytest.importorskip("huggingface_hub").constants
NAME = "hf:someone/small"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub as this process sees it, and an empty cache."""
    server = HubServer()
    for place in (constants, sys.modules["huggingface_hub.hf_api"]):
        monkeypatch.setattr(place, "ENDPOINT", server.address, raising=False)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(downloads, "PAUSE_S", 0)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def served(folder, **more):
    """The files of a folder as `HubServer` serves them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} | more


@pytest.fixture
def small(server, tmp_path):
    """A model that the server has under NAME, as timm writes it."""
    model = vit(num_heads=4)
    as_timm(model, tmp_path / "theirs")
    server.repos["someone/small"] = served(tmp_path / "theirs", **{"code.py": b"import os"})
    return model


def blobs(tmp_path):
    return sorted((tmp_path / "cache" / "models--someone--small" / "blobs").iterdir())


# --- fetched --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hf:someone/small", "hf-hub:someone/small", "hf://someone/small",
                                  "https://huggingface.co/someone/small/tree/main"])  # fmt: skip
def test_a_name_gives_the_model_that_lies_there(server, small, name):
    assert_same(name, small)
    assert load_model(name).model.sizes.num_heads == 4  # as config.json beside it says


def test_tensors_and_configs_are_fetched_and_no_code(server, small):
    folder = find_weights(NAME).parent
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert not server.asked(ending="code.py")


def test_what_is_there_is_not_fetched_again(server, small):
    path = find_weights(NAME)
    server.requests.clear()
    assert find_weights(NAME) == path
    assert [request[1] for request in server.requests] == [
        "/api/models/someone/small/revision/main"
    ]


def test_other_programs_find_what_was_fetched(server, small):
    from huggingface_hub import hf_hub_download

    path = find_weights(NAME)
    assert hf_hub_download("someone/small", "model.safetensors", local_files_only=True) == str(path)


def test_a_revision_is_fetched_and_then_needs_no_network(server, small):
    commit = server.commit(server.repos["someone/small"])
    path = find_weights(f"{NAME}@{commit}")
    server.requests.clear()
    assert find_weights(f"{NAME}@{commit}") == path
    assert not server.requests


def test_a_sharded_model_comes_with_its_shards(server, tmp_path):
    model = hugging_face()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="500KB")
    files = served(tmp_path / "theirs")
    assert len(files) > 4
    server.repos["someone/small"] = files
    assert sorted(os.listdir(find_weights(NAME).parent)) == sorted(files)
    assert_same(NAME, model)
    del files[next(name for name in files if "-of-" in name)]
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"lacks model-0.*, which its model.safetensors.index"):
        find_weights(NAME)


def test_an_adapter_comes_with_its_backbone(server, small, tmp_path):
    lora = {"blocks.0.attn.proj.lora_A": torch.randn(2, 128) / 8,
            "blocks.0.attn.proj.lora_B": torch.randn(128, 2) / 8}  # fmt: skip
    tensors = {f"base_model.model.{name}.weight": value for name, value in lora.items()}
    told = {"peft_type": "LORA", "lora_alpha": 2, "r": 2}
    told["base_model_name_or_path"] = "someone/small"
    server.repos["someone/lora"] = {
        "adapter_model.safetensors": safetensors.torch.save(tensors),
        "adapter_config.json": json.dumps(told).encode(),
    }
    small.blocks[0].attn.proj.weight.data += torch.mm(*list(lora.values())[::-1])
    assert_same("hf:someone/lora", small)


def test_of_several_files_one_is_named(server, small):
    files = server.repos["someone/small"]
    files["a.safetensors"] = files["b.safetensors"] = files.pop("model.safetensors")
    with pytest.raises(ValueError, match=r"holds a.safetensors and b.safetensors: name one .*:a"):
        find_weights(NAME)
    assert find_weights(f"{NAME}:b.safetensors").name == "b.safetensors"
    with pytest.raises(ValueError, match=r"has no file c.pth; it has a.safetensors, b.safe"):
        find_weights(f"{NAME}:c.pth")


# --- broken off -----------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_again(server, small):
    server.break_after = 700_000
    assert_same(NAME, small)
    starts = [request[2] for request in server.asked(ending="model.safetensors")]
    assert starts[:2] == [None, "bytes=700000-"]


def test_a_killed_download_goes_on_where_it_was(server, small, tmp_path):
    """In another process: what is left on the disk decides."""
    cut = {"HF_ENDPOINT": server.address, "HF_HUB_CACHE": str(tmp_path / "cache")}
    script = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
from system import downloads
append = downloads._append
def killed(*words):
    try: append(*words)
    finally: os._exit(9)
downloads._append = killed
from formats.finding import find_weights; find_weights({NAME!r})"""
    server.break_after = 700_000
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | cut, check=False)
    assert ended.returncode == 9
    assert [path.stat().st_size for path in blobs(tmp_path) if path.suffix == ".part"] == [700_000]
    server.break_after = None
    server.requests.clear()
    assert_same(NAME, small)
    assert [request[2] for request in server.asked(ending=".safetensors")] == ["bytes=700000-"]


def test_content_that_is_not_what_was_promised_is_thrown_away(server, small, tmp_path):
    server.serves = b"<html>Please log in</html>"
    with pytest.raises(OSError, match="is not the file we know"):
        find_weights(NAME)
    server.serves = None
    assert_same(NAME, small)


# --- refused, each with one sentence --------------------------------------------------------------


def refused(name=NAME):
    with pytest.raises((ValueError, OSError)) as error:
        find_weights(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_repository_that_is_not_there(server, small):
    said = refused("hf:timm/vit_small_patch16_dinov3.lvd168m")
    assert f"there is no timm/vit_small_patch16_dinov3.lvd168m at {server.address}" in said
    assert "did you mean hf-hub:timm/vit_small_patch16_dinov3.lvd1689m?" in said
    assert "has no revision v7" in refused(f"{NAME}@v7")


def test_a_gated_repository_opens_with_a_token(server, small, monkeypatch):
    server.gated = {"someone/small"}
    said = refused()
    assert f"is gated: accept its licence at {server.address}/someone/small" in said
    assert "hf auth login" in said
    monkeypatch.setenv("HF_TOKEN", "bad")
    assert "is gated" in refused()
    monkeypatch.setenv("HF_TOKEN", "good")
    assert_same(NAME, small)
    assert {request[3] for request in server.asked(ending=".safetensors")} >= {"good"}


@pytest.mark.parametrize("says", [b"<html>Welcome</html>", b"{}", b"[]", b'{"id": 3}', b""])
def test_a_mirror_that_answers_nonsense(server, small, says):
    path = find_weights(NAME)
    server.says = says
    assert find_weights(NAME) == path  # what was fetched before serves
    said = refused("hf:someone/other")
    assert "does not answer as the hub does" in said
    assert "HF_ENDPOINT" in said


def test_without_a_network(server, small, monkeypatch, capsys):
    path = find_weights(NAME)
    server.shutdown()
    server.server_close()
    capsys.readouterr()
    assert find_weights(NAME) == path
    assert "taken instead" in capsys.readouterr().err
    said = refused("hf:someone/other")
    assert f"{server.address} cannot be reached" in said
    assert "folder that was copied here" in said


def test_offline_mode_asks_nobody(server, small, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()
    assert not server.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = find_weights(NAME)
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_weights(NAME) == path
    assert not server.requests


def test_a_full_disk_is_told_before_and_while_it_fills(server, small, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
        assert "has room for 0.0 MB: make some, or set HF_HOME" in refused()

    def full(asked, part):
        part.write_bytes(b"x" * 9)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_append", full)
    said = refused()
    assert "is full: 9 bytes of model.safetensors have come; make room" in said


def test_a_repository_without_weights_says_what_it_has(server):
    server.repos["someone/small"] = {"README.md": b"#", "tf_model.h5": b"x", "onnx/model.bin": b"x"}
    said = refused()
    assert "holds no weights that can be read here" in said
    assert "tf_model.h5" in said


@pytest.mark.parametrize("name", ["hf:small", "hf:a/b/c", "hf:", "hf:../..", "hf:a/b@",
                                  "hf-hub:a b/c", "https://huggingface.co/docs"])  # fmt: skip
def test_what_is_no_name_says_how_one_is_written(server, name):
    assert "such as hf-hub:timm/vit_small_patch16_dinov3.lvd1689m" in refused(name)
    assert not server.requests


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused()
    assert find_weights("best.pth").name == "best.pth"  # a file needs no package


# --- the commands ---------------------------------------------------------------------------------


def test_every_command_takes_a_name(server, small, call, make_photos, tmp_path):
    photos = make_photos(tmp_path / "photos", ("cats", "dogs"), 3, 64)
    photo = next(photos.glob("*/*"))
    status, out, err = call(predict.main, photo, "--weights", NAME, "--json")
    assert status == 0, err
    assert len(json.loads(out)["predictions"]) == 2
    assert "its page there tells the licence" in err  # said when it is fetched, once
    status, out, err = call(pretrained.main, NAME)
    assert (status, err) == (0, "")
    assert "attention heads: 4" in out
    assert call(export.main, NAME, "--format", "safetensors")[0] == 0
    assert (tmp_path / "small.safetensors").exists()  # here, not in the hub's cache
    words = ("--epochs", 0, "--workers", 1, "--device", "cpu", "--output", "run", "--save-adapter")
    status, _, err = call(train.main, "--data-path", photos, "--weights", NAME, *words)
    assert status == 0, err
    found = load_model(tmp_path / "run" / "adapter.safetensors").model(IMAGES)
    torch.testing.assert_close(found, load_model(tmp_path / "run" / "best.pth").model(IMAGES))


def test_the_licence_of_a_listed_family_is_said_when_it_is_fetched(server, small, capsys):
    name = "vit_small_patch16_dinov3.lvd1689m"
    server.repos[f"timm/{name}"] = server.repos["someone/small"]
    find_weights(name)  # as --list-models has it, without a prefix
    said = "DINOv3 has the licence dinov3-license (a licence of Meta's own: https://"
    assert said in capsys.readouterr().err
    find_weights(name)
    assert not capsys.readouterr().err  # it is here


def test_a_name_leads_to_places_here():
    assert str(place_of("hf-hub:timm/vit_x.y@main")) == "vit_x.y"
    assert str(place_of("weights/best.pth")) == "weights/best.pth"
    assert "vit_small_patch16_dinov3.lvd1689m" in near_weights("vit_small_dinov3")


def test_list_models_tells_licences_and_what_families_are_good_for(call):
    status, out, err = call(train.main, "--list-models")
    assert (status, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "cc-by-nc-4.0" in rows["vit_base_patch16_224.mae"]
    assert "never the head alone" in rows["vit_base_patch16_224.mae"]
    assert "dinov3-license" in rows["vit_small_patch16_dinov3.lvd1689m"]
    assert catalogue.BY_NAME.keys() <= rows.keys()


def test_the_listed_models_are_those_of_timm():
    timm = pytest.importorskip("timm")
    for name, family in catalogue.BY_NAME.items():
        told = timm.get_pretrained_cfg(name)
        assert told.hf_hub_id == catalogue.repository(name)
        assert (told.license, told.input_size[1]) == (family.licence, family.models[name][1])
    assert hub.is_hub_name("vit_base_patch16_224.mae")
    assert not hub.is_hub_name("vit_base_patch16_224")
