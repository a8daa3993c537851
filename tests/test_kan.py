"""The KAN layers: exact bases and gradients, what they keep, and how they begin."""

import math
import platform
import shutil

import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

import kan
from kan import KAN, GroupKANLinear, KANLinear
from splines import bases, chunked, native
from splines.bases import dense_bases
from splines.interface import Base
from splines.ops import splines_for

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def random_grid(features, grid_size, order, dtype=torch.float64):
    return (torch.rand(features, grid_size + 2 * order + 1, dtype=dtype) + 0.05).cumsum(1) - 2


def textbook_bases(x, grid, order):
    """Cox-de Boor over all bases, (N, I) -> (N, I, K)."""
    x = x.unsqueeze(-1)
    b = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
    for p in range(1, order + 1):
        left = (x - grid[:, : -(p + 1)]) / (grid[:, p:-1] - grid[:, : -(p + 1)])
        right = (grid[:, p + 1 :] - x) / (grid[:, p + 1 :] - grid[:, 1:-p])
        b = left * b[..., :-1] + right * b[..., 1:]
    return b


def textbook_layer(layer, x):
    bases = textbook_bases(x, layer.grid, layer.spline_order)
    base = nn.functional.linear(layer.base_activation(x), layer.base_weight, layer.bias)
    return base + torch.einsum("nij,oij->no", bases, layer.scaled_spline_weight)


@pytest.fixture(params=["torch", "compiled"])
def path(request, monkeypatch):
    """Both ways to compute bases; small inputs take the first of their own accord."""
    monkeypatch.setattr(native, "COMPILED_FROM", 0 if request.param == "compiled" else math.inf)
    monkeypatch.setattr(native, "COMPILE_FROM", 0)
    if request.param == "compiled" and native.compiled(3, torch.float32, 1) is None:
        pytest.skip("no C compiler")
    return request.param


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("uniform", [True, False])
def test_bases_are_scipys_everywhere(path, order, dtype, uniform):
    for grid_size in (1, 5, 13):
        grid = random_grid(3, grid_size, order, dtype)
        if uniform:
            layer = KANLinear(3, 2, grid_size, order, grid_range=(-1.5, 2)).to(dtype)
            grid = layer.grid
        low, high = grid.min(), grid.max()
        x = torch.cat([low + (high - low) * torch.rand(40, 3, dtype=dtype), grid.t()])
        found = splines_for(x, grid, order, "zero", dtype).bases(x)
        plain = path != "compiled"  # whose columns are all features of a basis side by side
        found = found.unflatten(1, (-1, 3)).mT if plain else found.unflatten(1, (3, -1))
        for i in range(3):
            for j in range(grid_size + order):
                knots = grid[i, j : j + order + 2].double().numpy()
                basis = BSpline.basis_element(knots, extrapolate=False)
                expected = torch.from_numpy(basis(x[:, i].double().numpy())).nan_to_num()
                if order == 0 and j < grid_size - 1:  # the next cell begins where scipy's ends
                    expected[x[:, i] == knots[1]] = 0
                error = (found[:, i, j].double() - expected).abs().max()
                assert error < TOLERANCE[dtype], (grid_size, i, j)


@pytest.mark.parametrize("order", range(6))
def test_bases_are_exactly_zero_beyond_the_knots(path, order):
    grid = random_grid(2, 5, order, torch.float32)
    x = torch.tensor([[1e4, -1e4], [math.inf, -math.inf], [-1e30, 1e30]])
    assert not splines_for(x, grid, order, "zero", torch.float32).bases(x).any()


@pytest.mark.parametrize("order", range(1, 6))
def test_held_and_linear_continue_value_and_slope(path, order):
    grid = random_grid(3, 4, order)
    low, high = grid[:, order], grid[:, -order - 1]
    coef = torch.randn(3, 4 + order, dtype=torch.float64)

    def curve(x, outside):
        base = Base("identity", None, None, None)
        return splines_for(x, grid, order, outside, x.dtype).curves(x, coef, base) - x

    for end, inward in ((low, 1e-7), (high, -1e-7)):
        at, near = end[None], (end + inward)[None]
        slope = (curve(near, "zero") - curve(at, "held")) / inward
        for distance in (0.1, 3.0, 100.0):
            away = at - distance * math.copysign(1, inward)
            torch.testing.assert_close(curve(away, "held"), curve(at, "held"))
            expected = curve(at, "held") + (away - at) * slope
            torch.testing.assert_close(curve(away, "linear"), expected, rtol=1e-4, atol=1e-4)


KINDS = {
    "wide": lambda **o: KANLinear(70, 90, init="glorot", **o),
    "few outputs": lambda **o: KANLinear(70, 5, init="glorot", bias=True, **o),
    "low rank": lambda **o: KANLinear(70, 90, init="glorot", bias=True, spline_rank=21, **o),
    "groups": lambda **o: GroupKANLinear(70, 9, 7, **o),
    "features": lambda **o: GroupKANLinear(70, 9, 70, base_activation=nn.GELU, **o),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: KANLinear(70, 90, init="glorot"),
        lambda: KANLinear(70, 16, init="glorot"),  # as many outputs as a vector has numbers
        lambda: KANLinear(70, 90, init="glorot", spline_rank=16),
        lambda: GroupKANLinear(70, 9, 7),
    ],
)
def test_transposed_inputs_and_gradients(path, make):
    layer = make()
    values, weights = torch.randn(33, 70), torch.randn(33, layer.out_features)
    results = []
    for transposed in (False, True):
        x, g = values.clone(), weights.clone()
        if transposed:
            x, g = (v.t().contiguous().t() for v in (x, g))
            assert not x.is_contiguous()
        x.requires_grad_()
        y = layer(x)
        results.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], g)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def agree(monkeypatch, layer, amp, even=False):
    """Holds the compiled path's results and gradients against those of torch."""
    if even:  # each curve's own, and not around 0
        layer.set_range(-2 - torch.rand(layer.curves), 1 + torch.rand(layer.curves))
    else:
        layer.grid = random_grid(len(layer.grid), 5, layer.spline_order, torch.float32)
    x = torch.randn(2, 70, 33).transpose(1, 2) * 3  # rows with gaps between their numbers
    results = []
    monkeypatch.setattr(native, "COMPILE_FROM", 0)
    for least in (0, math.inf):
        monkeypatch.setattr(native, "COMPILED_FROM", least)
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = layer(inputs)
        weights = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
        results.append([y, *torch.autograd.grad(y, [inputs, *layer.parameters()], weights)])
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        error = (ours - plain).float().norm() / plain.float().norm().clamp_min(1e-9)
        assert error < (2e-2 if amp else 1e-5 if even else 3e-6)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("outside", bases.OUTSIDE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("even", [False, True])
def test_compiled_and_torch_paths_agree(monkeypatch, kind, outside, order, amp, even):
    agree(monkeypatch, KINDS[kind](outside=outside, spline_order=order), amp, even)


ACTIVATIONS = {
    "identity": nn.Identity,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "torch's": nn.Tanh,
}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("outside", ["held", "linear"])
def test_the_base_function_is_computed_with_the_usual_curves(monkeypatch, name, outside):
    """Order 3 on 5 even cells: in C one pass forward and one backward."""
    called = []
    run = native.NativeSplines._run
    monkeypatch.setattr(
        native.NativeSplines,
        "_run",
        lambda self, what, *a: (called.append(what), run(self, what, *a)),
    )
    layer = GroupKANLinear(70, 9, 10, base_activation=ACTIVATIONS[name], outside=outside)
    with torch.no_grad():
        layer.spline_weight.normal_()
    agree(monkeypatch, layer, amp=False, even=True)
    assert {"even_curves", "even_curves_backward"} <= set(called)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_base_functions_in_c_are_as_exact_as_torchs(monkeypatch, name):
    monkeypatch.setattr(native, "COMPILE_FROM", 0)
    monkeypatch.setattr(native, "COMPILED_FROM", 0)
    layer = GroupKANLinear(1, 1, 1, base_activation=ACTIVATIONS[name], scale_noise=0, bias=False)
    nn.init.ones_(layer.base_weight)
    x = torch.cat([torch.linspace(-12, 12, 50_001), torch.tensor([-1e30, -88.0, 88.0, 1e30])])
    found, right = layer(x[:, None])[:, 0], ACTIVATIONS[name]()(x.double())
    torch.testing.assert_close(found.double(), right, atol=2e-7, rtol=3e-7)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("flag", "most"), [("-mno-avx512f", 8), ("-mno-avx2", 4), ("-DSCALAR", 1)])
def test_compiled_and_torch_paths_agree_on_processors_of_old_and_without_vectors(
    monkeypatch, flag, most, kind, order
):
    monkeypatch.setattr(native, "COMPILE_FROM", 0)
    monkeypatch.setattr(native, "COMPILED_FROM", 0)
    monkeypatch.setenv("CC", f"cc {flag}")
    assert native.compiled(order, torch.float32, 1).width() <= most
    for even in (False, True):
        agree(monkeypatch, KINDS[kind](spline_order=order), False, even)


@pytest.mark.parametrize("scaler", [True, False])
def test_layer_equals_the_textbook(path, scaler):
    layer = KANLinear(
        7, 5, init="glorot", bias=True, enable_standalone_scale_spline=scaler
    ).double()
    x = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    ours, plain = layer(x), textbook_layer(layer, x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    wanted = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours.cos().sum(), wanted),
        torch.autograd.grad(plain.cos().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_many_rows_are_worked_on_in_pieces(path, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 16)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1 << 12)
    layer = KANLinear(50, 5, init="glorot").double()
    x = torch.randn(41, 50, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).cos().sum(), wanted)
    plain = torch.autograd.grad(textbook_layer(layer, x).cos().sum(), wanted)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


LAYERS = [
    lambda: KANLinear(4, 3, init="glorot"),
    lambda: KANLinear(4, 3, 3, 4, outside="held", bias=True, base_activation=nn.GELU),
    lambda: KANLinear(4, 3, outside="linear", base_activation=nn.Identity, init="glorot"),
    lambda: KANLinear(4, 3, spline_rank=2, init="glorot"),
    lambda: GroupKANLinear(4, 3, 2),
]


@pytest.mark.parametrize("make", LAYERS)
def test_first_and_second_derivatives(path, make):
    layer = make().double()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *layer.parameters()))


def test_gradients_of_a_loss_of_second_derivatives_equal_the_textbooks(path):
    layer = KANLinear(3, 1, init="glorot").double()
    x = torch.rand(20, 3, dtype=torch.float64, requires_grad=True)

    def laplacian_loss(function):
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        second = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
        return torch.autograd.grad(second.square().mean(), list(layer.parameters()))

    ours = laplacian_loss(layer)
    plain = laplacian_loss(lambda x: textbook_layer(layer, x))
    for a, b in zip(ours, plain, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_forward_keeps_only_input_and_parameters():
    for activation in (nn.SiLU, nn.GELU, nn.Identity):
        layer = KANLinear(384, 150, base_activation=activation)
        x = torch.randn(1576, 384, requires_grad=True)
        own = {p.data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer(x)
        assert sum(size for at, size in kept.items() if at not in own) == x.nbytes


def test_bfloat16_autocast_has_the_gradients_of_float32(path):
    layer = KANLinear(96, 48, init="glorot", bias=True)
    results = []
    for enabled in (False, True):
        x = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        results.append(torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()]))
    for exact, rough in zip(*results, strict=True):
        assert (exact - rough).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("make", LAYERS)
def test_any_leading_dimensions_empty_batches_and_strides(path, make):
    layer = make()
    x = torch.randn(4, 6, 5).transpose(0, 2)[..., :4]
    y = layer(x)
    assert y.shape == (5, 6, 3)
    torch.testing.assert_close(y[2, 3], layer(x[2, 3].clone()))
    empty = torch.empty(0, 7, 4, requires_grad=True)
    layer(empty).sum().backward()
    assert layer(empty).shape == (0, 7, 3)
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("make", LAYERS)
def test_integers_are_converted_and_nan_stays_in_its_row(path, make):
    layer = make()
    x = torch.tensor([[0, 1, -1, 0], [2, 0, 0, 1]])
    torch.testing.assert_close(layer(x), layer(x.float()))
    y = layer(torch.tensor([[0.1, math.nan, 0, 0], [0.1, 0.2, 0.3, 0.4]]))
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"in_features": 0}, "in_features .* got 0"),
        ({"out_features": -2}, "out_features .* got -2"),
        ({"grid_size": 0}, "grid_size .* got 0"),
        ({"spline_order": -1}, "spline_order .* got -1"),
        ({"grid_range": (1, 1)}, r"grid_range .* got \(1, 1\)"),
        ({"grid_range": (0, math.inf)}, "grid_range must be finite"),
        ({"outside": "nowhere"}, "outside .* got 'nowhere'"),
        ({"spline_rank": 0}, "spline_rank .* got 0"),
        ({"init": "lucky"}, "init .* got 'lucky'"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(wrong, words):
    with pytest.raises(ValueError, match=words):
        KANLinear(**{"in_features": 4, "out_features": 3} | wrong)


def test_wrong_number_of_features_is_named():
    with pytest.raises(ValueError, match=r"takes 4 features .* \(2, 5\)"):
        KANLinear(4, 3)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="groups must divide in_features 4, got 3"):
        GroupKANLinear(4, 3, 3)


@pytest.mark.parametrize("make", LAYERS)
def test_zero_splines_leave_the_base_term_alone(make):
    layer = make()
    for name, parameter in layer.named_parameters():
        if "spline" in name:
            parameter.data.zero_()
    assert layer.splines_are_zero
    x = torch.randn(9, 4)
    expected = nn.functional.linear(layer.base_activation(x), layer.base_weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    zero = KANLinear(4, 3, scale_noise=0)
    assert zero.splines_are_zero
    assert KANLinear(4, 3, scale_noise=0, spline_rank=2).splines_are_zero


def test_scales_multiply_the_initial_weights():
    for init in kan.INITIALISATIONS:
        torch.manual_seed(0)
        one = KANLinear(20, 30, init=init)
        torch.manual_seed(0)
        three = KANLinear(20, 30, init=init, scale_base=3, scale_spline=2)
        torch.testing.assert_close(three.base_weight, 3 * one.base_weight)
        torch.testing.assert_close(three.scaled_spline_weight, 2 * one.scaled_spline_weight)


@torch.no_grad()
def test_activations_keep_their_variance_through_six_layers():
    model = KAN([64] * 7)
    x = torch.randn(512, 64)
    for layer in model.layers:
        x = layer(x)
        assert 0.5 < x.var() < 2


def test_regularization_is_finite_at_zero_and_sees_single_edges():
    for layer in (KANLinear(4, 3, scale_noise=0), KANLinear(4, 3, spline_rank=2, scale_noise=0)):
        loss = layer.regularization_loss()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    layer = KANLinear(4, 3, scale_noise=0)
    layer.spline_weight.data[1, 2] = 0.5
    torch.testing.assert_close(layer.regularization_loss(1, 0).item(), 0.5)
    torch.testing.assert_close(layer.regularization_loss(0, 1).item(), 0.0)
    layer.spline_weight.data[0, 0] = -0.5  # two equal edges: entropy log 2
    torch.testing.assert_close(layer.regularization_loss(0, 1).item(), math.log(2))


@torch.no_grad()
def test_edge_activations_add_up_to_the_output():
    for options in ({}, {"spline_rank": 2}, {"outside": "linear", "base_activation": nn.Identity}):
        layer = KANLinear(6, 5, init="glorot", **options)
        x = torch.randn(2, 7, 6)
        edges = layer.edge_activations(x)
        assert edges.shape == (2, 7, 5, 6)
        torch.testing.assert_close(edges.sum(-1), layer(x))


def test_group_layer_equals_its_definition(path):
    layer = GroupKANLinear(12, 5, 3, outside="zero").double()
    x = torch.randn(9, 12, dtype=torch.float64)
    hidden = layer.base_activation(x)
    for group in range(3):
        columns = slice(4 * group, 4 * group + 4)
        grid = layer.grid[group].expand(4, -1)
        bases = textbook_bases(x[:, columns], grid, 3)
        hidden[:, columns] += bases @ layer.spline_weight[group]
    expected = nn.functional.linear(hidden, layer.base_weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_bases_add_up_to_one_inside_the_range():
    layer = KANLinear(4, 3)
    x = torch.rand(50, 4) * 2 - 1
    assert torch.equal(layer.b_splines(x), layer.calculate_b_spline_bases(x))
    torch.testing.assert_close(layer.b_splines(x).sum(-1), torch.ones(50, 4))
    torch.testing.assert_close(dense_bases(x, layer.grid, 3, "zero"), layer.b_splines(x))


@torch.no_grad()
def test_kan_fits_the_papers_first_example():
    """exp(sin(pi x) + y^2), LBFGS and grid extension, arXiv 2404.19756 section 2."""
    torch.manual_seed(0)
    x = torch.rand(1000, 2, dtype=torch.float64) * 2 - 1
    y = torch.exp(torch.sin(math.pi * x[:, :1]) + x[:, 1:] ** 2)
    model = KAN([2, 5, 1]).double()
    for grid_size in (3, 5, 10, 20, 40):
        model.refine(grid_size)
        model(x, update_grid=True)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=80, history_size=20,
                                      line_search_fn="strong_wolfe")  # fmt: skip

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = (model(x) - y).square().mean()
                loss.backward()
            return loss

        optimizer.step(closure)
    assert (model(x) - y).square().mean().sqrt() < 1e-3
