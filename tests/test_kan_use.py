"""KAN layers as modules among others: saved, copied, compiled, exported, distributed."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import kan
from kan import KAN, GroupKANLinear, KANLinear
from splines import compiler, native

LAYERS = {
    "full": lambda **o: KANLinear(6, 5, init="glorot", bias=True, **o),
    "rank": lambda **o: KANLinear(6, 5, init="glorot", spline_rank=2, **o),
    "group": lambda **o: GroupKANLinear(6, 5, 3, **o),
}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def test_state_dict_carries_the_grid_into_a_layer_of_another_size(make):
    layer = make(grid_range=(-2, 3))
    other = make(grid_size=9)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(7, 6)
    assert torch.equal(other(x), layer(x))
    assert other.grid_size == 5


def test_efficient_kans_checkpoint_loads():
    grid = (torch.arange(-3, 9) * 0.4 - 1).expand(6, -1).contiguous()
    state = {
        "layers.0.base_weight": torch.randn(5, 6),
        "layers.0.spline_weight": torch.randn(5, 6, 8),
        "layers.0.spline_scaler": torch.randn(5, 6),
        "layers.0.grid": grid,
    }
    model = KAN([6, 5])
    model.load_state_dict(state)
    x = torch.rand(9, 6) - 0.5
    weight = state["layers.0.spline_weight"] * state["layers.0.spline_scaler"][..., None]
    expected = nn.functional.silu(x) @ state["layers.0.base_weight"].t()
    expected += torch.einsum("nij,oij->no", model.layers[0].b_splines(x), weight)
    torch.testing.assert_close(model(x), expected)


def test_a_stored_grid_that_is_not_uniform_counts():
    layer = KANLinear(3, 2, init="glorot")
    state = layer.state_dict() | {"grid": (torch.rand(3, 12) + 0.1).cumsum(1) - 3}
    layer.load_state_dict(state)
    uniform = KANLinear(3, 2, init="glorot")
    uniform.load_state_dict({k: v for k, v in state.items() if k != "grid"}, strict=False)
    x = torch.randn(20, 3)
    assert (layer(x) - uniform(x)).abs().max() > 1e-3


def test_deepcopy_and_to(make):
    layer = make()
    x = torch.randn(4, 6)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    twin.grid += 1
    assert not torch.equal(twin.grid, layer.grid)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.grid.dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.05)
    double = layer.double()
    assert double.grid.dtype == torch.float64
    assert double(x.double()).dtype == torch.float64


def test_default_dtype_bfloat16(make):
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = make()
        y = layer(torch.randn(4, 6))
        y.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.bfloat16
    assert layer.grid.dtype == torch.float32


def test_meta_device(make):
    with torch.device("meta"):
        layer = make()
    assert layer(torch.empty(3, 6, device="meta")).shape == (3, 5)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(3, 6)).isfinite().all()
    assert layer.low[0] == -1


def test_functional_call(make):
    layer = make()
    state = {k: v + 0.25 for k, v in layer.state_dict().items()}
    x = torch.randn(4, 6)
    found = torch.func.functional_call(layer, state, (x,))
    layer.load_state_dict(state)
    torch.testing.assert_close(found, layer(x))


def test_per_sample_gradients_and_forward_mode(make):
    layer = make().double()
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    x = torch.randn(3, 6, dtype=torch.float64)

    def loss(parameters, row):
        return torch.func.functional_call(layer, parameters, (row,)).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    whole = torch.func.grad(lambda p: loss(p, x))(parameters)
    for name, gradient in rows.items():
        torch.testing.assert_close(gradient.sum(0), whole[name])
    tangent = torch.randn_like(x)
    _, forward = torch.func.jvp(layer, (x,), (tangent,))
    x.requires_grad_()
    jacobian = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(forward, torch.einsum("noim,im->no", jacobian, tangent))


def test_torch_compile_in_one_graph(make):
    layer = make()
    x = torch.randn(4, 6, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_torch_compile_with_inductor(make):
    layer = make()
    x = torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_torch_export(make):
    layer = make().eval()
    x = torch.randn(4, 6)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    other = torch.randn(9, 6)
    torch.testing.assert_close(program.module()(other), layer(other))


def _train_on_rank(rank, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(Path(folder, "store")), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = KAN([6, 4, 3])
    torch.manual_seed(rank + 1)
    model(torch.randn(20 + rank, 6), update_grid=True)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    parallel(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    torch.save(model.state_dict(), Path(folder, f"{rank}.pth"))
    torch.distributed.barrier()  # neither may hang up while the other still talks
    torch.distributed.destroy_process_group()


def test_distributed_processes_stay_equal(tmp_path):
    mp.spawn(_train_on_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_steps_are_repeatable_to_the_bit():
    def train():
        torch.manual_seed(0)
        model = nn.Sequential(GroupKANLinear(96, 64), KANLinear(64, 8, init="glorot"))
        x = torch.randn(900, 96)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    first, second = train(), train()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("setting", [{"KAN_COMPILE": "0"}, {"CC": "/nowhere/cc"}, {"PATH": ""}])
def test_without_a_compiler_all_works_in_silence(setting, tmp_path):
    code = (
        "import torch, kan; from splines import native;"
        "torch.manual_seed(0); layer = kan.KANLinear(256, 8);"
        "x = torch.randn(1100, 256, requires_grad=True); layer(x).sum().backward();"
        "assert native.compiled(3, torch.float32, 1 << 30) is None"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | setting,
        cwd=Path(kan.__file__).parent,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout + run.stderr == ""


def test_small_layers_start_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "load", None)  # calling it would fail
    build = compiler.Build((), "", tmp_path / "none.so")
    monkeypatch.setattr(native, "plan", lambda *_: build)
    model = KAN([2, 5, 1])
    model(torch.rand(1000, 2)).sum().backward()
    layer = KANLinear(768, 5)  # one photo's tokens
    layer(torch.randn(197, 768)).sum().backward()
