"""--compile changes no number and no name, and a machine without a compiler loses a line only."""

import contextlib
import functools
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from training import compiling
from training.compiling import compile_blocks
from vit_model import create_model


def small(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = create_model("custom", num_classes=3, **sizes | options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def compiled(model):
    images = torch.zeros(3, 3, 16, 16)
    compile_blocks(model, model, images, contextlib.nullcontext())
    return model


def gradients(model, images):
    model.train().zero_grad()
    model(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def without_code(monkeypatch):
    """Graphs are found and differentiated as ever, but no code is generated, which takes long."""
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(compiling.torch, "compile", quick)
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"mlp": "kan", "kan_rank": 2}, {"mlp": "gkan"}])
def test_compiled_blocks_give_the_same_gradients_under_the_same_names(without_code, options):
    model, images = small(**options), torch.randn(3, 3, 16, 16)
    names, expected = list(model.state_dict()), gradients(model, images)
    plain = model.eval()(images)
    compiled(model)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, gradient in gradients(model, images).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert torch.equal(model.eval()(images), plain)


def test_it_works_with_recomputed_activations_and_mixed_precision(without_code):
    model, images = small(mlp="kan"), torch.randn(3, 3, 16, 16)
    model.grad_checkpointing = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(model, images)
        compiled(model)
        for name, gradient in gradients(model, images).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0.1, atol=0.1)


def test_a_compiler_that_fails_costs_one_line(monkeypatch, capsys):
    def broken(function):
        def fail(*arguments):
            raise RuntimeError("no compiler found\nwith a long explanation")

        return fail

    monkeypatch.setattr(compiling.torch, "compile", broken)
    model, images = small(), torch.randn(3, 3, 16, 16)
    expected = gradients(model, images)
    compiled(model)
    err = capsys.readouterr().err
    assert err == "warning: --compile failed, going on without: no compiler found\n"
    assert all(torch.equal(g, expected[n]) for n, g in gradients(model, images).items())


def run_compiled(tmp_path, photos, **environment):
    command = [sys.executable, ROOT / "train.py", "--data-path", photos, "--compile", "--mlp"]
    command += ["kan", "--model", "vit_micro_patch8_64", "--img-size", "16", "--workers", "0"]
    command += ["--amp", "off", "--epochs", "1", "--batch-size", "6", "--output", "out"]
    return subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")} | environment,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_machine_without_a_compiler_trains_on(tmp_path, make_photos):
    photos = make_photos(tmp_path / "photos", size=20)
    done = run_compiled(tmp_path, photos, CC="/nowhere/cc", CXX="/nowhere/c++")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: --compile failed, going on without") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_compiled_run_ends_in_a_plain_checkpoint(tmp_path, make_photos):
    photos = make_photos(tmp_path / "photos", size=20)
    done = run_compiled(tmp_path, photos)
    assert done.returncode == 0, done.stderr
    assert "--compile failed" not in done.stderr
    best = torch.load(tmp_path / "out/best.pth", weights_only=True)
    create_model(**best["config"]).load_state_dict(best["model"])
