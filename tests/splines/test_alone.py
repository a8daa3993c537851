"""kan.py and splines/ without the rest of the project: docs/kan_layer.md is true."""

import ast
import inspect
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from kan import KAN, GroupKANLinear, KANLinear

PAGE = (ROOT / "docs" / "kan_layer.md").read_text("utf-8")
API, PYKAN = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
OPTIONAL = {"triton"}  # imported inside functions, or where it is known to be there


def imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_the_layer_needs_torch_alone():
    files = [ROOT / "kan.py", *(ROOT / "splines").glob("*.py")]
    needed = {name for file in files for name in imported(file)} - set(sys.stdlib_module_names)
    assert needed - OPTIONAL == {"torch", "splines"}


def test_the_ten_lines_of_the_page_run_and_say_what_is():
    said = {}
    exec(API, said)
    assert said["layer"](torch.randn(3, 64)).shape == (3, 32)
    assert said["lean"].spline_rank == said["small"].spline_rank * 2 == 16
    assert isinstance(said["quick"], GroupKANLinear)
    assert 0 < said["error"] < 1
    assert said["model"].layers[0].grid_size == 10
    assert said["layer"].grid.shape[1] == 8 + 2 * 3 + 1
    assert said["layer"].high.eq(3).all()


def test_the_line_for_pykans_users_runs(tmp_path, monkeypatch):
    state = {
        "act_fun.0.grid": torch.linspace(-2, 2, 12).expand(3, -1),
        "act_fun.0.coef": torch.randn(3, 2, 8),
    }
    state |= {f"act_fun.0.{name}": torch.ones(3, 2) for name in ("mask", "scale_base", "scale_sp")}
    torch.save(state, tmp_path / "multkan.pth")
    monkeypatch.chdir(tmp_path)
    said = {"torch": torch}
    exec(PYKAN, said)
    (layer,) = said["model"].layers
    assert (layer.in_features, layer.out_features, layer.grid_size) == (3, 2, 5)


def test_the_tables_name_what_the_layers_have():
    rows = re.findall(r"^\| .* \| (.*) \|$", PAGE, re.MULTILINE)
    names = set(re.findall(r"\b([a-z]\w+)=|\.([a-z]\w+)|^`(\w+)`", " ".join(rows)))
    names = {name for found in names for name in found if name}
    assert {"grid_size", "spline_scaler", "edge_activations"} <= names
    layer, model = KANLinear(2, 2, bias=True), KAN([2, 2])
    known = {*dir(layer), *dir(model), *inspect.signature(KANLinear).parameters, "py"}
    assert names <= known


@pytest.mark.slow
def test_a_copy_of_both_is_all_it_takes(tmp_path):
    shutil.copytree(ROOT / "splines", tmp_path / "splines")
    shutil.copy(ROOT / "kan.py", tmp_path / "kan_layer.py")
    code = API.replace("from kan import", "from kan_layer import")
    code += "import sys; assert not {'numpy.testing', 'system', 'vit'} & set(sys.modules)"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, check=False, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
