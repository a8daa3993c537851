"""The recipe: chosen values, parameter groups, schedule, loss, averaging."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vit_model
from imaging.preprocess import Preprocess
from system import devices
from training import loss, optim
from training.choices import Case, choose
from training.loss import Criterion, Teacher, class_weights
from vit_model import create_model


def small(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_model("custom", num_classes=3, **sizes | options)


# --- chosen values ------------------------------------------------------------------------------


def test_what_the_user_set_is_never_chosen():
    given = {"batch_size": 7, "lr": 0.5, "weight_decay": 0.0, "aug": "rand"}
    chosen = choose(Case("fine-tune", 800, 5), given)
    assert not set(chosen) & set(given)
    assert {"warmup_epochs", "layer_decay", "label_smoothing"} <= set(chosen)


def test_the_chosen_rate_grows_linearly_with_the_total_batch():
    one = choose(Case("fine-tune", 800, 5), {"batch_size": 16})["lr"][0]
    assert choose(Case("fine-tune", 800, 5), {"batch_size": 64})["lr"][0] == pytest.approx(4 * one)
    four = Case("fine-tune", 800, 5, world_size=2, accum_steps=2)
    assert choose(four, {"batch_size": 16})["lr"][0] == pytest.approx(4 * one)


@pytest.mark.parametrize(("case", "width"), [
    (Case("fine-tune", 800, 10), 64),
    *((case, width) for width in (64, 768) for case in (
        Case("fine-tune", 800, 10, optimizer="sgd"), Case("scratch", 800, 10),
        Case("head", 800, 10), Case("head", 800, 10, adapt="bias"),
    )),
])  # fmt: skip
def test_other_rates_do_not_know_the_width(case, width):
    assert choose(replace(case, width=width), {}) == choose(case, {})


def test_a_wide_pretrained_model_of_which_all_layers_train_has_a_lower_rate():
    rate, reason = choose(Case("fine-tune", 800, 10, width=768), {})["lr"]
    assert rate == pytest.approx(choose(Case("fine-tune", 800, 10), {})["lr"][0] / 2)
    assert "768 channels wide" in reason


@pytest.mark.parametrize("spline", ["none", "low-rank", "group"])
def test_the_rate_of_lora_grows_with_the_batch_up_to_16_photos(spline):
    case = Case("head", 800, 10, spline, adapt="lora", new_head=True)
    found = [choose(case, {"batch_size": n})["lr"][0] for n in (4, 16, 32, 128)]
    assert found == [1.25e-3, 5e-3, 5e-3, 5e-3]
    assert "no higher than at 16" in choose(case, {})["lr"][1]
    sgd = replace(case, optimizer="sgd")
    assert choose(sgd, {"batch_size": 128})["lr"][0] == pytest.approx(0.1)
    head, splines = rates(case, batch_size=32)
    assert head == pytest.approx(3e-3, rel=1e-2)
    if spline != "none":  # theirs goes on growing
        assert rates(case, batch_size=64)[1] == pytest.approx(2 * splines, rel=1e-2)


@pytest.mark.parametrize("spline", ["none", "low-rank", "group"])
def test_of_a_wide_model_lora_alone_has_a_lower_rate_not_what_trains_beside_it(spline):
    narrow = Case("head", 800, 10, spline, adapt="lora", new_head=True)
    wide = replace(narrow, width=768)
    assert choose(wide, {})["lr"][0] == pytest.approx(choose(narrow, {})["lr"][0] / 2)
    assert rates(wide) == pytest.approx(rates(narrow), rel=1e-2)


def rates(case, **given):
    """Returns the rates of (the head, the splines or all else) that a case comes to."""
    values = {name: value for name, (value, _) in choose(case, given).items()} | given
    factors = values["head_lr_scale"], values["kan_lr_scale"]
    return tuple(values["lr"] * factor for factor in factors)


@pytest.mark.parametrize("case", [
    Case("head", 40, 10), Case("head", 40, 10, "group"), Case("head", 40, 10, "low-rank"),
    Case("head", 40, 10, adapt="bias", new_head=True), Case("fine-tune", 40, 10, new_head=True),
])  # fmt: skip
def test_with_adamw_the_head_of_a_small_folder_trains_at_the_usual_rate(case):
    assert choose(case, {})["batch_size"][0] == 4
    assert rates(case)[0] == pytest.approx(3e-3, rel=1e-2)
    assert rates(replace(case, optimizer="sgd"))[0] < 0.03 * 5 / 4  # SGD's falls with the batch


@pytest.mark.parametrize("spline", ["group", "low-rank", "full"])
def test_the_rate_of_splines_and_adapters_falls_with_the_batch(spline):
    usual, small = (rates(Case("head", n, 10, spline))[1] for n in (800, 40))
    assert small == pytest.approx(usual / 8, rel=1e-2)
    usual, small = (
        choose(Case("head", n, 10, adapt="bias", new_head=True), {})["lr"][0] for n in (800, 40)
    )
    assert small == pytest.approx(usual / 8, rel=1e-2)


def test_a_rate_that_was_given_is_that_of_the_head_alone_and_of_the_head_beside_splines():
    for spline in ("none", "group"):
        case = Case("head", 40, 10, spline, new_head=True)
        assert rates(case, lr=1e-5)[0] == 1e-5
    assert rates(Case("head", 40, 10, "low-rank"), lr=1e-5) == (1e-5, 1e-5)


def test_accuracy_tells_the_best_epoch_where_there_are_photos_enough_or_it_was_asked_for():
    for photos, wanted in ((1, "probability"), (99, "probability"), (100, "accuracy")):
        assert choose(Case("head", 800, 5, val_images=photos), {})["best_by"][0] == wanted
    assert choose(Case("head", 800, 5, val_images=0), {})["best_by"][0] == "accuracy"
    assert "best_by" not in choose(Case("head", 800, 5, val_images=9), {"best_by": "loss"})


@pytest.mark.parametrize("images", [1, 2, 10, 70, 100, 800, 10**6])
def test_small_data_gets_several_steps_an_epoch(images):
    for parts in (1, 2, 4):
        batch, why = choose(Case("scratch", images, 5, accum_steps=parts), {})["batch_size"]
        assert 1 <= batch <= 32
        assert images // batch >= min(images, 8 * parts)
        steps = math.ceil(images / (batch * parts))
        assert why == "usual" or f"{images} photos make {steps} step" in why


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("given", [{}, {"batch_size": 64}, {"lr": 1e-5}, {"lr": 1.0}])
def test_a_new_head_trains_at_its_own_rate_whatever_the_others_is(optimizer, given):
    chosen = choose(Case("fine-tune", 800, 5, optimizer=optimizer, new_head=True), given)
    values = {name: value for name, (value, _) in chosen.items()} | given
    at_16 = {"adamw": 3e-3, "sgd": 0.03}[optimizer] * max(1, values["batch_size"] / 16)
    assert values["lr"] * values["head_lr_scale"] == pytest.approx(max(at_16, values["lr"]), 1e-2)


def test_a_head_from_the_file_and_a_head_alone_train_as_all_else():
    for case in (Case("fine-tune", 800, 5), Case("head", 800, 5, new_head=True)):
        assert choose(case, {})["head_lr_scale"][0] == 1
    assert choose(Case("fine-tune", 800, 5, new_head=True), {"lr": 0.0})["head_lr_scale"][0] == 1


def test_heads_have_a_rate_of_their_own_and_the_rate_of_all_else_is_shown():
    model = small(distilled=True)
    groups = optim.param_groups(model, 1e-3, 0.0, 0.5, 1.0, head_lr_scale=15.0)
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert {rates["head.weight"], rates["head_dist.bias"]} == {15e-3}
    assert rates["norm.weight"] == groups[0]["lr"] == 1e-3


def test_every_chosen_value_has_a_reason():
    for kind in ("head", "fine-tune", "scratch"):
        for spline in ("none", "full", "low-rank", "group"):
            for value, reason in choose(Case(kind, 100, 10, spline), {}).values():
                assert value is not None
                assert reason


# --- parameter groups ---------------------------------------------------------------------------


def test_biases_norms_tokens_and_positions_do_not_decay():
    model = small(mlp="kan", init_values=0.1, distilled=True)
    decays = {}
    for group in optim.param_groups(model, 1.0, 0.05, 1.0, 1.0):
        decays |= dict.fromkeys(group["names"], group["weight_decay"])
    assert set(decays) == {name for name, _ in model.named_parameters()}
    without = {name for name, decay in decays.items() if decay == 0}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim == 1 or name in ("cls_token", "dist_token", "pos_embed")
        assert (name in without) == plain, name
    everywhere = optim.param_groups(model, 1.0, 0.05, 1.0, 1.0, decay_all=True)
    assert {group["weight_decay"] for group in everywhere} == {0.05}


def test_layer_decay_slows_the_first_layers_and_splines_have_their_own_rate():
    rates = {}
    for group in optim.param_groups(small(mlp="kan"), 1.0, 0.0, 0.5, 10.0):
        rates |= dict.fromkeys(group["names"], group["lr"])
    assert rates["head.weight"] == rates["norm.bias"] == 1.0
    assert rates["blocks.1.attn.qkv.weight"] == 0.5
    assert rates["blocks.0.attn.qkv.weight"] == 0.25
    assert rates["cls_token"] == rates["patch_embed.proj.weight"] == 0.125
    assert rates["blocks.1.mlp.fc1.spline_weight"] == 5.0


def test_the_first_group_is_the_heads_whose_rate_is_shown():
    groups = optim.param_groups(small(mlp="kan"), 1e-3, 0.05, 0.7, 10.0)
    assert "head.weight" in groups[0]["names"]


def test_frozen_parameters_are_in_no_group_and_heads_always_train():
    model = small(mlp="kan")
    pretrained = {n for n, _ in model.named_parameters() if "spline" not in n}
    trainable = optim.freeze(model, pretrained)
    assert {"head.weight", "head.bias", "blocks.0.mlp.fc1.spline_weight"} <= set(trainable)
    assert not any("attn" in name for name in trainable)
    names = [n for g in optim.param_groups(model, 1.0, 0.1, 1.0, 1.0) for n in g["names"]]
    assert sorted(names) == sorted(trainable)


def test_nothing_to_train_is_said():
    model = small().requires_grad_(False)
    with pytest.raises(ValueError, match="--freeze-layers false"):
        optim.param_groups(model, 1.0, 0.1, 1.0, 1.0)


# --- schedule -----------------------------------------------------------------------------------


def test_the_schedule_warms_up_then_follows_a_cosine_to_lrf():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    scheduler = optim.create_lr_scheduler(optimizer, steps=104, warmup_steps=4, lrf=0.1)
    rates = []
    for _ in range(104):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half-way down
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    # The reference's formula, at a quarter of the way.
    expected = 2.0 * ((1 + math.cos(math.pi / 4)) / 2 * (1 - 0.1) + 0.1)
    assert rates[29] == pytest.approx(expected)


def test_the_average_follows_short_runs_and_never_forgets_faster_than_its_decay():
    model = nn.Linear(1, 1, bias=False)
    ema = optim.create_ema(model, decay=0.5)
    seen = []
    for value in (1.0, 0.0, 0.0, 0.0):
        model.weight.data.fill_(value)
        ema.update_parameters(model)
        seen.append(ema.module.weight.item())
    assert seen[:3] == pytest.approx([1.0, 2 / 11, 2 / 11 * 3 / 12])


# --- mixed precision ----------------------------------------------------------------------------


def test_amp_on_a_cpu_is_bfloat16_only_where_the_cpu_has_it():
    cpu = torch.device("cpu")
    has_bf16 = torch.cpu._is_avx512_bf16_supported()
    assert devices.amp_dtype("auto", cpu) == (torch.bfloat16 if has_bf16 else None)
    assert devices.amp_dtype("off", cpu) is None
    with pytest.raises(ValueError, match="--amp fp16 needs a GPU"):
        devices.amp_dtype("fp16", cpu)


# --- loss ---------------------------------------------------------------------------------------


def fixed(logits):
    model = nn.Module()
    model.forward = lambda images: logits
    return model


def test_the_loss_is_cross_entropy_with_smoothing_and_weights():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    weights = class_weights(labels.tolist(), 3)
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 6 / 6, 6 / 3]))
    loss, answer = Criterion(3, label_smoothing=0.1, class_weights=weights)(
        fixed(logits), torch.zeros(6), labels, 0
    )
    expected = F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)  # all labels are there, so the weights' sum is 6
    assert torch.equal(answer, logits)


def test_the_weighted_losses_of_parts_of_a_batch_average_to_that_of_the_whole():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 0, 1, 2])
    criterion = Criterion(3, class_weights=class_weights(labels.tolist(), 3))
    parts = [criterion(fixed(logits[p]), p, labels[p], 0)[0] for p in torch.arange(6).split(3)]
    whole, _ = criterion(fixed(logits), torch.zeros(6), labels, 0)
    torch.testing.assert_close(sum(parts) / 2, whole)


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_depends_on_seed_epoch_and_step_alone(mix):
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3

    def mixed(epoch, step, seed=1):
        criterion, seen = Criterion(3, seed=seed, **mix), []
        criterion.epoch = epoch

        def model(x):
            seen.append(x)
            return torch.zeros(6, 3, requires_grad=True)

        criterion(model, images, labels, step)
        return seen[0]

    state = torch.get_rng_state()
    first = mixed(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(mixed(0, 0), first)
    assert not torch.equal(mixed(0, 1), first)
    assert not torch.equal(mixed(1, 0), first)
    assert not torch.equal(first, images)


def loaded(model, classes, preprocess):
    return SimpleNamespace(model=model, classes=classes, preprocess=preprocess)


def test_a_teacher_sees_its_own_normalisation_and_answers_in_the_students_order():
    seen = []

    def answer(x):
        seen.append(x)
        return torch.tensor([[1.0, 2.0, 3.0]])

    model = fixed(None)
    model.forward = answer
    teacher = Teacher(
        loaded(model, ["c", "a", "b"], Preprocess(16, mean=(0.5,) * 3, std=(0.25,) * 3)),
        Preprocess(8, mean=(0.4,) * 3, std=(0.2,) * 3),
        ["a", "b", "c"],
    )
    pixels = torch.full((1, 3, 8, 8), 0.7)
    assert teacher((pixels - 0.4) / 0.2).tolist() == [[2.0, 3.0, 1.0]]
    torch.testing.assert_close(seen[0], ((0.7 - 0.5) / 0.25) * torch.ones(1, 3, 16, 16))


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"--teacher knows the classes x, y, the data has a, b"):
        Teacher(loaded(fixed(None), ["x", "y"], Preprocess(8)), Preprocess(8), ["a", "b"])


def test_the_second_head_learns_from_the_teacher_and_the_first_from_the_labels():
    first = torch.randn(4, 3, requires_grad=True)
    second = torch.randn(4, 3, requires_grad=True)
    target = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    criterion = Criterion(3, teacher=lambda images: target, teacher_weight=0.25)
    loss, _ = criterion(lambda images: (first, second), torch.zeros(4), labels, 0)
    divergence = (target.softmax(1) * (target.log_softmax(1) - second.log_softmax(1))).sum(1)
    expected = 0.75 * F.cross_entropy(first, labels) + 0.25 * divergence.mean()
    torch.testing.assert_close(loss, expected)


def test_the_spline_penalty_pulls_on_splines_alone():
    model = small(mlp="kan")
    for name, parameter in model.named_parameters():
        if vit_model.is_spline(name):
            nn.init.normal_(parameter)
    loss.spline_penalty(model).backward()
    pulled = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert pulled
    assert all(vit_model.is_spline(name) for name in pulled)
