"""The benchmarks' settings are flags that train.py understands, and their helpers count right."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

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


def test_figures_of_a_gpu_are_printed_beside_their_aims(benchmark, capsys):
    gpu = benchmark("gpu")
    rows = [
        {"size": "base", "form": "groups 8", "ratio": 0.96, "compiled": False},
        {"size": "base", "form": "rank 16", "ratio": 0.5, "compiled": False},
        {"size": "base", "form": "full", "left out": "no time"},
    ]
    wrong = [{"form": "full", "error": 0.1, "right": False}]
    gpu.show({"machine": "a GPU", "parts": {"correct": wrong, "models": rows}})
    told = capsys.readouterr().out
    assert "| base | rank 16 | 0.5 | no |" in told
    assert "no time" in told
    assert "1 of the forms are wrong" in told
    assert "groups 8-base: 0.96 of timm's ViT, reached 0.95" in told
    assert "rank 16-base: 0.50 of timm's ViT, missed 0.85" in told


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_to_see_that_it_works(tmp_path):
    words = ["--device", "cpu", "--tiny", "--only", "correct", "layers", "--output"]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", *words, str(tmp_path / "gpu.json")]
    subprocess.run(command, cwd=FOLDER.parent, env=env, check=True)
    results = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["parts"]
    assert all(row["right"] for row in results["correct"])
    assert {"nn.Linear", "bare product", "rank 16", "feature"} <= {
        row["layer"] for row in results["layers"]
    }


def test_the_commands_of_defaults_are_flags_of_train_py(benchmark):
    table = benchmark("defaults")
    for command in table.COMMANDS:
        parse_args(["--weights", "file", *table.flags_of(command)])


def test_a_folder_of_few_photos_has_two_of_each_class_and_no_photo_that_judges(benchmark, tmp_path):
    defaults = benchmark("defaults")
    for i in range(60):
        path = tmp_path / "set" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a photo")
    job = defaults.Job("head alone", "set", 12, 1)
    defaults.lay_out(job, tmp_path / "set", tmp_path / "run")

    def photos(part):
        return [link.resolve() for link in (tmp_path / "run" / part).glob("*/*")]

    assert len(photos("train")) == 12
    assert len(photos("test")) == 24
    assert not set(photos("train")) & set(photos("test"))
    counts = Counter(path.parent.name for path in photos("train"))
    assert len(counts) == 3
    assert min(counts.values()) >= 2


def test_the_width_of_a_difference_is_that_of_the_seeds_within_each_set(benchmark):
    difference = benchmark("defaults").difference
    theirs = {("a", 1): 0.5, ("a", 2): 0.6, ("b", 1): 0.2, ("b", 2): 0.3}
    ours = {("a", 1): 0.6, ("a", 2): 0.7, ("b", 1): 0.2, ("b", 2): 0.4}  # +0.1, +0.1; 0, +0.1
    mean, half = difference(ours, theirs)
    assert mean == pytest.approx(0.075)
    assert half == pytest.approx(12.7062 * (0.005 / 2) ** 0.5 / 2)  # Student's t, one degree
    both = ours | {("a", 2): 0.8}  # now both sets spread alike: two degrees
    assert difference(both, theirs)[1] == pytest.approx(4.30265 * 0.005**0.5 / 2)
    mean, half = difference({("a", 1): 0.6}, theirs)
    assert mean == pytest.approx(0.1)
    assert math.isnan(half)


def default_line(command, photos, seed, accuracy):
    found = {"test_acc": accuracy, "cpu_seconds": 10.0 * seed}
    return {"command": command, "set": "a", "photos": photos, "seed": seed} | found


def test_tables_of_defaults_stand_in_the_order_of_photos_with_all_of_them_last(benchmark):
    lines = [default_line("head alone", n, s, 0.5) for n in (0, 50) for s in (1, 2)]
    lines += [default_line("--mlp gkan", n, s, 0.6) for n in (0, 50) for s in (1, 2)]
    told = benchmark("defaults").show(lines)
    assert told.index("50 photos") < told.index("all photos")
    assert told.count("| head alone | 2 | 0.500 | 0.500 | +10.0 (± 0.0) | 15 |") == 2
    other = benchmark("defaults").show(lines, "head alone")
    assert other.count("| --mlp gkan | 2 | 0.600 | 0.600 | -10.0 (± 0.0) | 15 |") == 2


def test_a_log_loss_has_a_table_of_its_own_of_the_runs_that_have_one(benchmark):
    lines = [default_line(command, 50, s, 0.5) for command in ("a", "b", "c") for s in (1, 2)]
    for line, loss in zip(lines[:3], (0.7, 0.9, 1.0), strict=True):
        line["test_log_loss"] = loss
    accuracy, losses = benchmark("defaults").show(lines, "a").split("50 photos, log loss")
    assert "| b | 2 | 0.500 | 0.500 | +0.0 (± 0.0) | 15 |" in accuracy
    assert "| a | 2 | 0.800 | 0.800 |  | 15 |" in losses
    assert "| b | 1 | 1.000 | 1.000 | -0.300 | 10 |" in losses
    assert "| c |" not in losses


def test_tables_of_defaults_hold_the_photos_and_seeds_that_are_asked_for(
    benchmark, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "lines.jsonl"
    lines = [default_line("head alone", n, s, s / 10) for n in (0, 50, 200) for s in (1, 2)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    words = ["--show", "--results", str(file), "--photos", "50", "0", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", ["defaults", *words])
    benchmark("defaults").main()
    told = capsys.readouterr().out
    assert "50 photos" in told
    assert "all photos" in told
    assert "200 photos" not in told
    assert told.count("| head alone | 1 | 0.200 |") == 2


def test_epochs_are_chosen_by_accuracy_then_loss_by_loss_and_by_probability(benchmark):
    rules = benchmark("small_folders")
    right = [[0.99, 0.01], [0.55, 0.3], [0.4, 0.49]]  # of each epoch, the two photos' own class
    logits = torch.tensor([[[p, 1 - p] for p in row] for row in right]).log()
    logits = torch.stack([logits[:, 0], logits[:, 1].flip(-1)], 1)  # the second's class is 1
    found = rules.best_epochs(logits, torch.tensor([0, 1]))
    assert found == {"accuracy": 1, "loss": 2, "probability": 0, "the last": 2}


def test_a_mark_has_the_accuracy_of_the_last_epoch_that_had_ended(benchmark):
    found = benchmark("peers").at_marks([70.0, 100.0, 290.0], [0.5, 0.7, 0.6], [1, 2, 5, 10])
    assert found == {1: 0.0, 2: 0.7, 5: 0.6, 10: 0.6}


def test_means_of_loops_stand_beside_each_other_only_on_the_same_splits(benchmark):
    def line(peer, split, accuracy, cores=2):
        about = {"peer": peer, "split": split, "cores": cores, "set": "flowers", "minutes": [1, 2]}
        return about | {"accuracy": {"1": 0.0, "2": accuracy}}

    lines = [line("timm", 0, 0.5), line("timm", 1, 0.7), line("train.py, head alone", 0, 0.9)]
    told = benchmark("peers").tables([*lines, line("timm", 0, 0.8, cores=1)])
    alone, first, both = told.strip().split("\n\n")
    assert "cores: 1, splits: 0 |" in alone
    assert "| timm | | 0.800 |" in alone
    assert "cores: 2, splits: 0 |" in first
    assert "| timm | | 0.500 |" in first
    assert "| train.py, head alone | | 0.900 |" in first
    assert "cores: 2, splits: 0, 1 |" in both
    assert "| timm | | 0.600 |" in both
    assert "head alone" not in both
