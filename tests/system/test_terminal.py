"""What commands say: numbers with their words, lists of names, commands to type next."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from system.terminal import MOST_NAMED, command, counted, listed


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 times"), (1, "1 time"), (2, "2 times"), (1000, "1000 times")]
)
def test_one_and_several_are_told_apart(count, told):
    assert counted(count, "time") == told
    assert counted(count, "class", "classes") == told.replace("time", "class").replace(
        "classs", "classes"
    )


def test_long_lists_of_names_are_cut():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c"]) == "a, b and c"
    names = [str(n) for n in range(MOST_NAMED + 3)]
    assert listed(names).endswith("8, 9 and 3 more")
    assert listed(names[:MOST_NAMED]).endswith("8 and 9")


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)
)
def test_a_command_is_read_by_a_shell_as_it_was_meant(name):
    words = shlex.split(command("python", "train.py", "--resume", Path(name)))
    assert words[:3] == ["python", "train.py", "--resume"]
    assert Path(words[3]) == Path(name)
    assert not words[3].startswith("-")


def test_a_crash_below_python_tells_where_it_was():
    crash = (
        "import ctypes\nfrom system.terminal import run_cli\nrun_cli(lambda: ctypes.string_at(0))"
    )
    result = subprocess.run(
        [sys.executable, "-c", crash], check=False, cwd=ROOT, capture_output=True
    )
    assert result.returncode not in (0, 1, 2)
    assert b"in string_at" in result.stderr, result.stderr
    assert b"in run_cli" in result.stderr
