"""The benchmarks' settings are flags that train.py understands, and their helpers count right."""

import importlib.util
import sys
from pathlib import Path

import pytest

from training.flags import parse_args

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Returns load(name) -> the module of benchmarks/name.py."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    return load


def test_every_row_of_the_recipe_is_made_of_flags_of_train_py(benchmark):
    table = benchmark("recipe")
    for name in table.SETTINGS:
        args = parse_args(["--weights", "file", *table.flags(name)])
        assert {"lr", "opt", "epochs", "layer_decay", "label_smoothing", "aug"} <= args.given, name
        assert args.freeze_layers == name.startswith("head")


def test_a_row_differs_from_its_parent_by_its_own_flags_alone(benchmark):
    table = benchmark("recipe")
    before = parse_args(table.flags("+ warm-up, rate 2e-4"))
    after = parse_args(table.flags("+ no decay of biases, norms"))
    changed = {k for k, v in vars(after).items() if v != vars(before)[k]}
    assert changed == {"decay_all"}


def test_differences_are_taken_seed_by_seed_where_both_rows_have_one(benchmark):
    table = benchmark("recipe")

    def rows(*accuracies):
        return [{"seed": s, "epochs": [{"val_acc": a}]} for s, a in enumerate(accuracies)]

    results = {"a": rows(0.5, 0.6, 0.9), "b": rows(0.6, 0.8)}
    assert table.difference(results, "b", "a") == "+15.0 to a"
    assert table.difference(results, "b", None) == ""


def test_spread_shows_mean_lowest_and_highest(benchmark):
    runs = benchmark("runs")
    assert runs.spread([1.0], 2) == "1.00"
    assert runs.spread([1.0, 2.0, 6.0], 1) == "3.0 (1.0 to 6.0)"
