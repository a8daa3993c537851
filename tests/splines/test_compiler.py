"""native.c under any compiler, and none: flags, names, failures; what is lacking here is acted."""

import os
import re
import shutil
import stat
import subprocess
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from kan import GroupKANLinear, KANLinear
from splines import compiler, native

SOURCE = ROOT / "splines" / "native.c"
DEFINES = ["-DORDER=3", "-DREAL=float", "-DWHOLE=int32_t", "-DSIZE=4"]
NEEDS_CC = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
CC = shutil.which("cc")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """An empty cache, compilers that need not optimise, and C wanted however few the inputs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("KAN_COMPILE", raising=False)
    monkeypatch.setattr(compiler, "OPTIMISED", "-O0")
    monkeypatch.setattr(native, "COMPILED_FROM", 0)
    monkeypatch.setattr(native, "COMPILE_FROM", 0)
    compiler._plan.cache_clear()  # it remembers -O3
    yield
    compiler._plan.cache_clear()


@pytest.fixture
def script(tmp_path):
    """Returns script(text, name) -> path of a shell script that can be run."""

    def script(text, name="fake-cc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return script


@pytest.fixture
def system(monkeypatch):
    """Returns system(platform, machine): as if this were another one."""

    def system(name, machine="x86_64"):
        monkeypatch.setattr(compiler, "sys", types.SimpleNamespace(platform=name, maxsize=1))
        monkeypatch.setattr(compiler.platform, "machine", lambda: machine)

    return system


def library(order=1):
    return native.compiled(order, torch.float32, 1)


def computes_as_torch(monkeypatch):
    """Whether a layer's results and gradients are those of torch alone."""
    x = torch.randn(9, 37, requires_grad=True)
    layers = KANLinear(37, 3, spline_order=1), GroupKANLinear(37, 3, 1, spline_order=1)
    for layer in layers:
        results = []
        for least in (0, 1 << 40):
            monkeypatch.setattr(native, "COMPILED_FROM", least)
            y = layer(x)
            results.append([y, *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])])
        monkeypatch.setattr(native, "COMPILED_FROM", 0)
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    return True


# --- which compiler ------------------------------------------------------------------------------


def test_the_compiler_of_the_environment_may_have_spaces_and_arguments(script):
    plain, spaced = script("", "cc"), script("", "my tools/cc")
    folder = str(Path(plain).parent)
    for wish, found in {
        plain: (plain,),
        "cc": (plain,),
        f"{plain} -m64 -DA=1": (plain, "-m64", "-DA=1"),
        f"  {plain}  ": (plain,),
        spaced: (spaced,),
        f"{spaced} -m64": (spaced, "-m64"),
        f'"{spaced}" -m64 "-DA=b c"': (spaced, "-m64", "-DA=b c"),
        "cc gcc-13 -m64": (plain, "gcc-13", "-m64"),  # as ccache is used
    }.items():
        assert compiler.find_compiler(wish, folder) == found, wish
    for wish in ("gcc-13", f"{folder}/none", f'{plain} "-DA', f'"{plain}', folder, '""'):
        assert compiler.find_compiler(wish, folder) is None, wish


def test_without_a_wish_the_first_compiler_in_the_path_is_taken(script):
    folder = str(Path(script("", "clang")).parent)
    for wish in (None, "", " "):
        assert compiler.find_compiler(wish, folder) == (f"{folder}/clang",)
    assert compiler.find_compiler(None, str(Path(folder, "empty"))) is None
    gcc = script("", "gcc")
    assert compiler.find_compiler(None, folder) == (gcc,)


def test_on_windows_backslashes_belong_to_paths(system):
    system("win32")
    assert compiler._words(r'"C:\Program Files\LLVM\clang.exe" -O1 D:\x') == [
        r"C:\Program Files\LLVM\clang.exe",
        "-O1",
        r"D:\x",
    ]


# --- how it is called ----------------------------------------------------------------------------


def ways(*command, library="kan.so"):
    return [[list(c) for c in way] for way in compiler.commands(command, DEFINES, library)]


def test_linux_links_without_openmp_and_tries_less_and_less(system):
    system("linux")
    found = ways("/usr/bin/gcc", "-m64")
    assert [(("-march=native" in a), ("-fopenmp" in a)) for a, _ in found] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    ]
    for compiling, linking in found:
        assert compiling[:2] == linking[:2] == ["/usr/bin/gcc", "-m64"]
        assert compiling[-4:] == ["-c", "native.c", "-o", "kan.o"]
        assert {"-fPIC", *DEFINES} <= set(compiling)
        assert linking[2:] == ["-shared", "kan.o", "-o", "kan.so"]


def test_apples_clang_takes_openmp_from_torch_or_goes_without(system):
    system("darwin", "arm64")
    found = ways("/usr/bin/cc", library="kan.dylib")
    assert len(found) == 6
    assert all("-march=native" not in compiling for compiling, _ in found)
    assert "-mcpu=native" in found[0][0]
    text = [" ".join(compiling) for compiling, _ in found]
    assert [t.count("-Xpreprocessor -fopenmp") for t in text[:3]] == [0, 1, 0]
    assert [t.count("-fopenmp") for t in text[:3]] == [1, 1, 0]
    assert found[0][1] == ["/usr/bin/cc", "-shared", "-Wl,-undefined,dynamic_lookup", "kan.o", "-o",
                           "kan.dylib"]  # fmt: skip


def test_windows_has_one_thread_and_no_fpic(system):
    system("win32", "AMD64")
    for compiling, linking in ways(r"C:\mingw\gcc.exe", library="kan.dll"):
        assert not {"-fPIC", "-fopenmp"} & set(compiling)
        assert linking[-2:] == ["-o", "kan.dll"]


@pytest.mark.parametrize("name", [r"C:\VC 2022\bin\cl.exe", "cl", "/x/CL.EXE", r"D:\clang-cl.exe"])
def test_msvc_is_told_in_its_own_words(system, name):
    system("win32", "AMD64")
    expected = [name, "/nologo", "/O2", *DEFINES, "native.c", "/LD", "/Fekan.dll"]
    assert ways(name, library="kan.dll") == [[expected]]
    assert ways("ccache", name, library="kan.dll") == [[["ccache", *expected]]]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("linux", "so"), ("darwin", "dylib"), ("win32", "dll"), ("freebsd14", "so")],
)
def test_libraries_have_the_suffix_of_their_system(system, script, monkeypatch, name, suffix):
    system(name)
    monkeypatch.setenv("CC", script(""))
    assert re.fullmatch(rf"kan-\w{{24}}\.{suffix}", compiler.plan(3, torch.float32).library.name)


# --- when it fails -------------------------------------------------------------------------------


GARBAGE = 'for last; do :; done; echo "no library" > "$last"'
FAILING = {
    "fails": "exit 1",
    "crashes": "kill -SEGV $$",
    "writes nothing": "exit 0",
    "writes garbage": GARBAGE,
    "speaks": "echo error: no; echo error: no >&2; exit 2",
}
FORMS = [
    "fails",
    "crashes",
    "writes nothing",
    "writes garbage",
    "speaks",
    "missing",
    "empty",
    "text",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_compiler_that_fails_leaves_the_work_to_torch_in_silence(
    monkeypatch, script, tmp_path, capfd, form
):
    wish = script(FAILING.get(form, ""))
    if form == "missing":
        wish += "er"
    elif form in ("empty", "text"):  # it can be found, but not run
        Path(wish).write_text("" if form == "empty" else "no program", "utf-8")
    monkeypatch.setenv("CC", wish)
    assert library() is None
    assert computes_as_torch(monkeypatch)
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "cache").rglob("*kan*.*")) == []


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(monkeypatch, script, tmp_path):
    monkeypatch.setattr(compiler, "MOST_SECONDS", 0.2)
    pids = tmp_path / "pids"
    monkeypatch.setenv("CC", script(f"sleep 1000 & echo $! >> {pids}; wait"))
    start = time.monotonic()
    assert library() is None
    assert library() is None  # it is not tried again
    assert computes_as_torch(monkeypatch)
    assert time.monotonic() - start < 20
    (pid,) = pids.read_text("utf-8").split()  # one way, not four
    for _ in range(100):  # until init has seen its end
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or ") Z" in status.read_text("utf-8"):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the compiler's child lives on")


def test_a_folder_that_cannot_be_written_leaves_the_work_to_torch(monkeypatch, script, tmp_path):
    monkeypatch.setenv("CC", script(""))
    build = compiler.plan(1, torch.float32)
    shutil.rmtree(build.library.parent)
    assert compiler.load(build) is None


# --- when it is odd ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcc", "clang", "tcc"])
def test_the_compilers_that_are_here_serve(monkeypatch, name):
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    monkeypatch.setenv("CC", name)
    assert library().width() >= (1 if name == "tcc" else 2)
    assert computes_as_torch(monkeypatch)


@NEEDS_CC
def test_a_compiler_without_openmp_compiles_for_one_thread(monkeypatch, script, tmp_path):
    log = tmp_path / "log"
    refuse = f'echo "$*" >> {log}; case "$*" in *openmp*) exit 1;; esac; exec {CC} "$@"'
    monkeypatch.setenv("CC", script(refuse))
    assert library() is not None
    assert computes_as_torch(monkeypatch)
    assert "-fopenmp" in log.read_text("utf-8")


@NEEDS_CC
def test_what_does_not_load_here_is_compiled_in_another_way(monkeypatch, script, tmp_path):
    """As clang's OpenMP, whose library torch has not loaded."""
    header = tmp_path / "other.h"
    header.write_text("int kmpc(void); int use(void) { return kmpc(); }", "utf-8")
    text = f'case "$*" in *openmp*) set -- "$@" -include {header};; esac; exec {CC} "$@"'
    monkeypatch.setenv("CC", script(text))
    assert library() is not None
    assert computes_as_torch(monkeypatch)


@NEEDS_CC
def test_a_compiler_that_does_not_know_this_processor_compiles_for_any(monkeypatch, script):
    monkeypatch.setenv("CC", script(f'case "$*" in *=native*) exit 1;; esac; exec {CC} "$@"'))
    assert library() is not None
    assert computes_as_torch(monkeypatch)


@NEEDS_CC
def test_msvc_compiles_for_one_number_at_a_time(monkeypatch, script, system):
    """A cl that has gcc compile what cl would see: no vectors, and a .dll."""
    system("win32", "AMD64")
    text = f"""
    [ "$1 $2" = "/nologo /O2" ] || exit 1
    shift 2
    for word; do
        shift
        case $word in /Fe*) out=${{word#/Fe}};; /LD) ;; *) set -- "$@" "$word";; esac
    done
    touch kan.lib kan.exp native.obj
    exec {CC} -std=c11 -pedantic-errors -DSCALAR -fPIC -shared "$@" -o "$out"
    """
    monkeypatch.setenv("CC", script(text, "cl"))
    assert library().width() == 1
    assert computes_as_torch(monkeypatch)
    assert [p.suffix for p in compiler.plan(1, torch.float32).library.parent.iterdir()] == [".dll"]


@NEEDS_CC
def test_a_broken_library_in_the_cache_is_made_anew(monkeypatch, script):
    monkeypatch.setenv("CC", script(f'exec {CC} "$@"'))
    build = compiler.plan(1, torch.float32)
    build.library.write_bytes(b"\x7fELF and no more")
    assert library() is not None
    assert build.library.stat().st_size > 1000


@NEEDS_CC
def test_a_library_that_cannot_be_put_in_place_serves_this_process(monkeypatch, script):
    def busy(*_):
        raise PermissionError(13, "Permission denied")  # another process on Windows uses it

    monkeypatch.setenv("CC", script(f'exec {CC} "$@"'))
    monkeypatch.setattr(os, "replace", busy)
    assert library() is not None
    assert computes_as_torch(monkeypatch)


# --- when it is asked ----------------------------------------------------------------------------


@NEEDS_CC
def test_the_environment_is_read_at_each_call(monkeypatch):
    assert library() is not None
    monkeypatch.setenv("KAN_COMPILE", "0")
    assert library() is None
    monkeypatch.delenv("KAN_COMPILE")
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert library() is None
    monkeypatch.setenv("CC", CC)
    assert library() is not None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert library() is None


def test_a_library_is_kept_for_what_it_depends_on(monkeypatch, script, tmp_path):
    def name(order=3, real=torch.float32):
        compiler._plan.cache_clear()
        return compiler.plan(order, real).library.name

    wish = script("exit 1")
    monkeypatch.setenv("CC", wish)
    names = [name(), name(2), name(3, torch.float64)]
    monkeypatch.setenv("CC", f"{wish} -DX")
    names.append(name())
    monkeypatch.setenv("CC", script("exit 1", "other-cc"))
    names.append(name())
    monkeypatch.setenv("CC", wish)
    assert name() == names[0]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert name() == names[0]
    script("exit 1 # updated")
    names.append(name())
    monkeypatch.setattr(compiler, "_machine", lambda: ("another processor",))
    names.append(name())
    monkeypatch.setattr(compiler, "OPTIMISED", "-O2")
    names.append(name())
    monkeypatch.setattr(Path, "read_text", lambda *_: "int64_t width(void) { return 1; }")
    names.append(name())
    assert len(set(names)) == len(names)


@NEEDS_CC
def test_what_another_process_compiled_is_loaded_without_a_compiler(monkeypatch, script):
    monkeypatch.setenv("CC", script(f'exec {CC} "$@"'))
    assert library() is not None
    compiler.load.cache_clear()
    monkeypatch.setattr(compiler, "_run", None)  # calling it would fail
    assert library() is not None
    assert computes_as_torch(monkeypatch)


# --- the source ----------------------------------------------------------------------------------


def seen(*flags):
    """native.c as the compiler sees it, without what it includes."""
    command = [CC, "-E", *DEFINES, *flags, str(SOURCE)]
    text = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    parts = re.split(r'^# \d+ "(.*?)".*$', text, flags=re.M)
    return "".join(
        t for name, t in zip(parts[1::2], parts[2::2], strict=True) if "native.c" in name
    )


@NEEDS_CC
@pytest.mark.parametrize("order", [0, 3])
def test_without_vectors_the_source_is_plain_c11(order):
    strict = "-DSCALAR -std=c11 -pedantic-errors -Wall -Werror -Wno-unknown-pragmas -Wvla"
    command = [CC, *strict.split(), "-fsyntax-only", *DEFINES[1:], f"-DORDER={order}", str(SOURCE)]
    run = subprocess.run(command, check=False, capture_output=True, encoding="utf-8")
    assert run.stderr == ""
    assert re.findall(r"__\w+", seen("-DSCALAR", f"-DORDER={order}", "-UORDER")) == []
    assert "__builtin_shuffle" in seen()  # so such words would be found


@NEEDS_CC
def test_a_library_for_windows_exports_all_that_is_called():
    python = Path(native.__file__).read_text("utf-8")
    called = set(re.findall(r'_(?:call|run|run_curves|run_even)\(\s*"(\w+)"', python))
    assert len(called) > 12
    text = seen("-DSCALAR", "-D_WIN32")
    exported = re.findall(r"__declspec\(dllexport\) (?:void|int64_t) (\w+)", text)
    assert sorted(exported) == sorted({*called, "width"})
    assert re.search(r"\blong\b", text) is None  # which has 32 bits there
