"""Models of pykan become ours: what they compute stays."""

import importlib.metadata
import subprocess
import sys

import pytest
import torch
from torch import nn

from kan import KAN

SIZES, CELLS, ORDERS = (4, 6, 5, 2), (5, 3, 7), (3, 2, 1)


def rows_of_knots(features, cells, order):
    return (torch.rand(features, cells + 2 * order + 1) + 0.05).cumsum(1) - 2


@pytest.fixture
def state():
    """A MultKAN's state of three layers, with pykan's names and shapes."""
    state = {}
    for n, (i, o, g, k) in enumerate(zip(SIZES, SIZES[1:], CELLS, ORDERS, strict=False)):
        state |= {
            f"act_fun.{n}.grid": rows_of_knots(i, g, k),
            f"act_fun.{n}.coef": torch.randn(i, o, g + k),
            f"act_fun.{n}.mask": (torch.rand(i, o) > 0.2).float(),
            f"act_fun.{n}.scale_base": torch.randn(i, o),
            f"act_fun.{n}.scale_sp": torch.randn(i, o),
            f"symbolic_fun.{n}.mask": torch.zeros(o, i),
            f"symbolic_fun.{n}.affine": torch.randn(o, i, 4),
        }
        for name in ("subnode_scale", "subnode_bias", "node_scale", "node_bias"):
            state[f"{name}_{n}"] = torch.randn(o)
    return state


def pykans_bases(x, grid, order):
    """B_batch of pykan, (N, I) -> (N, I, K)."""
    x, b = x.unsqueeze(-1), ((x[..., None] >= grid[:, :-1]) & (x[..., None] < grid[:, 1:])).float()
    for p in range(1, order + 1):
        left = (x - grid[:, : -(p + 1)]) / (grid[:, p:-1] - grid[:, : -(p + 1)])
        right = (grid[:, p + 1 :] - x) / (grid[:, p + 1 :] - grid[:, 1:-p])
        b = torch.nan_to_num(left * b[..., :-1] + right * b[..., 1:])
    return b


def pykans_answer(state, x, base=nn.functional.silu):
    """MultKAN.forward, for splines and addition nodes."""
    for n in range(len(SIZES) - 1):
        names = ("grid", "coef", "mask", "scale_base", "scale_sp")
        grid, coef, mask, scale_base, scale_sp = (state[f"act_fun.{n}.{name}"] for name in names)
        spline = torch.einsum("nij,ioj->nio", pykans_bases(x, grid, ORDERS[n]), coef)
        x = (mask * (scale_base * base(x)[..., None] + scale_sp * spline)).sum(1)
        x = state[f"subnode_scale_{n}"] * x + state[f"subnode_bias_{n}"]
        x = state[f"node_scale_{n}"] * x + state[f"node_bias_{n}"]
    return x


def agree(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1)


def test_a_state_of_pykan_computes_the_same(state):
    x = torch.randn(500, SIZES[0]) * 2  # also beyond the knots
    model = KAN.from_pykan(state)
    assert agree(model(x), pykans_answer(state, x))
    assert [(m.grid_size, m.spline_order) for m in model.layers] == list(
        zip(CELLS, ORDERS, strict=True)
    )


def test_another_base_function_can_be_named(state):
    x = torch.randn(50, SIZES[0])
    assert agree(KAN.from_pykan(state, nn.Tanh)(x), pykans_answer(state, x, torch.tanh))


def test_what_came_over_can_be_trained_and_refined(state):
    model = KAN.from_pykan(state)
    x = torch.randn(200, SIZES[0])
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.double()
    before = model.layers[0](x.double())
    model.layers[0].refine(2 * CELLS[0])
    low, high = model.layers[0].low, model.layers[0].high
    inside = ((x > low) & (x < high)).all(1)
    torch.testing.assert_close(model.layers[0](x.double())[inside], before[inside])


def test_types_are_kept_and_the_source_is_not_changed(state):
    state = {name: value.double() for name, value in state.items()}
    copies = {name: value.clone() for name, value in state.items()}
    model = KAN.from_pykan(state)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    for p in model.parameters():
        p.data.zero_()
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_an_input_that_never_varied_has_no_spline(state):
    state["act_fun.0.grid"][2] = 0.25
    x = torch.randn(100, SIZES[0])
    x[:, 2] = 0.25
    assert agree(KAN.from_pykan(state)(x), pykans_answer(state, x))


def test_a_state_without_symbols_and_affine_maps_is_whole(state):
    few = {name: value for name, value in state.items() if name.startswith("act_fun")}
    for name, value in state.items():
        if "node_" in name:
            state[name] = torch.ones_like(value) if "scale" in name else torch.zeros_like(value)
    x = torch.randn(50, SIZES[0])
    assert agree(KAN.from_pykan(few)(x), pykans_answer(state, x))


def symbolic(state):
    state["symbolic_fun.1.mask"][3, 2] = 1


def multiplication(state):
    for name in ("node_scale_1", "node_bias_1"):
        state[name] = state[name][:3]


def repeated(state):
    state["act_fun.2.grid"][1, 4] = state["act_fun.2.grid"][1, 3]


def flat(state):
    state["act_fun.0.coef"] = state["act_fun.0.coef"].flatten(0, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (symbolic, "layer 1 has a symbolic edge, from input 2 to output 3"),
        (multiplication, "layer 1 has multiplication nodes"),
        (repeated, "knots of input 1 of layer 2 do not increase"),
        (flat, "pykan 0.2 or later"),
        (dict.clear, "pykan 0.2 or later"),
        (lambda state: state.pop("act_fun.1.scale_sp"), r"has no act_fun\.1\.scale_sp"),
    ],
)
def test_what_no_layer_of_splines_can_be_is_refused_in_a_sentence(state, change, words):
    change(state)
    with pytest.raises(ValueError, match=words) as end:
        KAN.from_pykan(state)
    assert "\n" not in str(end.value)


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="wants a MultKAN"):
        KAN.from_pykan(nn.Linear(2, 3))


# pykan's package has the name of our module: another process makes its models.
MAKES = """
import importlib.util, sys
import torch
from kan import MultKAN

def scramble(model):
    torch.manual_seed(4)
    for name, p in model.named_parameters():
        if "affine" in name or "grid" in name or "symbolic" in name:
            continue
        noise = torch.randn_like(p)
        p.data = (noise > -0.5).float() if "mask" in name else p + 0.5 * noise
    return model

sys.path.append(sys.argv[1])
ours = importlib.util.spec_from_file_location("ours", sys.argv[1] + "/kan.py").loader.load_module()

def case(model, x):
    found = {"state": model.state_dict(), "x": x, "y": model(x).detach()}
    try:
        return found | {"of model": ours.KAN.from_pykan(model)(x).detach()}
    except ValueError as error:
        return found | {"error": str(error)}

options = dict(auto_save=False, seed=1)
x = torch.randn(300, 3) * 1.5
found = {}
model = scramble(MultKAN([3, 5, 2], grid=5, k=3, noise_scale=0.5, **options))
found["random"] = case(model, x)
model.update_grid_from_samples(x * 0.7)
found["moved grid"] = case(model, x)
found["finer"] = case(model.refine(11), x)
x = x.clone(); x[:, 1] = 0.5
model = scramble(MultKAN([3, 4, 4, 1], grid=[4, 6, 3], k=[2, 3, 1], sparse_init=True, **options))
model.update_grid_from_samples(x)
for layer in model.act_fun:
    layer.coef.data = layer.coef.data.nan_to_num()
found["constant input"] = case(model, x)
found["zero base"] = case(scramble(MultKAN([3, 2], base_fun="zero", **options)), x)
model = MultKAN([3, 2, 1], **options)
model.fix_symbolic(0, 2, 1, "sin", fit_params_bool=False)
found["symbolic"] = case(model, x)
found["multiplication"] = case(MultKAN([3, [2, 2], 1], **options), x)
model = scramble(MultKAN([3, 5, 2], **options))
model.symbolic_enabled = False  # so these edges say nothing
model.symbolic_fun[0].mask.data.fill_(1)
found["silent symbols"] = case(model, x)
torch.save(found, sys.argv[2])
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    try:
        importlib.metadata.version("pykan")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pykan is not installed")
    from conftest import ROOT

    folder = tmp_path_factory.mktemp("pykan")
    command = [sys.executable, "-I", "-c", MAKES, ROOT, folder / "cases.pth"]
    run = subprocess.run(command, cwd=folder, check=False, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    return torch.load(folder / "cases.pth")


def close(found, expected):
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "moved grid", "finer", "constant input"])
def test_states_of_pykan_itself_compute_the_same(cases, name):
    found = cases[name]
    close(KAN.from_pykan(found["state"])(found["x"]), found["y"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["random", "moved grid", "finer", "constant input", "zero base", "silent symbols"]
)
def test_models_of_pykan_itself_compute_the_same(cases, name):
    close(cases[name]["of model"], cases[name]["y"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("symbolic", "symbolic edge, from input 2 to output 1"),
        ("multiplication", "multiplication nodes"),
    ],
)
def test_models_of_pykan_itself_with_more_than_splines_are_refused(cases, name, words):
    assert words in cases[name]["error"]
    with pytest.raises(ValueError, match=words):
        KAN.from_pykan(cases[name]["state"])
