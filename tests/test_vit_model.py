"""The Vision Transformer against timm, and its variants, KAN blocks and arguments."""

import pytest
import timm
import torch
from torch import nn

import vit_model
from formats.shapes import sizes_of
from pretrained import gmacs, model_table
from vit.mlps import KanMlp, Mlp, matching_hidden, parse_blocks
from vit_model import VARIANTS, DropPath, ViTConfig, create_model

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 20, "depth": 3, "num_heads": 5}


def small(**options):
    return create_model("custom", num_classes=7, **SMALL | options)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "vit_micro_patch8_64"])
@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_every_variant_has_the_parameters_and_keys_of_timms_model(name):
    with torch.device("meta"):
        ours = create_model(name)
        theirs = timm.create_model(name, num_classes=ours.num_classes)
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"],
)
def test_logits_equal_timms(name):
    size = {"img_size": 56} if "dinov2" in name else {}
    theirs = timm.create_model(name, num_classes=11, **size).eval()
    ours = create_model(name, num_classes=11, **size).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, ours.sizes.img_size, ours.sizes.img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            ours.forward_features(images), theirs.forward_features(images), atol=1e-4, rtol=1e-4
        )


def test_reference_functions_build_their_models():
    with torch.device("meta"):
        model = vit_model.vit_base_patch16_224_in21k(num_classes=5, has_logits=False)
        assert isinstance(model.pre_logits, nn.Identity)
        model = vit_model.vit_base_patch16_224_in21k()
        assert model.pre_logits.fc.weight.shape == (768, 768)
        assert model.head.weight.shape == (21843, 768)
        assert vit_model.vit_base_patch16_224(num_classes=3).head.weight.shape == (3, 768)


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"vit_bse_patch16_224.*vit_base_patch16_224"):
        create_model("vit_bse_patch16_224")


@pytest.mark.parametrize(
    ("mlp", "groups"), [("mlp", 4), ("kan", 4), ("gkan", 4), ("gkan", "feature")]
)
def test_config_rebuilds_the_model(mlp, groups):
    sizes = {"mlp_hidden": [24, 32, 40], "reg_tokens": 2, "distilled": True}
    model = small(mlp=mlp, kan_blocks="0,2", kan_groups=groups, **sizes)
    again = create_model(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("groups", [0, "features", 5.0, True])
def test_a_number_of_groups_that_means_nothing_is_refused(groups):
    with pytest.raises(ValueError, match="kan_groups must be feature or at least 1"):
        small(mlp="gkan", kan_groups=groups)


def test_a_spline_for_each_feature_is_told_by_the_tensors():
    model = small(mlp="gkan", kan_groups="feature", kan_blocks="1,2")
    assert [len(layer.grid) for layer in (model.blocks[1].mlp.fc1, model.blocks[1].mlp.fc2)] == [
        model.embed_dim,
        model.blocks[1].mlp.fc2.in_features,
    ]
    assert sizes_of(model.state_dict())["kan_groups"] == "feature"


@pytest.mark.parametrize(
    "options",
    [{}, {"kan_rank": 3}, *({"mlp": "gkan", "kan_groups": n} for n in (4, "feature"))],
)
def test_a_new_kan_block_computes_what_the_mlp_does(options):
    kan = small(**{"mlp": "kan"} | options).eval()
    mlp = small().eval()
    state = kan.state_dict()
    for key in mlp.state_dict():
        ours = key.replace(".weight", ".base_weight") if ".mlp.fc" in key else key
        mlp.state_dict()[key].copy_(state[ours])
    nn.init.normal_(mlp.head.weight)
    kan.head.weight.data.copy_(mlp.head.weight)
    images = torch.randn(2, 3, 24, 24)
    torch.testing.assert_close(kan(images), mlp(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mlp", ["mlp", "kan", "gkan"])
def test_every_parameter_receives_a_gradient(mlp):
    model = small(
        mlp=mlp, reg_tokens=2, distilled=True, init_values=0.1, kan_groups=4, kan_range=(-2, 2)
    )
    for parameter in model.parameters():  # zero heads and splines would hide what is behind them
        nn.init.normal_(parameter, std=0.1)
    model(torch.randn(3, 3, 24, 24)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_kan_blocks_stand_where_they_were_asked_for():
    model = small(mlp="kan", kan_blocks="last:2")
    assert [type(block.mlp) for block in model.blocks] == [Mlp, KanMlp, KanMlp]


@pytest.mark.parametrize(
    "kan",
    [
        {"kind": "kan", "rank": None},
        {"kind": "kan", "rank": 4},
        {"kind": "gkan", "rank": None},
    ],
)
def test_matching_width_has_the_parameters_of_the_mlp(kan):
    kan |= {"groups": 8, "grid": 5, "order": 3, "grid_range": (-1, 1)}

    def count(module):
        return sum(p.numel() for p in module.parameters())

    width = matching_hidden(64, 256, **kan)
    assert abs(count(KanMlp(64, width, **kan)) / count(Mlp(64, 256)) - 1) < 0.03


@pytest.mark.parametrize(
    ("spec", "blocks"),
    [("all", (0, 1, 2)), ("last:2", (1, 2)), ("2,0", (0, 2)), ([1], (1,)), (" 1 ", (1,))],
)
def test_block_lists_are_understood(spec, blocks):
    assert parse_blocks(spec, 3) == blocks


@pytest.mark.parametrize("spec", ["", "last:0", "last:4", "3", "-1", "first:1", "0,,1", "1.5", []])
def test_wrong_block_lists_are_named(spec):
    with pytest.raises(ValueError, match="kan_blocks"):
        parse_blocks(spec, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"img_size": 25}, "img_size 25 is not a multiple of the patch size 8; 24 is the nearest"),
        ({"embed_dim": 21}, "embed_dim 21 is not a multiple of num_heads 5"),
        ({"mlp": "man"}, "mlp must be one of mlp, kan, gkan"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"mlp_hidden": [8, 8]}, "mlp_hidden must be one positive width or 3"),
        ({"kan_hidden": "half"}, "kan_hidden"),
        ({"heads": 3}, "no argument heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        small(**wrong)


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match="24 x 24 pixels, not 32 x 24"):
        small()(torch.zeros(1, 3, 32, 24))


def test_drop_path_is_the_identity_in_eval_and_keeps_the_mean_in_training():
    drop, x = DropPath(0.25), torch.ones(20000, 1, 2)
    assert drop.eval()(x) is x
    y = drop.train()(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs(y.mean() - 1) < 0.02
    assert torch.equal(y[..., 0], y[..., 1])  # whole samples


def test_checkpointed_blocks_give_the_same_gradients():
    model = small(mlp="kan").train()
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 24, 24)
    grads = []
    for on in (False, True):
        model.grad_checkpointing = on
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize(
    "options", [{}, {"distilled": True, "reg_tokens": 2}, {"mlp": "kan", "kan_rank": 2}]
)
def test_in_training_the_last_block_leaves_out_what_reaches_no_head(options):
    model = small(**options).train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images, mlp_inputs = torch.randn(4, 3, 24, 24), []
    model.blocks[-1].mlp.register_forward_pre_hook(lambda _, x: mlp_inputs.append(x[0].shape[1]))
    gradients = []
    for forward in (model, lambda x: model.forward_head(model.forward_features(x))):
        model.zero_grad()
        logits = forward(images)
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    prefix, tokens = 1 + model.sizes.distilled, model.num_prefix_tokens + 9
    assert mlp_inputs == [prefix, tokens]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4)
    model.eval()(images)
    assert mlp_inputs[-1] == tokens  # hooks that explain a model find every token


def test_a_distilled_model_gives_both_heads_only_in_distilling_training():
    model = small(distilled=True).train()
    images = torch.randn(2, 3, 24, 24)
    assert isinstance(model(images), torch.Tensor)
    model.distill_outputs = True
    assert [t.shape for t in model(images)] == [(2, 7), (2, 7)]
    assert model.eval()(images).shape == (2, 7)


def test_the_head_starts_at_zero_so_every_class_is_as_likely():
    assert not small()(torch.randn(2, 3, 24, 24)).any()


def test_the_table_lists_every_variant_with_its_macs():
    table = model_table()
    for name in VARIANTS:
        assert name in table
    # 17.6 by the paper's own count of ViT-B/16 at 224 pixels (and timm's).
    assert abs(gmacs("vit_base_patch16_224") - 17.58) < 0.05


def test_config_defaults_are_those_of_create_model():
    assert ViTConfig().kan_grid == 5
    assert create_model("custom", **SMALL).sizes.kan_order == 3
