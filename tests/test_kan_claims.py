"""The benchmark of the KAN papers' claims: it resumes, counts rightly, and its page is its data."""

import json
import math

import pytest
import torch

from benchmarks import kan_claims
from benchmarks.claims import cost, fitting, forgetting, networks, poisson
from benchmarks.claims.store import Store

CPU = torch.device("cpu")
TINY = fitting.Scale((3, 5), (2,), (5,), 10, 2, 1)


def test_a_piece_that_has_a_line_is_not_measured_again(tmp_path):
    path = tmp_path / "lines.jsonl"
    calls = []
    for scale in ("quick", "quick", "full"):
        row = Store(path, scale).once({"part": "x"}, lambda: calls.append(1) or {"value": (1, 2)})
        assert row["value"] == [1, 2]
    assert len(calls) == 2  # the full scale is another matter
    assert {"date", "torch", "machine"} <= json.loads(
        path.read_text("utf-8").splitlines()[0]
    ).keys()


@pytest.mark.parametrize("name", fitting.TASKS)
def test_functions_are_those_of_the_paper(name):
    by_hand = {
        "J0(20x)": lambda x: float(torch.special.bessel_j0(torch.tensor(20 * x[0]))),
        "exp(sin(pi x) + y^2)": lambda x: math.exp(math.sin(math.pi * x[0]) + x[1] ** 2),
        "xy": lambda x: x[0] * x[1],
        "exp(mean sin^2(pi x_i / 2)), 100 variables": lambda x: math.exp(
            sum(math.sin(math.pi * v / 2) ** 2 for v in x) / 100
        ),
        "exp of two sines, 4 variables": lambda x: math.exp(
            0.5
            * (
                math.sin(math.pi * (x[0] ** 2 + x[1] ** 2))
                + math.sin(math.pi * (x[2] ** 2 + x[3] ** 2))
            )
        ),
    }
    task = fitting.TASKS[name]
    x = torch.rand(3, task.shape[0], dtype=torch.float64) * 2 - 1
    wanted = torch.tensor([by_hand[name](row) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(task.function(x), wanted, atol=1e-6, rtol=0)


def test_exponent_of_a_power_law_is_found():
    law = [fitting.Point("", n, [5.0 * n**-4.0], [1.0]) for n in (10, 20, 50)]
    assert fitting.exponent(law) == pytest.approx(-4)
    assert math.isnan(fitting.exponent(law[:1]))


def test_frontier_keeps_what_no_smaller_network_beats():
    candidates = [
        fitting.Point(label, n, [error], [1.0])
        for label, n, error in (("a", 10, 1.0), ("b", 20, 2.0), ("c", 20, 0.5), ("d", 30, 0.5))
    ]
    assert [p.label for p in fitting.frontier(candidates)] == ["a", "c"]


def test_an_mlp_of_depth_d_has_d_layers_of_weights():
    model = networks.make_mlp(networks.hidden_sizes(2, 7, 4), "SiLU")
    linear = [m for m in model if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(2, 7), (7, 7), (7, 7), (7, 1)]


def test_both_sides_of_a_fit_are_judged_on_the_same_points():
    task = fitting.TASKS["xy"]
    kan = fitting.fit_kan(task, "even knots", 0, TINY, CPU)["curve"]
    mlp = fitting.fit_mlp(task, "tanh", 5, 2, 0, TINY, CPU)["curve"]
    assert [e["label"] for e in kan] == ["grid 3", "grid 5"]
    assert [e["parameters"] for e in kan] == [6 * (3 + 3 + 1), 6 * (5 + 3 + 1)]
    assert mlp[0]["parameters"] == 3 * 5 + 6
    for entry in kan + mlp:
        assert entry["test"] < 1
        assert entry["seconds"] > 0


def test_the_solution_solves_poissons_equation():
    problem = poisson.Problem.on_grid(5, CPU)
    assert problem.inner.shape == (25, 2)
    assert poisson.solution(problem.boundary).abs().max() < 1e-12
    exact = torch.nn.Module()
    exact.forward = lambda x: poisson.solution(x)[:, None]
    assert problem.loss(exact).item() < 1e-20
    assert problem.errors(exact) == {"l2": 0.0, "h1": 0.0}


@pytest.mark.parametrize(("side", "variant"), [("KAN", "even knots"), ("MLP", "tanh")])
@pytest.mark.parametrize("method", ["LBFGS", "Adam"])
def test_poissons_equation_is_approached(side, variant, method):
    scale = poisson.Scale(inner=6, lbfgs=10, adam=10, tuning=0.5, notes=2)
    row = poisson.solve(side, variant, method, 1e-2, 0, 1.0, scale, CPU)
    assert [e["step"] for e in row["curve"]] == [5, 10]
    assert row["curve"][-1]["h1"] < row["curve"][0]["h1"] or method == "Adam"
    assert row["parameters"] == {"KAN": 30 * (5 + 3 + 1), "MLP": 300 + 2 * 10100 + 101}[side]


def test_splines_alone_do_not_forget():
    network = forgetting.Network("KAN [1, 1], grid 200, splines alone", "even knots", 0.1)
    row = forgetting.learn(network, 0, 60)
    first = [after[0] for after in row["errors"]]
    assert first[-1] == pytest.approx(first[0], abs=0.02)
    assert forgetting.at_end(row) < 0.1
    assert len(row["curves"]) == forgetting.PEAKS


def test_mlps_compared_in_cost_are_as_wide_or_as_large_as_the_kan():
    models = cost.networks(cost.Case((4, 6, 3), 10, torch.float64, 1))
    kan, same_width, same_size = (fitting.parameter_count(m) for m in models.values())
    assert same_width == 4 * 6 + 6 + 6 * 3 + 3
    assert same_size == pytest.approx(kan, abs=4 + 3 + 1)


def test_the_page_shows_what_was_measured(tmp_path, capsys):
    """`show` would change nothing: tables and their data stay together."""
    page, images = tmp_path / "page.md", tmp_path / "images"
    images.mkdir()
    wanted = kan_claims.PAGE.read_text("utf-8")
    page.write_text(wanted, "utf-8")
    kan_claims.show(Store(kan_claims.RESULTS, "quick"), page, images)
    # Part e also shows what benchmarks/kan_vit.py measures, in its own time.
    last = "<!-- part e -->"
    assert page.read_text("utf-8").split(last)[0] == wanted.split(last)[0]
    for figure in images.iterdir():
        committed = kan_claims.IMAGES / figure.name
        assert committed.stat().st_size < 300_000
        assert figure.name in page.read_text("utf-8")


def test_a_page_without_marks_is_refused():
    with pytest.raises(SystemExit, match="lacks the marks"):
        kan_claims.replaced("text", "a", "table")


def test_results_that_are_not_there_do_not_empty_the_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("as it was", "utf-8")
    monkeypatch.setattr(kan_claims, "PAGE", page)
    monkeypatch.setattr(kan_claims, "RESULTS", tmp_path / "none.jsonl")
    monkeypatch.setattr("sys.argv", ["kan_claims", "show"])
    with pytest.raises(SystemExit) as left:
        kan_claims.main()
    assert left.value.code == 2
    assert "none.jsonl has no results of full runs" in capsys.readouterr().err
    assert page.read_text("utf-8") == "as it was"
