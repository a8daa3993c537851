"""The flags of train.py: spellings, ranges, contradictions, help."""

import argparse
import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from system.devices import pick_device
from system.flags import number, number_or, numbers, on_off, spell, value_range
from system.terminal import one_line
from training.flags import parse_args


def test_underscores_and_hyphens_are_the_same():
    args = parse_args(["--batch_size", "4", "--data_path=a_b", "--freeze-layers", "False"])
    assert (args.batch_size, args.data_path, args.freeze_layers) == (4, "a_b", False)
    assert args.given == {"batch_size", "data_path", "freeze_layers"}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--freeze-layers", "--weights", "f"], True),
        (["--freeze-layers", "true", "--weights", "f"], True),
        (["--freeze-layers", "False"], False),
        (["--no-freeze-layers"], False),
        ([], None),
    ],
)
def test_freeze_layers_means_what_it_says(words, value):
    assert parse_args(words).freeze_layers is value


def test_every_flag_of_the_reference_is_known():
    words = "--num_classes 5 --epochs 3 --batch-size 8 --lr 0.001 --lrf 0.01 --data-path d"
    words += " --model-name vit_base_patch16_224 --weights w --freeze-layers True --device cuda:0"
    args = parse_args(words.split())
    assert (args.num_classes, args.model, args.lr, args.device) == (
        5,
        "vit_base_patch16_224",
        0.001,
        "cuda:0",
    )


@pytest.mark.parametrize("words", [["--kan-range", "-2,2"], ["--kan_range=-2,2"]])
def test_a_range_may_start_with_a_minus(words):
    assert parse_args(words).kan_range == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unknown flag --epoch: did you mean --epochs?"),
        (["--zzz"], "unknown flag --zzz: --help lists all flags"),
        (["flowers"], "unexpected argument 'flowers'"),
        (["--epochs", "-1"], "--epochs: -1 is out of range: it must be at least 0"),
        (["--epochs", "two"], "--epochs: 'two' is not a whole number"),
        (["--lr", "nan"], "--lr: nan is out of range"),
        (["--lr", "inf"], "--lr: inf is out of range"),
        (["--val-split", "1.5"], "at most 0.9"),
        (["--mlp", "man"], "--mlp: invalid choice: 'man'"),
        (["--kan-range", "2,-2"], "LOW must be below HIGH"),
        (["--kan-rank", "some"], "or full"),
        (["--kan-groups", "some"], "or feature"),
        (["--kan-groups", "0"], "--kan-groups: 0 is out of range"),
        (["--kan-at", "attn"], "--kan-at: invalid choice: 'attn'"),
        (["--std", "1,0,1"], "--std: '1,0,1' must be above 0"),
        (["--freeze-layers", "maybe"], "'maybe' is neither true nor false"),
        (["--eval"], "--eval needs --weights"),
        (["--freeze-layers"], "--freeze-layers needs --weights"),
        (["--teacher-weight", "0.3"], "--teacher-weight needs --teacher"),
        (["--kan-reg", "0.1", "--fsdp"], "--kan-reg needs whole splines"),
    ],
)
def test_a_wrong_flag_ends_in_one_sentence_and_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(words)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert message in error
    assert error.count("\n") == 1


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_in_range_or_refused(value):
    parse = number(float, -3, 5)
    try:
        assert -3 <= parse(repr(value)) <= 5
    except argparse.ArgumentTypeError:
        assert not -3 <= value <= 5


@given(st.text(max_size=12))
def test_parsers_take_any_text_or_refuse_it(text):
    for parse in (
        on_off,
        value_range,
        numbers(3, "a mean"),
        number(int, 1),
        number_or(("full",), number(int, 1)),
    ):
        with contextlib.suppress(argparse.ArgumentTypeError):
            parse(text)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ranges_round_trip(low, high):
    text = f"{low!r},{high!r}"
    if low < high:
        assert value_range(text) == (low, high)
    else:
        with pytest.raises(argparse.ArgumentTypeError):
            value_range(text)


def test_file_names_after_a_double_hyphen_stay_as_they_are():
    assert spell(["--top_k", "1", "--", "--my_photo.jpg"]) == [
        "--top-k",
        "1",
        "--",
        "--my_photo.jpg",
    ]


def test_a_missing_accelerator_is_a_warning_and_the_cpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert pick_device("cuda:0") == torch.device("cpu")
    assert "no cuda:0 here" in capsys.readouterr().err
    assert pick_device("auto").type in ("cpu", "mps")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", ""])
def test_an_unknown_device_is_named(name):
    with pytest.raises(ValueError, match="--device"):
        pick_device(name)


def test_an_operating_systems_error_names_its_file_on_one_line():
    with pytest.raises(OSError, match="No such file") as caught:
        Path("no/such\nfile").read_bytes()
    assert one_line(caught.value) == "no/such file: No such file or directory"


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\u2028b", "a\udcffb", "a\ud800b"])  # noqa: PT014 - half surrogates differ
def test_a_name_in_an_error_cannot_steer_the_terminal(name):
    line = one_line(ValueError(f"{name} is not there"))
    assert line.isprintable()
    assert line.startswith("a\\") or line.startswith("a b")  # u2028 is white space
