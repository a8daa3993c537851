"""The Triton kernels through the public layers: on a GPU or, without one, in Triton's interpreter.

`pytest -k triton` runs every case; `make test` a sample of them.
"""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from conftest import ROOT
from torch import nn

from kan import GroupKANLinear, KANLinear
from splines import grids, ops, triton_splines

triton = pytest.importorskip("triton", reason="Triton is not installed")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
FORMS = {
    "full": lambda **o: KANLinear(11, 70, **o, init="glorot"),
    "few outputs": lambda **o: KANLinear(11, 5, **o, base_activation=nn.Tanh, init="glorot"),
    "rank": lambda **o: KANLinear(11, 9, **o, spline_rank=5, bias=True, init="glorot"),
    "high rank": lambda **o: KANLinear(11, 9, **o, spline_rank=67, init="glorot"),
    "groups": lambda **o: GroupKANLinear(12, 9, 3, **o, base_activation=nn.GELU),
    "features": lambda **o: GroupKANLinear(13, 9, 13, **o, base_activation=nn.Identity),
}
ROWS = 21  # which no tile divides
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _device():
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    """The demand that nothing else computes."""
    monkeypatch.setenv("KAN_TRITON", "1")
    if isinstance(found := triton_splines.kernels(), str):
        pytest.skip(found)


def outcome(layer, x, dtype=torch.float32):
    """Returns output and all gradients, those of a random sum."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).sin()
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], weights.to(y.dtype))]


def assert_equal_to_float64(layer, x, dtype=torch.float32):
    found = outcome(layer, x, dtype)
    # float64 is torch's in any case, and scipy's by the tests of the layer.
    right = outcome(layer.double(), x.double())
    for a, b in zip(found, right, strict=True):
        error = (a.double() - b).norm() / b.norm().clamp_min(1e-9)
        assert error < TOLERANCE[dtype]


def made(form, order, grid_size, outside, even):
    layer = FORMS[form](spline_order=order, grid_size=grid_size, outside=outside)
    if not even:
        shift = 0.2 * torch.rand_like(layer.grid) / grid_size
        layer.grid.copy_((layer.grid + shift).sort(1).values)
    return layer


def sampled(values, every, at=0):
    """Values of which all but some are slow."""
    slow = pytest.mark.slow
    return [
        pytest.param(*((v,) if isinstance(v, str) else v), marks=() if n % every == at else slow)
        for n, v in enumerate(values)
    ]


SHAPES = [
    (order, outside, even)
    for order in range(6)
    for outside in ("zero", "held", "linear")
    for even in (True, False)
]
CASES = [
    (form, *SHAPES[(7 * n + 5 * m) % len(SHAPES)])
    for n, form in enumerate(FORMS)
    for m in range(12)
]


@pytest.mark.parametrize(("form", "order", "outside", "even"), sampled(CASES, 7))
def test_triton_equals_float64(form, order, outside, even):
    layer = made(form, order, 4 if order < 4 else 2, outside, even)
    assert_equal_to_float64(layer, 1.3 * torch.randn(ROWS, layer.in_features))


USUAL = [
    (activation, outside, groups)
    for activation in (nn.GELU, nn.SiLU, nn.Tanh)
    for outside in ("linear", "held")
    for groups in (2, 70)
]


@pytest.mark.parametrize(("activation", "outside", "groups"), sampled(USUAL, 6, 3))
def test_triton_has_a_kernel_for_the_usual_curves(activation, outside, groups, monkeypatch):
    """Order 3 on 5 even cells, whose ranges differ from curve to curve."""
    layer = GroupKANLinear(70, 9, groups, base_activation=activation, outside=outside)
    middle = torch.randn(groups)
    layer.set_range(middle - 1 - torch.rand(groups), middle + 1)
    with torch.no_grad():
        layer.spline_weight.normal_()
    monkeypatch.setattr(triton_splines.kernels(), "curves", None)  # not the general one
    monkeypatch.setattr(triton_splines.kernels(), "curves_backward", None)
    assert_equal_to_float64(layer, 2 * torch.randn(ROWS, 70))


HALF = [(form, dtype) for form in FORMS for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("form", "dtype"), sampled(HALF, 5))
def test_triton_in_narrow_types(form, dtype):
    layer = made(form, 2, 3, "linear", True)
    assert_equal_to_float64(layer, torch.randn(ROWS, layer.in_features), dtype)


@pytest.mark.parametrize("form", FORMS)
def test_triton_takes_transposed_and_empty_inputs(form):
    layer = made(form, 1, 3, "zero", True)
    wide = torch.randn(layer.in_features, ROWS)
    expected = layer(wide.t().contiguous())
    torch.testing.assert_close(layer(wide.t()), expected)
    gaps = torch.randn(ROWS, 3 * layer.in_features)[:, ::3]
    torch.testing.assert_close(layer(gaps), layer(gaps.contiguous()))
    empty = outcome(layer, wide.t()[:0])
    assert empty[0].shape == (0, layer.out_features)
    assert all(not g.any() for g in empty[2:])


@pytest.mark.parametrize("form", ["full", "rank", "features"])
def test_triton_keeps_nan_in_its_row_and_holds_at_infinity(form):
    layer = made(form, 3, 5, "held", True)
    x = torch.randn(4, layer.in_features)
    x[1, 2], x[2, 1] = float("nan"), 7.0
    y = layer(x)
    assert y[1].isnan().any()
    assert y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("form", sampled(FORMS, 6, 2))
def test_triton_repeats_itself_to_the_bit(form):
    layer = made(form, 2, 3, "linear", True)
    x = torch.randn(70, layer.in_features)
    for a, b in zip(outcome(layer, x), outcome(layer, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["rank", "groups"])
def test_triton_adds_up_many_blocks_of_rows(form, monkeypatch):
    monkeypatch.setattr(triton_splines, "ROWS", dict.fromkeys(triton_splines.ROWS, 16))
    layer = made(form, 1, 3, "linear", True)
    assert_equal_to_float64(layer, torch.randn(301, layer.in_features))


def test_triton_counts_rows_in_64_bits():
    """Two rows of one number each, which lie more than 2**31 numbers apart."""
    layer = GroupKANLinear(2, 3, 1)
    far = torch.empty(2**31 + 64, dtype=torch.bfloat16)  # pages that nobody touches cost nothing
    x = far.as_strided((2, 2), (2**31 + 8, 1)).copy_(torch.randn(2, 2))
    with torch.no_grad():
        torch.testing.assert_close(layer(x.float()), layer(x).float(), atol=2e-2, rtol=2e-2)


def test_triton_in_a_graph_with_what_is_around_it():
    layer = made("rank", 1, 3, "linear", True)
    x = torch.randn(ROWS, layer.in_features)
    compiled = torch.compile(nn.Sequential(layer, nn.ReLU()), fullgraph=True, backend="aot_eager")
    expected = outcome(nn.Sequential(layer, nn.ReLU()), x)
    for a, b in zip(outcome(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_triton_has_second_derivatives():
    layer = made("groups", 3, 5, "linear", True).double()
    x = torch.randn(3, layer.in_features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)
    single = made("groups", 3, 5, "linear", True)
    x = torch.randn(3, single.in_features, requires_grad=True)
    (slope,) = torch.autograd.grad(single(x).sum(), x, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), x)[0].isfinite().all()


def test_triton_rational_functions_of_the_benchmark_are_their_formula():
    from benchmarks.rational import GroupRational

    layer = GroupRational()
    with torch.no_grad():
        layer.denominator.normal_()
    x = torch.randn(150, 72, requires_grad=True)
    wanted, weights = [x, *layer.parameters()], torch.randn(150, 72)
    for run in (layer, layer.by_formula):
        y = run(x)
        found = [y, *torch.autograd.grad(y, wanted, weights)]
        if run is layer:
            ours = found
    for a, b in zip(ours, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- who computes --------------------------------------------------------------------------------


def test_triton_is_asked_at_each_call(monkeypatch):
    layer = made("groups", 3, 5, "linear", True)
    x, calls = torch.randn(5, layer.in_features), []
    launch = triton_splines.TritonSplines._launch
    monkeypatch.setattr(
        triton_splines.TritonSplines,
        "_launch",
        lambda self, name, *a, **k: (calls.append(name), launch(self, name, *a, **k)),
    )
    layer(x)
    for no in ("0", ""):
        monkeypatch.setenv("KAN_TRITON", no)
        layer(x)
    assert calls == ["cubics"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(spline_order=6), "order 0 to 5, not 6"),
        (dict(grid_range=(-1, 1)), "a word"),
    ],
)
def test_triton_that_is_demanded_and_cannot_be_had_is_an_error(change, words, monkeypatch):
    if words == "a word":
        monkeypatch.setenv("KAN_TRITON", words)
    with pytest.raises(RuntimeError, match=f"KAN_TRITON.*{words}"):
        GroupKANLinear(4, 3, 2, **change)(torch.randn(5, 4))


def test_triton_without_the_interpreter_says_what_a_cpu_needs():
    code = "import torch, kan; kan.KANLinear(4, 3)(torch.randn(5, 4))"  # on the CPU in any case
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"KAN_TRITON": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=False
    )
    assert run.returncode == 1
    assert b"RuntimeError: KAN_TRITON=1 demands Triton's kernels, but a tensor on cpu needs" in (
        run.stderr
    )


@pytest.fixture
def _a_gpu(monkeypatch):
    """Where there is none the CPU counts as one; nothing has failed yet."""
    monkeypatch.setenv("KAN_TRITON", "")
    monkeypatch.setattr(triton_splines, "GPUS", (DEVICE,))
    monkeypatch.setattr(triton_splines, "told", set())
    monkeypatch.setattr(triton_splines, "broken", {})


@pytest.mark.usefixtures("_a_gpu")
@pytest.mark.parametrize("form", FORMS)
def test_triton_that_does_not_compile_gives_way_to_torch_with_one_warning(form, monkeypatch):
    def fail(*_args, **_constants):
        raise triton_splines.KernelError("no such instruction")

    layer = made(form, 3, 5, "linear", True)
    x = torch.randn(ROWS, layer.in_features)
    monkeypatch.setattr(triton_splines.TritonSplines, "_launch", fail)
    with pytest.warns(UserWarning, match="no such instruction.*torch computes them") as told:
        found = outcome(layer, x)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome(layer, x)
    monkeypatch.setenv("KAN_TRITON", "0")
    for a, b in zip(found, outcome(layer, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("_a_gpu")
def test_triton_that_is_missing_gives_way_to_torch_with_one_warning(monkeypatch):
    monkeypatch.setattr(triton_splines, "kernels", lambda: "Triton cannot be imported (gone)")
    layer = KANLinear(4, 3)
    with pytest.warns(UserWarning, match="Triton cannot be imported") as told:
        layer(layer(torch.randn(5, 4)).new_zeros(2, 4))
    assert len(told) == 1


def test_even_grids_are_looked_at_once_for_each_change(monkeypatch):
    layer = KANLinear(4, 3)
    assert grids.is_even(layer.grid)
    monkeypatch.setattr(torch, "arange", None)  # another look would need it
    assert grids.is_even(layer.grid)
    monkeypatch.undo()
    with torch.no_grad():
        layer.grid[0, 3] += 0.01
    assert not grids.is_even(layer.grid)


# --- the operator --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["full", "rank", "groups"])
def test_the_operator_keeps_torchs_rules(form, monkeypatch):
    monkeypatch.setenv("KAN_TRITON", "0")
    layer = made(form, 2, 3, "linear", True)
    x = torch.randn(5, layer.in_features, requires_grad=True)
    base, (spline, second) = layer.base(x), layer.coefficients()
    form = getattr(layer, "form", "group")
    call = ops.Call(
        x, base.active, base.weight, base.bias, spline, second, layer.grid, form, base.activation,
        2, "linear", torch.float32,
    )  # fmt: skip
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.kan.layer.default, tuple(call), test_utils=tests)


# --- without a GPU, but with its compiler --------------------------------------------------------

COMPILES = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from splines import triton_kernels as kernels

shape = dict(COUNT=8, ORDER=3, OUTSIDE=2, UNIFORM=sys.argv[3] == "even", KP=8)
curve = dict(SIZE=1, ACT=2, ROWS=256)
tile = dict(BN=16, BI=8)
few = dict(ACT=2, WRITE=True, RP=16)
constants = {
    "curves": shape | curve | tile,
    "curves_backward": shape | curve | tile | dict(AGAIN=True),
    "cubics": curve | dict(OUTSIDE=2, BN=16, BI=64),
    "cubics_backward": curve | dict(OUTSIDE=2, AGAIN=True, BN=8, BI=64),
    "narrow": shape | tile | few,
    "narrow_backward": shape | tile | few | dict(BASE=True, ROWS=256),
    "bases": shape | tile,
    "slopes": shape | tile,
}[sys.argv[1]]
kernel = getattr(kernels, sys.argv[1])
types = {"N": "i32", "F": "i32", "R": "i32", "GRID": "*fp32", "COEF": "*fp32", "PART": "*fp32"}


def kind(name):
    if name in constants:
        return "constexpr"
    return types.get(name, "i32" if name.startswith("LD") else "*bf16")


source = ASTSource(kernel, {name: kind(name) for name in kernel.arg_names}, constants)
print(len(compile(source, target=GPUTarget("cuda", int(sys.argv[2]), 32)).asm["cubin"]))
"""
KERNELS = [
    (name, capability, knots)
    for name in ("curves", "curves_backward", "cubics", "cubics_backward", "narrow",
                 "narrow_backward", "bases", "slopes")
    for capability, knots in ((90, "even"), (80, "uneven"))
    if name[:6] != "cubics" or knots == "even"
]  # fmt: skip


@pytest.mark.parametrize(("name", "capability", "knots"), sampled(KERNELS, 7, 2))
def test_triton_compiles_for_gpus_that_are_not_here(name, capability, knots, tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    words = [sys.executable, "-c", COMPILES, name, str(capability), knots]
    run = subprocess.run(
        words, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 1000
