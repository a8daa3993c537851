"""Windows, macOS and odd locales: what differs there is met by design, and simulated here."""

import ast
import io
import multiprocessing
import ntpath
import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import predict
import train
import utils
from imaging import pixel_cache, splitting
from imaging.splitting import DataSplit, Samples
from kan import KANLinear
from predicting.writers import SortedCopies
from system import devices, files, terminal
from system.devices import default_workers, pick_device
from system.files import RESERVED, folder_name
from system.terminal import run_cli
from training import run_folder
from training.flags import parse_args

PROGRAM = sorted(ROOT.glob("*.py"))
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/**/*.py")])
TESTS = sorted(ROOT.glob("tests/*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in (*PROGRAM, *SCRIPTS, *TESTS)}


def short(path):
    return str(path.relative_to(ROOT))


# --- text is UTF-8 ------------------------------------------------------------------------------


OF_IMAGES_AND_ARCHIVES = {"Image", "tarfile", "zipfile", "os"}


def mode_of(call, position):
    """The mode that a call of open gives, "r" by default; None where it is not written out."""
    for value in [k.value for k in call.keywords if k.arg == "mode"] or call.args[position:][:1]:
        return value.value if isinstance(value, ast.Constant) else None
    return "r"


def lacks_encoding(call):
    """Whether a call reads or writes text in whatever encoding the system prefers."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name in ("open", "fdopen"):
        method = isinstance(call.func, ast.Attribute)
        owner = getattr(getattr(call.func, "value", None), "id", "")
        if name == "open" and owner in OF_IMAGES_AND_ARCHIVES:
            return False
        mode = mode_of(call, 0 if method and owner != "os" else 1)
        return mode is not None and set(mode) <= set("rwaxt+")  # not a name inside an archive
    return name in ("run", "Popen", "check_output") and "text" in given


def offenders(code):
    tree = ast.parse(code) if isinstance(code, str) else code
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if lacks_encoding(call)]


@pytest.mark.parametrize("path", TREES, ids=short)
def test_every_text_file_is_opened_as_utf_8(path):
    assert offenders(TREES[path]) == []


def test_a_missing_encoding_is_noticed():
    wrong = ["open(p)", "open(p, 'w')", "p.open()", "p.open('a')", "p.read_text()", "os.fdopen(3)"]
    wrong += ["p.write_text('x')", "subprocess.run(c, text=True)", "open(p, mode='r+')"]
    right = ["open(p, 'rb')", "p.open('wb')", "p.read_text('utf-8')", "Image.open(p)"]
    right += ["open(p, encoding='utf-8')", "p.write_text('x', 'utf-8')", "os.open(p, 3)"]
    assert all(offenders(code) for code in wrong)
    assert not any(offenders(code) for code in right)


def test_names_that_the_terminals_encoding_lacks_are_printed_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: print("雛菊 \udcff"))
    assert end.value.code == 0
    assert written.getvalue() == b"\\u96db\\u83ca \\udcff\n"


@pytest.mark.slow
def test_in_a_locale_without_unicode_names_survive(tmp_path, make_photos):
    make_photos(tmp_path / "照片", classes=("雛菊", "roses"), per_class=3, size=20)
    odd = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def command(program, *words, environment):
        command = [sys.executable, ROOT / program, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    words = ["--model", "vit_micro_patch8_64", "--img-size", "16", "--epochs", "1"]
    words += ["--workers", "1", "--output", "run"]
    command("train.py", "--data-path", "照片", *words, environment=odd)
    for name in ("class_indices.json", "split.json", "args.json", "metrics.csv", "report.html"):
        (tmp_path / "run" / name).read_text("utf-8")
    assert '"1": "雛菊"' in (tmp_path / "run" / "class_indices.json").read_text("utf-8")
    words = ["照片", "--weights", "run/best.pth", "--csv", "answers.csv"]
    command("predict.py", *words, environment=odd)
    assert "雛菊" in (tmp_path / "answers.csv").read_text("utf-8")
    out = command("predict.py", *words, environment=os.environ | {"PYTHONUTF8": "1"})
    assert "雛菊" in out
    assert "6 photos)" in out  # the class folders are known by their names


# --- nothing that only some systems have --------------------------------------------------------


OF_POSIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "posix"}
OF_SOME = {"fork", "memfd_create", "posix_fallocate", "sched_getaffinity", "getuid", "killpg"}
OF_SOME |= {"setsid", "mkfifo", "symlink", "symlink_to", "getloadavg", "geteuid", "SIGKILL"}
OF_SOME |= {"SIGHUP", "SIGUSR1", "SIGALRM", "alarm", "hardlink_to", "sysconf", "nice", "wait4"}


def foreign(tree):
    """What a module takes from some systems only and does not ask for before."""
    found = []
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    for node in ast.walk(tree):
        above, guards = node, ""
        while (above := getattr(above, "parent", None)) is not None:
            if isinstance(above, ast.Try):
                guards += "".join(ast.unparse(handler.type) for handler in above.handlers)
            if isinstance(above, ast.With):
                guards += "".join(map(ast.unparse, above.items))
            if isinstance(above, ast.FunctionDef):
                guards += "".join(
                    ast.unparse(n)
                    for n in ast.walk(above)
                    if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "hasattr"
                )
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            found += [name for name in names & OF_POSIX if "ImportError" not in guards]
        if isinstance(node, ast.Attribute) and node.attr in OF_SOME:
            asked = f"'{node.attr}'" in guards or "AttributeError" in guards
            found += [] if asked else [node.attr]
    return found


@pytest.mark.parametrize("path", PROGRAM, ids=short)
def test_what_only_some_systems_have_is_asked_for_before(path):
    assert foreign(TREES[path]) == []


def test_a_careless_use_is_noticed():
    assert foreign(ast.parse("import fcntl")) == ["fcntl"]
    assert foreign(ast.parse("def f():\n os.fork()")) == ["fork"]
    assert foreign(ast.parse("def f():\n if hasattr(os, 'nice'):\n  os.fork()")) == ["fork"]
    assert foreign(ast.parse("def f():\n if hasattr(os, 'fork'):\n  os.fork()")) == []
    assert foreign(ast.parse("try:\n import fcntl\nexcept ImportError: pass")) == []


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert [default_workers(), default_workers(2), default_workers(12)] == [6, 3, 1]


def test_without_fork_photos_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "fork", raising=False)
    cache, line = pixel_cache.open_cache("auto", ["a.jpg"], lambda _: (2, 2), tmp_path)
    assert cache is None
    assert "this system cannot share them" in line


def test_photos_are_kept_in_a_file_where_memory_has_no_name(monkeypatch, tmp_path):
    for name in ("memfd_create", "posix_fallocate"):  # macOS has neither
        monkeypatch.delattr(os, name, raising=False)
    cache, _ = pixel_cache.open_cache("ram", ["a.jpg"], lambda _: (2, 3), tmp_path)
    from PIL import Image

    picture = Image.effect_noise((2, 3), 90).convert("RGB")
    cache.put(0, picture)
    assert cache.get(0).tobytes() == picture.tobytes()


@pytest.mark.slow
def test_training_with_spawned_workers_is_bit_for_bit_that_with_none(
    tmp_path, make_photos, monkeypatch, call
):
    photos = make_photos(tmp_path / "photos", per_class=3, size=20)
    monkeypatch.chdir(tmp_path)
    words = ["--data-path", photos, "--model", "vit_micro_patch8_64", "--img-size", 16]
    words += ["--epochs", 1, "--mlp", "kan", "--kan-rank", 2, "--cache-images", "ram"]
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        status, _, err = call(train.main, *words, "--workers", 1, "--output", "spawned")
        assert status == 0, err
        predicted = call(predict.main, photos, "--weights", "spawned/best.pth", "-j", 2, "--json")
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert predicted[0] == 0
    assert predicted[1].count("\n") == 9
    assert call(train.main, *words, "--workers", 0, "--output", "alone")[0] == 0
    spawned, alone = (torch.load(f"{name}/last.pth")["model"] for name in ("spawned", "alone"))
    assert all(torch.equal(spawned[key], alone[key]) for key in alone)


# --- files on Windows ---------------------------------------------------------------------------


@pytest.fixture
def windows_locks(monkeypatch):
    """A msvcrt whose locks belong to open files and end when these are closed."""
    held = []

    def is_open(descriptor, file):
        try:
            return os.path.samestat(os.fstat(descriptor), file)
        except OSError:
            return False

    def locking(descriptor, mode, count):
        assert (mode, count) == ("no waiting", 1)
        file = os.fstat(descriptor)
        others = [(d, f) for d, f in held if d != descriptor]  # the same number: long closed
        if any(is_open(d, f) and os.path.samestat(f, file) for d, f in others):
            raise PermissionError(13, "Permission denied")
        held.append((descriptor, file))

    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails
    fake = types.SimpleNamespace(LK_NBLCK="no waiting", locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    return held


def test_a_second_run_is_refused_with_the_locks_of_windows(windows_locks, tmp_path):
    (tmp_path / ".last.pth.xyz.tmp").touch()
    with run_folder.locked(tmp_path):
        assert len(windows_locks) == 1
        assert not (tmp_path / ".last.pth.xyz.tmp").exists()
        with (
            pytest.raises(ValueError, match="another process is training into"),
            run_folder.locked(tmp_path),
        ):
            pass
    with run_folder.locked(tmp_path):
        pass


@pytest.fixture
def busy(monkeypatch):
    """Returns busy(times): os.replace then fails so often, as when another program reads a file."""

    def busy(times):
        real, left = os.replace, [times]

        def replace(source, target):
            left[0] -= 1
            if left[0] >= 0:
                raise PermissionError(13, "Permission denied", source, None, target)
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(files.time, "sleep", lambda _: None)

    return busy


def test_a_file_that_another_program_reads_is_replaced_when_it_has_finished(busy, tmp_path):
    files.write_text(tmp_path / "metrics.csv", "old")
    busy(times=3)
    files.write_text(tmp_path / "metrics.csv", "new")
    assert (tmp_path / "metrics.csv").read_text("utf-8") == "new"


def test_a_file_that_stays_open_elsewhere_is_named_and_whole(busy, tmp_path):
    files.write_text(tmp_path / "metrics.csv", "old")
    busy(times=10**6)
    with pytest.raises(PermissionError) as end:
        files.write_text(tmp_path / "metrics.csv", "new")
    said = terminal.one_line(end.value)
    assert said.startswith(f"{tmp_path / 'metrics.csv'}: ")
    assert "open in another program" in said
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text("utf-8") == "old"


def test_an_error_names_the_file_that_was_asked_for_not_the_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError) as end:
        files.write_text(tmp_path / "no" / "x.json", "{}")
    assert end.value.filename == str(tmp_path / "no" / "x.json")


def test_a_file_is_closed_before_it_is_renamed(monkeypatch, tmp_path):
    real, opened = open, []

    def kept(*arguments, **options):
        opened.append(real(*arguments, **options))
        return opened[-1]

    def replace(*paths):
        assert opened[-1].closed  # Windows renames no open file
        os.rename(*paths)

    monkeypatch.setattr(files, "open", kept, raising=False)
    monkeypatch.setattr(os, "replace", replace)
    files.write_text(tmp_path / "x.json", "{}")
    assert opened


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_devices_become_other_folder_names(name):
    for text in (name, name.upper(), f"{name}.jpg", f" {name} ", f"{name} .x"):
        assert folder_name(text).startswith("_")
    assert folder_name(f"{name}x") == f"{name}x"


@given(st.text(max_size=300) | st.text("./\\: *CONnul¹\u0000\udcff", max_size=12))
def test_any_class_name_becomes_one_folder_on_any_system(name):
    folder = folder_name(name)
    assert 0 < len(os.fsencode(folder)) <= 255
    assert not set(folder) & set('/\\:*?"<>|\0')
    assert folder == folder.strip().rstrip(".")
    assert folder.lower().split(".")[0] not in RESERVED
    assert ntpath.basename(folder) == os.path.basename(folder) == folder


@settings(deadline=None)
@given(st.lists(st.text("aAbB_0123. /", min_size=1, max_size=4), min_size=1, unique=True))
def test_every_class_has_a_folder_of_its_own_where_case_does_not_count(classes):
    folders = SortedCopies._subfolders(classes)
    assert len({folder.lower() for folder in folders}) == len(classes)


@pytest.fixture
def windows_paths(monkeypatch):
    fake = types.SimpleNamespace(path=ntpath, sep="\\", fspath=os.fspath)
    monkeypatch.setattr(splitting, "os", fake)


@pytest.mark.usefixtures("windows_paths")
def test_stored_paths_have_slashes_and_are_read_back():
    train = ["C:\\photos\\a\\1.jpg", "C:\\photos\\b\\x\\2.jpg"]
    val = ["C:\\other\\a\\3.jpg", "D:\\val\\b\\4.jpg"]
    split = DataSplit("C:\\photos", ["a", "b"], Samples(train, [0, 1]), Samples(val, [0, 1]), None)
    stored = split.to_dict()
    assert stored["train"] == {"a": ["a/1.jpg"], "b": ["b/x/2.jpg"]}
    assert stored["val"] == {"a": ["../other/a/3.jpg"], "b": ["D:/val/b/4.jpg"]}
    again = DataSplit.from_dict(stored, "C:\\photos")
    assert (again.train.paths, again.val.paths) == (train, val)


# --- GPUs of Apple ------------------------------------------------------------------------------


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_is_a_device_that_this_machine_lacks():
    assert parse_args(["--device", "mps"]).device == "mps"
    with pytest.raises(ValueError, match="--device mps: torch finds no GPU of Apple here"):
        pick_device("mps")


def test_mps_is_taken_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("mps") == pick_device("auto") == torch.device("mps")


def test_mps_trains_in_full_precision_unless_told_otherwise():
    mps = torch.device("mps")
    assert devices.amp_dtype("auto", mps) is None
    assert devices.amp_dtype("bf16", mps) == torch.bfloat16
    assert devices.amp_dtype("fp16", mps) == torch.float16
    assert not torch.amp.GradScaler("mps", enabled=False).is_enabled()


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on MPS, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "mps" and t.dtype == torch.float64 for t in tensors):
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return result


def test_a_kan_layer_sets_its_range_and_computes_without_float64_on_mps():
    layer = KANLinear(3, 2, spline_rank=1)
    layer.spline_up.data.zero_()
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        low = torch.empty(3, device="mps")
        assert layer.build_grid(low, low + 1).device.type == "mps"
        assert utils.Meter("mps").sums.dtype == torch.float32
        with pytest.raises(TypeError):
            low.double()
