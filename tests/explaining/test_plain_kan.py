"""Networks of plain KAN layers: kept in files, drawn, pruned, explained from the command line."""

import sys

import pytest
import torch
from torch import nn

import explain
from explaining import plain_kan, plain_report
from formats.opening import open_weights
from kan import KAN
from system import terminal


def network_with_dead_node():
    torch.manual_seed(0)
    model = KAN([3, 4, 2], bias=True)
    with torch.no_grad():
        model.layers[1].base_weight[:, 2] = 0
        model.layers[1].spline_weight[:, 2] = 0
    return model


def test_pruning_removes_nodes_that_lead_nowhere():
    model, x = network_with_dead_node(), torch.rand(200, 3) * 2 - 1
    model(x, update_grid=True)  # so that no two inputs have the same knots
    small = plain_kan.prune_network(model, x)
    assert [layer.out_features for layer in small.layers] == [3, 2]
    assert torch.allclose(small(x), model(x), atol=1e-5)


def test_pruning_keeps_at_least_one_node():
    model, x = network_with_dead_node(), torch.rand(50, 3)
    small = plain_kan.prune_network(model, x, threshold=2.0)
    assert [layer.out_features for layer in small.layers] == [1, 2]


@pytest.mark.parametrize("bias", [True, False])
def test_what_removed_nodes_give_on_average_is_kept(bias):
    torch.manual_seed(0)
    model, x = KAN([2, 3, 2, 1], bias=bias), torch.rand(300, 2) * 2 - 1
    with torch.no_grad():
        for layer in model.layers[:2]:  # the last node of each is a constant, whatever x
            layer.base_weight[-1], layer.spline_weight[-1] = 0, 0
            if bias:
                layer.bias[-1] = 0.8
    small = plain_kan.prune_network(model, x)
    assert [layer.out_features for layer in small.layers] == [2, 1, 1]
    assert torch.allclose(small(x), model(x), atol=1e-5)
    assert model(x).std() > 0.05


def test_a_network_is_drawn_with_a_curve_per_edge(tmp_path):
    figure = plain_kan.draw_network(network_with_dead_node(), torch.rand(60, 3), ["a", "b", "c"])
    figure.savefig(tmp_path / "kan.png")
    assert (tmp_path / "kan.png").stat().st_size > 5000
    (axes,) = figure.axes
    assert len(axes.child_axes) == 3 * 4 + 4 * 2


def read(path) -> plain_kan.Network | None:
    return plain_kan.read_network(path, open_weights(path))


OPTIONS = [
    {},
    {"grid_size": 3, "spline_order": 2, "bias": True, "base_activation": nn.Identity},
    {"spline_rank": 2, "outside": "linear", "enable_standalone_scale_spline": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_saved_network_computes_the_same(options, tmp_path):
    model, x = KAN([3, 5, 2], **options).double(), torch.randn(50, 3).double() * 2
    model(x, update_grid=True)
    plain_kan.save_network(tmp_path / "kan.pth", model, ["a", "b", "c"])
    torch.load(tmp_path / "kan.pth", weights_only=True)
    again = read(tmp_path / "kan.pth")
    assert again.inputs == ["a", "b", "c"]
    assert torch.equal(again.model(x), model(x))


@pytest.mark.parametrize(
    "options", [{}, {"grid_size": 3, "spline_order": 2, "bias": True}], ids=str
)
def test_a_bare_state_dict_tells_its_sizes(options, tmp_path):
    model, x = KAN([3, 5, 2], **options), torch.randn(50, 3)
    torch.save(model.state_dict(), tmp_path / "kan.pth")
    again = read(tmp_path / "kan.pth")
    assert again.inputs == ["x_0", "x_1", "x_2"]
    assert torch.equal(again.model(x), model(x))


def test_a_pruned_network_can_be_saved_and_read(tmp_path):
    model, x = network_with_dead_node(), torch.rand(80, 3)
    small = plain_kan.prune_network(model, x)
    plain_kan.save_network(tmp_path / "small.pth", small)
    assert torch.equal(read(tmp_path / "small.pth").model(x), small(x))


def test_other_models_are_not_taken_for_plain_networks(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "linear.pth")
    assert read(tmp_path / "linear.pth") is None


def test_files_that_do_not_fit_together_are_named(tmp_path):
    state = KAN([3, 5, 2]).state_dict()
    del state["layers.1.grid"]
    torch.save(state, tmp_path / "kan.pth")
    with pytest.raises(ValueError, match=r"kan\.pth looks like a plain KAN"):
        read(tmp_path / "kan.pth")


def test_base_functions_that_no_file_can_name_are_refused(tmp_path):
    model = KAN([2, 1], base_activation=lambda: nn.Hardtanh(0, 2))
    with pytest.raises(ValueError, match="not Hardtanh"):
        plain_kan.save_network(tmp_path / "kan.pth", model)


def test_a_layer_too_large_to_draw_is_refused():
    with pytest.raises(ValueError, match="too large to draw"):
        plain_kan.draw_network(KAN([20, 20]), torch.rand(10, 20))


# ------------------------------------------------------------------------- explain.py


def run(monkeypatch, *argv) -> int:
    monkeypatch.setattr(sys, "argv", ["explain.py", *map(str, argv)])
    with pytest.raises(SystemExit) as exit_:
        terminal.run_cli(explain.main)
    return exit_.value.code


@pytest.fixture
def lines(tmp_path):
    """Files of KAN([2, 1]), all of whose edges are straight lines, and of points with outputs."""
    model = KAN([2, 1], base_activation=nn.Identity)
    with torch.no_grad():
        model.layers[0].spline_weight.zero_()
        model.layers[0].base_weight.copy_(torch.tensor([[2.0, -3.0]]))
    plain_kan.save_network(tmp_path / "kan.pth", model)
    x = torch.rand(40, 2)
    rows = [f"{a},{b},{2 * a - 3 * b}" for a, b in x.tolist()]
    (tmp_path / "points.csv").write_text("\n".join(["width,height,answer", *rows]), "utf-8")
    return tmp_path


def test_explain_draws_prunes_and_reads_a_plain_network(lines, monkeypatch, capsys):
    points = lines / "points.csv"
    assert run(monkeypatch, lines / "kan.pth", "--data", points, "--prune", "0.03") == 0
    out = capsys.readouterr().out
    assert "y_0 = -3.0*height + 2.0*width" in out
    assert "1.000000" in out
    written = {path.name for path in (lines / "explain").iterdir()}
    assert written == {"network.png", "pruned.png", "pruned.pth"}
    assert read(lines / "explain" / "pruned.pth").inputs == ["width", "height"]


def test_explain_needs_no_points(lines, monkeypatch, capsys):
    assert run(monkeypatch, lines / "kan.pth") == 0
    assert "y_0 = 2.0*x_0 - 3.0*x_1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1,2,3,4\n", "line 1: 4 columns"),
        ("1,2\n3,x\n", "line 2: not all cells"),
        ("1,2\n", "two points"),
        ("1,2\n3,4,5\n", "as many columns"),
        ("1,2\n3,nan\n", "not finite"),
        (None, "CSV file"),
    ],
)
def test_bad_points_are_named(lines, monkeypatch, capsys, text, sentence):
    path = lines / "bad.csv"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text, "utf-8")
    assert run(monkeypatch, lines / "kan.pth", "--data", path) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_large_networks_are_neither_drawn_nor_read(tmp_path, monkeypatch, capsys):
    plain_kan.save_network(tmp_path / "kan.pth", KAN([20, 10, 2]))
    assert run(monkeypatch, tmp_path / "kan.pth") == 0
    out = capsys.readouterr().out
    assert "not drawn" in out
    assert "no formula" in out


def test_names_with_spaces_become_symbols():
    assert plain_report.symbols(["petal width", "", "x"]) == ["petal_width", "x_1", "x"]
