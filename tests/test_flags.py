"""Flags of every command: what is wrong or contradicts ends in one sentence, before any work.

The tests go over the parsers themselves, so that a new flag is tested as soon as it is there.
"""

import argparse
import contextlib
import importlib
import io
import re
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import vit_model
from system import flags
from system.flags import Parser, block_list, grouping, number, numbers, on_off
from training.flags import parse_args
from vit.mlps import parse_blocks

COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("imaging/*.py")]
    if re.search(r"^    run_cli\(main\)$", path.read_text("utf-8"), re.MULTILINE)
)


class Caught(Exception):
    """Carries the parser out of a command's main."""


def parser_of(command):
    def caught(parser, *_):
        raise Caught(parser)

    main = importlib.import_module(command).main
    with patch.object(Parser, "parse_args", caught), pytest.raises(Caught) as end:
        main()
    return end.value.args[0]


PARSERS = {command: parser_of(command) for command in COMMANDS}
FLAGS = [
    pytest.param(command, action, id=f"{command} {action.option_strings or action.metavar}")
    for command, parser in PARSERS.items()
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction)
]


def flags_that(condition):
    return [flag for flag in FLAGS if condition(flag.values[1])]


def takes_value(action):
    return action.nargs != 0


def takes_any_name(action):
    """Whether the parser takes every text: its command refuses what makes no sense."""
    return takes_value(action) and action.type in (None, str, grouping) and not action.choices


def name_of(action):
    return max(action.option_strings, key=len, default=action.metavar)


def refusal(parse, words):
    """Returns what `parse` says before it exits with status 2, "" where it takes `words`."""
    errors, status = io.StringIO(), None
    with contextlib.redirect_stderr(errors):
        try:
            parse(words)
        except SystemExit as end:
            status = end.code
    said = errors.getvalue()
    assert (status, said.count("\n")) in ((None, 0), (2, 1)), said
    return said


def words_for(command, action, value):
    """`value` for the flag, and something that exists for each of the other arguments."""
    here = [f"{name_of(action)}={value}"] if action.option_strings else [value]
    there = [a for a in PARSERS[command]._actions if not a.option_strings and a is not action]
    return [*here, *(__file__ for _ in there)]


def test_the_commands_are_found():
    assert {"train", "predict", "explain", "export", "pretrained", "imaging.sample_flowers"} <= {
        *COMMANDS
    }


# --- nonsense -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "action"), flags_that(lambda a: not takes_any_name(a)))
def test_nonsense_is_refused_by_the_parser_that_names_the_flag(command, action):
    said = refusal(PARSERS[command].parse_args, words_for(command, action, "no such/thing"))
    assert said.startswith(f"{command.rsplit('.')[-1]}.py: error: ")
    assert name_of(action) in said


@pytest.mark.parametrize(("command", "action"), flags_that(takes_value))
@settings(max_examples=8, deadline=None)
@given(
    text=st.text(max_size=20) | st.from_regex(r"[-+]?[0-9]{0,400}[.,e:]?[-0-9]*", fullmatch=True)
)
def test_any_value_is_taken_or_refused_with_a_sentence_that_names_the_flag(command, action, text):
    said = refusal(PARSERS[command].parse_args, words_for(command, action, text))
    assert not said or name_of(action) in said or text.startswith("-")


@pytest.mark.parametrize(("command", "action"), flags_that(takes_value))
def test_an_empty_value_is_refused(command, action):
    said = refusal(PARSERS[command].parse_args, words_for(command, action, ""))
    if (command, name_of(action)) == ("train", "--weights"):  # the reference's '' for none
        assert not said
    else:
        assert name_of(action) in said


@pytest.mark.parametrize(
    ("command", "action"), flags_that(lambda a: takes_value(a) and a.nargs != "?")
)
def test_a_missing_value_is_said(command, action):
    words = [name_of(action)] if action.option_strings else []
    assert name_of(action) in refusal(PARSERS[command].parse_args, words)


@pytest.mark.parametrize(
    ("command", "action"), flags_that(lambda a: a.nargs == "+" and a.option_strings)
)
def test_a_flag_of_several_values_that_is_given_twice_has_them_all(command, action, monkeypatch):
    monkeypatch.chdir(ROOT)
    flag = name_of(action)
    words = [*words_for(command, action, "docs")[1:], flag, "docs", flag, "tests", "system"]
    read = vars(PARSERS[command].parse_args(words))[action.dest]
    assert read == ["docs", "tests", "system"]


@pytest.fixture
def checkpoint(tmp_path):
    model = vit_model.create_model("vit_micro_patch8_64", num_classes=2, mlp="kan", kan_rank=1)
    facts = {"config": model.config, "classes": ["a", "b"], "version": 1}
    torch.save({"model": model.state_dict(), **facts}, tmp_path / "best.pth")
    return "best.pth"


# By flag: the command line and what its refusal must say. "file" is a file, where a folder would
# have to be.
NAMES = {
    ("train", "--data-path"): (["--data-path", "nowhere"], "nowhere does not exist: --data-path"),
    ("train", "--val-path"): (["--val-path", "nowhere"], "nowhere does not exist: --val-path"),
    ("train", "--model-name"): (["--model", "vit_tinny"], "unknown model 'vit_tinny'"),
    ("train", "--weights"): (["--weights", "nowhere.pth"], "nowhere.pth"),
    ("train", "--test-path"): (["--test-path", "nowhere"], "nowhere does not exist: --test-path"),
    ("train", "--group-by"): (["--group-by", "(x"], "--group-by: '(x' is neither near-copies"),
    ("train", "--device"): (["--device", "abacus"], "--device 'abacus'"),
    ("train", "--output"): (["--output", "file/run"], "--output file/run: "),
    ("train", "--resume"): (["--resume", "nowhere"], "nowhere holds no last.pth"),
    ("predict", "--device"): (["x.jpg", "--device", "abacus"], "--device 'abacus'"),
    ("predict", "--csv"): (["x.jpg", "--csv", "file/x.csv"], "file"),
    ("predict", "--embed"): (["x.jpg", "--embed", "file/x.npz"], "file"),
    ("predict", "--save"): (["x.jpg", "--save", "file/x"], "file/x"),
    ("predict", "--sort"): (["x.jpg", "--sort", "file/x"], "file/x"),
    ("predict", "--explain"): (["x.jpg", "--explain", "file/x"], "file/x"),
    ("predict", "--explain-class"): (["x.jpg", "--explain", "x", "--explain-class", "c"], "'c'"),
    ("explain", "--device"): (["best.pth", "--device", "abacus"], "--device 'abacus'"),
    ("explain", "--output"): (["best.pth", "--output", "file/x"], "file/x"),
    ("export", "--output"): (["best.pth", "--output", "file/x.onnx"], "file"),
    ("serve", "--device"): (["--weights", "best.pth", "--device", "abacus"], "--device 'abacus'"),
    ("serve", "--host"): (["--weights", "best.pth", "--host", "a.invalid"], "--host a.invalid is"),
    ("pretrained", "--save"): (["best.pth", "--save", "file/x.pth"], "file/x.pth"),
    ("imaging.sample_flowers", "--output"): (["--output", "file/x"], "file"),
}
COSTLY = {
    "train": ["load_data", "calibrate_model", "assemble"],
    "predict": ["write_all"],
    "explain": ["explain_layers", "prune_and_report"],
    "export": ["onnx_bytes", "pt2_bytes"],
    "serve": ["open_models"],
    "pretrained": [],
    "imaging.sample_flowers": ["draw_flower"],
}


@pytest.fixture
def refused(call, monkeypatch, tmp_path, checkpoint):
    """Returns refused(command, words) -> the one sentence of a command that did no costly work."""
    (tmp_path / "file").touch()
    (tmp_path / "weights").mkdir()
    for photo in ("flower_photos/roses/1.jpg", "x.jpg"):
        (tmp_path / photo).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / photo).touch()
    monkeypatch.chdir(tmp_path)

    def refused(command, words):
        module = importlib.import_module(command)
        for name in COSTLY[command]:
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("work was done"))
        if command == "predict" and "--weights" not in words:
            words = [*words, "--weights", checkpoint]
        status, _, said = call(module.main, *words)
        assert status == 2
        assert said.count("\n") == 1
        assert said.startswith(f"{command}.py: error: ")
        return said

    return refused


def test_every_flag_that_takes_any_name_is_tried_with_a_wrong_one():
    known = {(f.values[0], name_of(f.values[1])) for f in flags_that(takes_any_name)}
    # A photo that cannot be read is named and stops no other: tests/test_predict.py.
    assert known - {("predict", "IMAGE|FOLDER|-")} == set(NAMES)


@pytest.mark.parametrize("flag", NAMES, ids=" ".join)
def test_a_wrong_name_is_refused_before_any_work(flag, refused):
    words, sentence = NAMES[flag]
    assert sentence in refused(flag[0], words)


def test_train_alone_names_how_to_begin_without_photos(refused, tmp_path):
    (tmp_path / "flower_photos" / "roses" / "1.jpg").unlink()
    (tmp_path / "flower_photos" / "roses").rmdir()
    (tmp_path / "flower_photos").rmdir()
    for words in ([], ["--data-path", "flower_photos"]):
        said = refused("train", words)
        assert said.startswith("train.py: error: flower_photos does not exist: --data-path")
        assert "--data-path sample" in said
        assert "--download" in said
    assert "sample" not in refused("train", ["--data-path", "nowhere"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deit_tyny_patch16_224", "did you mean deit_tiny_patch16_224"),
        ("VIT_base_patch16_224", "did you mean vit_base_patch16_224"),
        ("zzz", "--list-models shows all names"),
        ("deit_tiny_patch16_224.pth", "to download it, give deit_tiny_patch16_224"),
        ("bestt.pth", "did you mean best.pth?"),
        ("weights/deit_tiny.safetensors", "there is no such file"),
    ],
)
def test_misspelt_weights_are_answered_with_the_nearest(name, near, refused):
    said = refused("train", ["--weights", name])
    assert said.startswith(f"train.py: error: --weights {name}: there is no such file")
    assert near in said


def test_a_misspelt_file_is_answered_with_the_nearest_by_every_command(refused):
    for command in ("explain", "export", "pretrained"):
        assert "does not exist; did you mean best.pth?" in refused(command, ["bets.pth"])
    assert "did you mean best.pth?" in refused("predict", ["x.jpg", "--weights", "bets.pth"])
    assert "did you mean" not in refused("explain", ["nothing_like_it"])


# --- contradictions -----------------------------------------------------------------------------


FROZEN = ["--weights", "best.pth", "--cache-views", "4"]
EVAL = ["--eval", "--weights", "best.pth"]
CONTRADICTIONS = [
    ("train", ["--freeze-layers", "--no-freeze-layers", "--weights", "best.pth"]),
    ("train", ["--freeze-layers"], ["--freeze-layers", "--weights"]),
    ("train", ["--allow-partial"], ["--allow-partial", "--weights"]),
    ("train", ["--eval"], ["--eval", "--weights"]),
    ("train", [*EVAL, "--resume"], ["--eval", "--resume"]),
    ("train", [*EVAL, "--dry-run"], ["--eval", "--dry-run"]),
    *(
        ("train", [*EVAL, flag, value], ["--eval", flag])
        for flag, value in {
            "--model": "vit_micro_patch8_64",
            "--img-size": "64",
            "--resize-mode": "pad",
            "--mean": "1,1,1",
            "--std": "1,1,1",
            "--mlp": "kan",
            "--kan-blocks": "0",
            "--kan-hidden": "3",
            "--kan-rank": "3",
            "--kan-groups": "3",
            "--kan-at": "all",
            "--kan-grid": "3",
            "--kan-order": "2",
            "--kan-range": "-1,1",
        }.items()
    ),
    ("train", ["--resume", "--output", "x"]),
    ("train", ["--resume", "--dry-run"]),
    ("train", ["--val-path", "x", "--val-split", "0.3"]),
    ("train", ["--download", "--data-path", "sample"]),
    ("train", ["--batch-size", "auto", "--fsdp"]),
    ("train", ["--kan-reg", "0.1", "--fsdp"]),
    ("train", ["--mlp", "gkan", "--kan-rank", "4"]),
    ("train", ["--kan-rank", "16"], ["--kan-rank", "--mlp kan"]),
    ("train", ["--kan-reg", "0.1"], ["--kan-reg", "--mlp kan"]),
    ("train", ["--mlp", "kan", "--kan-groups", "4"]),
    ("train", ["--kan-groups", "feature"], ["--kan-groups", "--mlp gkan"]),
    ("train", ["--kan-at", "all"], ["--kan-at", "--mlp kan or gkan"]),
    ("train", ["--teacher-weight", "0.3"], ["--teacher-weight", "--teacher FILE"]),
    ("train", ["--amp", "fp16", "--device", "cpu"]),
    ("train", ["--epochs", "5", "--warmup-epochs", "6"]),
    ("train", ["--cache-views", "4"], ["--cache-views", "--weights"]),
    ("train", [*FROZEN, "--no-freeze-layers"], ["--cache-views", "--freeze-layers"]),
    ("train", [*FROZEN, "--aug", "none"], ["--cache-views", "--aug"]),
    ("train", [*FROZEN, "--mixup", "0.2"], ["--cache-views", "--mixup"]),
    ("train", [*FROZEN, "--cutmix", "0.2"], ["--cache-views", "--cutmix"]),
    ("train", [*FROZEN, "--teacher", "best.pth"], ["--cache-views", "--teacher"]),
    ("train", [*FROZEN, "--fsdp"], ["--cache-views", "--fsdp"]),
    ("predict", ["x.jpg", "--explain-class", "a"], ["--explain-class", "--explain DIR"]),
    ("predict", ["x.jpg", "--csv", "out", "--save", "out"]),
    ("predict", ["x.jpg", "--csv", "out", "--sort", "./out"]),
    ("predict", ["x.jpg", "--csv", "out.csv", "--embed", "./out.csv"]),
    ("predict", ["x.jpg", "--embed", "out.npz", "--explain", "out.npz"]),
    ("predict", ["x.jpg", "--embed", "out.txt"], ["--embed out.txt", ".npz or .csv"]),
    ("explain", ["best.pth", "--photos", "3"], ["--photos", "--data"]),
    ("explain", ["best.pth", "--prune", "0.3"], ["--prune", "--data"]),
    ("export", ["best.pth", "--format", "onnx", "--output", "m.pt2"]),
    ("export", ["best.pth", "--int8", "--format", "pt2"], ["--int8", "pt2"]),
    ("export", ["best.pth", "--int8", "--output", "m.safetensors"], ["--int8", "safetensors"]),
    ("export", ["best.pth", "--data", "flower_photos"], ["--data", "--int8"]),
    ("export", ["best.pth", "--output", "m.bin"], ["--output m.bin", ".onnx, .pt2, .safetensors"]),
    ("pretrained", ["best.pth", "--class-indices", "file"], ["--class-indices", "--save"]),
    ("pretrained", ["best.pth", "--without-photos"], ["--without-photos", "--save"]),
]


@pytest.mark.parametrize("case", CONTRADICTIONS, ids=lambda case: " ".join([case[0], *case[1]]))
def test_contradictions_are_refused_and_named_before_any_work(case, refused):
    command, words, *names = case
    said = refused(command, words)
    for name in (
        names[0] if names else [w for w in words if w.startswith("--") and w != "--weights"]
    ):
        assert name in said


def test_the_data_cannot_be_their_own_validation(refused):
    said = refused("train", ["--val-path", "./flower_photos"])
    assert "--val-path is --data-path itself" in said


def test_another_number_of_classes_is_refused_before_a_photo_is_opened(tmp_path, make_photos):
    root = make_photos(tmp_path / "photos", per_class=1)
    with (
        patch("imaging.splitting.check_photos", lambda *_: pytest.fail("photos were opened")),
        pytest.raises(ValueError, match=r"--num-classes 5 contradicts the 3 class folders"),
    ):
        importlib.import_module("imaging.splitting").prepare_data(root, num_classes=5)


def values_for(action):
    """Some words that the flag takes, found by trying."""
    if not takes_value(action):
        return [[]]
    tried = ["0", "1", "2", "0.5", "auto", "full", "1,1,1", "-1,2", "true", __file__, "sample"]
    if action.choices:
        return [[choice] for choice in action.choices]
    parse = action.type or str
    taken = []
    for text in tried:
        with contextlib.suppress(argparse.ArgumentTypeError):
            parse(text)
            taken.append([text])
    return taken


SETTINGS = [
    (flag.values[1], value)
    for flag in FLAGS
    if flag.values[0] == "train"
    for value in values_for(flag.values[1])
]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(SETTINGS), max_size=6))
def test_any_flags_together_are_taken_or_one_of_them_is_named(chosen):
    words = [
        name_of(action) if not value else f"{name_of(action)}={value[0]}"
        for action, value in chosen
    ]
    said = refusal(parse_args, words)
    assert not said or any(name_of(action) in said for action, _ in chosen)


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", ["40", "300"])
def test_help_fits_100_columns_in_any_terminal(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    lengths = [len(line) for line in PARSERS[command].format_help().splitlines()]
    assert 80 < max(lengths) <= 100 or command in ("imaging.sample_flowers",)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_are_grouped_by_purpose(command):
    parser = PARSERS[command]
    positional, loose, *groups = parser._action_groups
    assert [action.dest for action in loose._group_actions] == ["help"]
    assert groups
    assert all(group.title and group._group_actions for group in groups)
    assert not [action for action in positional._group_actions if action.option_strings]


@pytest.mark.parametrize(("command", "action"), FLAGS)
def test_help_says_what_a_flag_means_and_its_default(command, action):
    if not action.option_strings:
        assert action.help
        return
    text = PARSERS[command]._get_formatter()._expand_help(action)
    meaning, told = re.fullmatch(r"(.*) \(default: (.+?)\)", text).groups()
    assert len(meaning) > 6
    defaults = {field.name: field.default for field, _ in PARSERS[command].table.rows()}
    default = defaults.get(action.dest)
    if default not in (None, False, "") and isinstance(default, float | str):
        assert told.startswith(f"{default:g}" if default != str(default) else default)
    if not takes_value(action):
        assert told in ("off", "as there")


# --- parsers of lists, ranges, names and sizes --------------------------------------------------


def accepts(parse, text):
    try:
        parse(text)
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return True


BLOCKS = st.from_regex(r" ?(all|last:)?[0-9]{0,3}( ?,[0-9]{0,2}){0,3} ?", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(BLOCKS)
def test_block_lists_are_those_that_some_model_takes(text):
    assert accepts(block_list, text) == accepts(lambda t: parse_blocks(t, 10_000), text)


@given(st.lists(st.integers(0, 11), min_size=1))
def test_lists_of_blocks_round_trip(blocks):
    text = ",".join(map(str, blocks))
    assert parse_blocks(block_list(text), 12) == tuple(sorted(set(blocks)))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_three_numbers_round_trip_with_commas_or_spaces(values):
    for separator in (",", " ", ", "):
        assert numbers(3, "a mean")(separator.join(map(repr, values))) == tuple(values)


@given(st.integers(), st.integers(0, 50), st.integers(50, 100))
def test_whole_numbers_are_taken_in_their_range_alone(value, low, high):
    assert accepts(number(int, low, high), str(value)) == (low <= value <= high)
    assert accepts(number(int, low), str(value)) == (low <= value <= flags.LARGEST)
    assert not accepts(number(int, low, high), f"{value}.5")


@given(st.floats(), st.floats(0, 1))
def test_an_open_range_lacks_its_lower_end(value, low):
    assert accepts(number(float, low, 2, open_low=True), repr(value)) == (low < value <= 2)


@given(st.text(max_size=6))
def test_on_and_off_are_a_few_words(text):
    assert accepts(on_off, text) == (text.lower() in (*flags.ON, *flags.OFF))


@given(st.text(min_size=1, max_size=30) | st.sampled_from(sorted(vit_model.VARIANTS)))
def test_a_models_name_is_known_or_refused_with_names_that_are(name):
    if name in vit_model.VARIANTS:
        assert vit_model.find_variant(name)
        return
    with pytest.raises(ValueError, match="unknown model") as end:
        vit_model.find_variant(name)
    hint = str(end.value).removeprefix(f"unknown model {name!r}: did you mean ").rstrip("?")
    assert hint.endswith("--list-models shows all names") or {*hint.split(", ")} <= {
        *vit_model.VARIANTS
    }
