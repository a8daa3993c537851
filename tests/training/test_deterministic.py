"""--deterministic: which of torch's ways are left, and that a resumed run keeps it."""

import json

import pytest
import torch

import train

SMALL = ["--model", "vit_micro_patch8_64", "--img-size", "32", "--batch-size", "4"]
SMALL += ["--workers", "0", "--amp", "off", "--mlp", "gkan"]


@pytest.fixture
def run(tmp_path, make_photos, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos", per_class=4)
    monkeypatch.setattr(train, "show_start", lambda *_: None)
    monkeypatch.setattr(train, "write_results", lambda *_: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    attention = torch.backends.cuda
    before = attention.mem_efficient_sdp_enabled(), attention.cudnn_sdp_enabled()
    yield lambda *words: call(train.main, *words)
    torch.use_deterministic_algorithms(False)
    attention.enable_mem_efficient_sdp(before[0])
    attention.enable_cudnn_sdp(before[1])


def deterministic():
    attention = torch.backends.cuda
    others = attention.mem_efficient_sdp_enabled() or attention.cudnn_sdp_enabled()
    return torch.are_deterministic_algorithms_enabled() and not others


def test_a_deterministic_run_resumes_as_one(run, tmp_path):
    data = ["--data-path", "photos", "--epochs", "1", "--output", "run"]
    assert run(*SMALL, *data, "--deterministic")[0] == 0
    assert deterministic()
    torch.use_deterministic_algorithms(False)
    assert run("--resume", "run", "--epochs", "2")[0] == 0
    assert deterministic()
    assert json.loads((tmp_path / "run/args.json").read_text("utf-8"))["deterministic"] is True


def test_without_the_flag_torch_is_left_alone(run):
    assert run(*SMALL, "--data-path", "photos", "--epochs", "1", "--output", "run")[0] == 0
    assert not torch.are_deterministic_algorithms_enabled()
