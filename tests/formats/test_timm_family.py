"""Every model of timm's Vision Transformers gives timm's logits here, or is refused by its part."""

import re

import pytest
import safetensors.torch
import timm
import torch
from oracles import as_timm, shaken
from timm.layers import resize_rel_pos_bias_table
from timm.models import beit, deit, eva, vision_transformer

from formats.architectures import facts_of, heads_by_name
from formats.fitting import load_into
from formats.reading import read_weights
from formats.resizing import resize_offsets
from formats.shapes import known_heads
from pretrained import load_model
from vit.positions import relative_rows
from vit_model import create_model

KINDS = (
    vision_transformer.VisionTransformer, deit.VisionTransformerDistilled, eva.Eva, beit.Beit,
)  # fmt: skip
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit")
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]
SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 5}
# What may be refused, by the words that name the part.
REFUSED = {
    r"_r\d*_s\d|_resnet": "hybrid stem|from a convolutional network",
    r"_xp_|18x2": "parallel blocks",
    r"_pwee|_dpwee": "attention and MLP side by side",
    r"_dwee|_dlittle": "differential attention",
    r"_rpn_|enormous": "norm after each part",
}
# One of each kind, in `make test`.
SAMPLE = (
    "vit_small_patch16_dinov3", "vit_giant_patch14_reg4_dinov2", "vit_base_patch16_siglip_224",
    "vit_base_patch32_clip_quickgelu_224", "eva02_base_patch14_224", "eva02_base_patch16_clip_224",
    "beitv2_base_patch16_224", "beit3_base_patch16_224", "vit_small_patch16_rope_mixed_ape_224",
    "vit_pe_core_tiny_patch16_384", "aimv2_large_patch14_224", "vit_base_patch16_sapiens2",
    "vit_base_patch16_rpn_224",
)  # fmt: skip


def built(name: str, **more):
    """A small model of timm with its own options, None where it is of another class."""
    patch = int(found[1]) if (found := re.search(r"patch(\d+)", name)) else 16
    options = SMALL | {"img_size": 4 * patch} | more
    if "sapiens2" in name:  # one of whose numbers is for each block
        options.setdefault("num_kv_heads", (2, 1))
    try:
        model = timm.create_model(name, **options)
    except (AssertionError, TypeError):  # a stem of a width or grid of its own
        return None
    return shaken(model) if type(model) in KINDS else None


@torch.no_grad()
def difference(path, theirs) -> float:
    """How far the file's logits are from timm's, in units of their spread."""
    size = theirs.patch_embed.img_size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    wanted = theirs(images)
    return ((load_model(path).model(images) - wanted).abs().max() / wanted.std()).item()


def check(name: str, path, theirs) -> bool:
    """Whether logits are timm's; a refusal must name the part."""
    refusal = next((words for part, words in REFUSED.items() if re.search(part, name)), None)
    if refusal is None:
        assert difference(path, theirs) < 1e-4
        return True
    with pytest.raises(ValueError, match=refusal):
        load_model(path)
    return False


@pytest.mark.parametrize("name", SAMPLE)
def test_timms_models_give_timms_logits_or_are_refused_by_their_part(tmp_path, name):
    theirs = built(name)
    check(name, as_timm(theirs, tmp_path), theirs)


@pytest.mark.slow
def test_of_all_models_of_timm_none_is_taken_for_another(tmp_path):
    equal, tried = set(), 0
    for number, name in enumerate(NAMES):
        if (theirs := built(name)) is not None:
            tried += 1
            path = as_timm(theirs, tmp_path / str(number))
            equal |= {name} if check(name, path, theirs) else set()
    assert tried >= 250
    assert len(equal) >= 235


OVERRULED = {
    "another pooling": ("vit_pe_core_tiny_patch16_384", {"global_pool": "avg"}),
    "pooling by attention": ("vit_small_patch16_dinov3", {"global_pool": "map"}),
    "norms by name": ("vit_base_patch16_clip_224", {"norm_layer": "rmsnorm", "qk_norm": True}),
    "registers": ("vit_base_patch16_siglip_224", {"reg_tokens": 3, "pool_include_prefix": True}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none", "act_layer": "silu"}),
    "rotary": ("eva02_tiny_patch14_224", {"rope_type": "mixed", "rope_grid_indexing": "xy"}),
    "both biases": (
        "beit_base_patch16_224", {"use_shared_rel_pos_bias": True, "global_pool": "token"},
    ),
    "heads": ("vit_base_patch16_sapiens2", {"num_heads": 4, "num_kv_heads": (1, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERRULED.values(), ids=OVERRULED)
def test_what_a_config_states_overrules_the_models_name(tmp_path, case):
    name, options = case
    theirs = built(name, **options)
    assert difference(as_timm(theirs, tmp_path), theirs) < 1e-4


BARE = ("vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_base_patch16_clip_quickgelu_224")


@pytest.mark.parametrize("name", BARE)
def test_the_name_of_a_bare_file_tells_its_family(tmp_path, name):
    theirs = built(name, img_size=None) if "dinov3" in name else built(name)
    path = tmp_path / f"{name}.some_tag.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    assert difference(path, theirs) < 1e-4


@pytest.mark.slow
def test_the_names_of_all_bare_files_tell_their_families(tmp_path):
    tried = 0
    for name in NAMES:
        theirs = built(name, img_size=None)
        if theirs is None or theirs.patch_embed.num_patches > 600:
            continue
        tried += 1
        path = tmp_path / f"{name}.pth"
        torch.save(theirs.state_dict(), path)
        check(name, path, theirs)
    assert tried > 120


@pytest.mark.slow
def test_heads_of_every_model_of_timm_are_known_by_its_size_or_name():
    for name in NAMES:
        with torch.device("meta"):
            model = timm.create_model(name)
        plain = hasattr(model, "blocks") and hasattr(model.blocks[0], "attn")
        if type(model) in KINDS and plain and "hybrid stem" not in (facts_of(name) or {}):
            sizes = model.embed_dim, len(model.blocks)
            heads = heads_by_name([name], *sizes) or known_heads(*sizes) or sizes[0] // 64
            assert heads == model.blocks[0].attn.num_heads, name


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("vit_small_patch16_dinov3", "no positions"),
        ("eva02_base_patch14_224", "the gates of EVA-02"),
    ],
)
def test_rotary_files_that_nothing_describes_are_refused(tmp_path, name, sign):
    path = tmp_path / "mine.pth"
    torch.save(built(name).state_dict(), path)
    with pytest.raises(ValueError, match=rf"mine\.pth has {sign}.*config\.json beside it"):
        read_weights(path)


def test_gates_without_rotary_positions_need_no_name(tmp_path):
    path = tmp_path / "mine.pth"
    theirs = built("aimv2_large_patch14_224")
    torch.save(theirs.state_dict(), path)
    assert read_weights(path).config["swiglu"] == "unpacked"


SIZES = {
    "vit_small_patch16_dinov3": (64, 96),
    "eva02_base_patch14_224": (56, 84),
    "beit_base_patch16_224": (64, 96),
    "beitv2_large_patch16_224": (128, 80),
    "vit_small_patch16_rope_mixed_ape_224": (64, 96),
    "vit_base_patch16_rope_reg1_gap_256": (96, 64),
    "vit_pe_core_tiny_patch16_384": (64, 96),
    "vit_base_patch16_siglip_224": (64, 96),
    "vit_base_patch16_reg4_gap_256": (64, 80),
}


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_what_knows_of_places_adapts_to_another_size_as_timms(tmp_path, name):
    before, after = SIZES[name]
    theirs = built(name, img_size=before)
    weights = read_weights(as_timm(theirs, tmp_path))
    ours = create_model(**weights.config | {"img_size": after}).eval()
    load_into(ours, weights)
    theirs.set_input_size((after, after))
    images = torch.randn(2, 3, after, after)
    wanted = theirs(images)
    assert (ours(images) - wanted).abs().max() < 1e-5 * wanted.std()


def test_offsets_adapt_as_timms(tmp_path):
    table = torch.randn(relative_rows(14), 3)
    for grid in (7, 13, 15, 24, 40):
        theirs = resize_rel_pos_bias_table(table, (grid, grid), (relative_rows(grid), 3))
        torch.testing.assert_close(resize_offsets(table, grid), theirs, rtol=0, atol=1e-5)


def test_shared_keys_without_the_heads_width_are_refused(tmp_path):
    state = built("vit_base_patch16_sapiens2").state_dict()
    path = tmp_path / "vit_base_patch16_sapiens2.pth"
    torch.save({name: v for name, v in state.items() if "_norm." not in name}, path)
    with pytest.raises(ValueError, match="fewer keys than queries"):
        read_weights(path)
