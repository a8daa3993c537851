"""What no tensor tells is followed as the files state it, or refused; the rest is listed."""

import argparse
import inspect
import json

import pytest
import safetensors.torch
import timm
import torch
import transformers
from oracles import IMAGES, as_hub, as_timm, assert_same, beside, hugging_face, saved, vit

from formats.architectures import FAMILIES
from formats.fact_table import FACTS
from formats.facts import Source, class_names, decide
from formats.reading import read_weights
from pretrained import head_classes, load_model, save_weights
from training.setup import told_heads

# --- followed -----------------------------------------------------------------------------------

FOLLOWED = {
    "8 heads": {"num_heads": 8},
    "4 heads, no bias of queries": {"num_heads": 4, "qkv_bias": False},
    "no bias of projections": {"proj_bias": False},
    "layer scale": {"init_values": 0.5},
    "registers with positions": {"reg_tokens": 4},
    "registers without": {"reg_tokens": 3, "no_embed_class": True},
    "narrow MLP": {"mlp_ratio": 2.0},
    "spelled out": {"act_layer": "gelu", "norm_layer": "layernorm", "global_pool": "token"},
    "idle options": {"drop_rate": 0.1, "drop_path_rate": 0.2, "dynamic_img_size": True},
}


@pytest.mark.parametrize("options", FOLLOWED.values(), ids=FOLLOWED)
def test_what_timms_config_states_is_followed(tmp_path, options):
    theirs = vit(**options)
    assert_same(as_timm(theirs, tmp_path), theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"num_attention_heads": 8},
        {"layer_norm_eps": 0.01},
        {"qkv_bias": False},
        {"problem_type": "single_label_classification", "hidden_dropout_prob": 0.1},
    ],
)
def test_what_hugging_faces_config_states_is_followed(tmp_path, options):
    theirs = hugging_face(**options)
    theirs.save_pretrained(tmp_path)
    assert_same(tmp_path / "model.safetensors", theirs)


@pytest.mark.parametrize("kind", ["DeiT", "ViTMSN"])
def test_relatives_of_the_same_arithmetic_give_their_logits(tmp_path, kind):
    theirs = hugging_face(kind)  # DeiT: a distillation token, one classifier on the class token
    theirs.save_pretrained(tmp_path)
    assert_same(tmp_path / "model.safetensors", theirs)


PLACES = {
    "metadata": lambda p, s: safetensors.torch.save_file(s, p / "x.pth", {"num_heads": "8"}),
    "a field": lambda p, s: torch.save({"model": s, "num_heads": 8}, p / "x.pth"),
    "timm's args": lambda p, s: torch.save(
        {"state_dict": s, "arch": "vit_tiny_patch16_224",
         "args": {"model": "vit_tiny_patch16_224", "gp": None, "model_kwargs": {"num_heads": 8}}},
        p / "x.pth",
    ),
    "Lightning": lambda p, s: torch.save(
        {"state_dict": s, "hyper_parameters": {"num_heads": 8, "lr": 0.1}}, p / "x.pth"
    ),
    "a config in the file": lambda p, s: torch.save(
        {"model": s, "config": {"num_heads": 8}, "classes": ["a", "b"]}, p / "x.pth"
    ),
    "beside, with a byte order mark": lambda p, s: (
        torch.save(s, p / "x.pth"),
        (p / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"num_heads": 8}).encode()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_heads_are_believed_wherever_they_are_stated(tmp_path, place):
    theirs = vit(num_heads=8)
    PLACES[place](tmp_path, theirs.state_dict())
    assert_same(tmp_path / "x.pth", theirs)


def test_the_file_is_believed_before_its_config(tmp_path):
    theirs = vit(num_heads=8)
    state = {"model": theirs.state_dict(), "args": {"num_heads": 8}}
    beside(tmp_path, model_args={"num_heads": 4}, num_features=128)
    path = saved(state, tmp_path)
    assert_same(path, theirs)
    assert "args.num_heads in the file itself" in read_weights(path).facts.told["attention heads"]


def test_typed_heads_are_believed_before_all(tmp_path):
    path = as_timm(vit(num_heads=8), tmp_path)
    assert read_weights(path, num_heads=4).config["num_heads"] == 4


def test_typed_heads_are_refused_for_a_file_of_ours_which_tells_them(tmp_path):
    save_weights(tmp_path / "ours.pth", load_model(saved(vit().state_dict(), tmp_path)))
    with pytest.raises(ValueError, match=r"says itself how many attention heads"):
        read_weights(tmp_path / "ours.pth", num_heads=4)


def test_a_variant_keeps_the_heads_that_the_weights_file_tells(tmp_path):
    path = as_timm(vit(embed_dim=192, num_heads=6), tmp_path)
    weights, name = read_weights(path), "vit_tiny_patch16_224"
    assert told_heads(name, weights) == {"num_heads": 6}
    assert told_heads("vit_small_patch16_224", weights) == {}


def test_mean_pooling_as_maes_scripts_say_it(tmp_path):
    theirs = vit(global_pool="avg", fc_norm=True)
    options = argparse.Namespace(model="vit_base_patch16", global_pool=True)
    assert_same(saved({"model": theirs.state_dict(), "args": options}, tmp_path), theirs)


def test_means_of_pixels_up_to_255_are_taken_as_what_they_are(tmp_path):
    options = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    path = saved({"state_dict": vit().state_dict(), "hyper_parameters": options}, tmp_path)
    weights = read_weights(path)
    assert weights.family == "imagenet"
    assert "over 255" in weights.family_reason


def test_what_is_assumed_is_said(tmp_path):
    weights = read_weights(saved(vit().state_dict(), tmp_path))
    (line,) = weights.assumptions
    assert line.startswith("assumed, for nothing tells: attention heads 2 (64 wide; pretrained.py")
    assert "activation gelu" in line
    told = read_weights(as_timm(vit(), tmp_path / "hub"))
    assert "attention heads" not in "".join(told.assumptions)


# --- refused ------------------------------------------------------------------------------------

STATED = {
    "act_layer": "star_relu", "hidden_act": "elu", "global_pool": "avgmax", "gp": "max",
    "position_embedding_type": "relative", "rope_type": "mrope", "rope_scaling": {"factor": 2},
    "rope_grid_indexing": "yx", "rel_pos_type": "mlp", "norm_layer": "batchnorm",
    "ref_feat_shape": [16, 8], "use_post_norm": True, "norm_first": False,
    "qk_scale": 0.5, "is_causal": True, "sliding_window": 7,
    "final_ln_after_pool": True, "attn_layer": "diff",
    "block_fn": "ParallelBlock", "mlp_layer": "glumlp",
    "embed_layer": "HybridEmbed", "backbone_config": {"layers": 3}, "num_parallel": 2,
    "do_rescale": False, "rescale_factor": 1.0, "do_normalize": False, "img_size": [48, 96],
    "image_size": [96, 48], "patch_size": [16, 8],
}  # fmt: skip


@pytest.mark.parametrize("key", STATED)
@pytest.mark.parametrize("where", ["top", "inside"])
def test_a_stated_fact_that_cannot_be_followed_refuses(key, where):
    said = {key: STATED[key]} if where == "top" else {"model_args": {key: STATED[key]}}
    with pytest.raises(ValueError, match=rf"\(.*{key} in config\.json\), which is not supported"):
        decide([[Source.of("config.json", said)]], "timm", has_head=True)


# What tensors tell, stated otherwise than those of a plain model do.
OTHERWISE = {
    "class_token": False, "use_abs_pos_emb": False, "pos_embed": "none", "use_rel_pos_bias": True,
    "use_shared_rel_pos_bias": True, "embed_norm_layer": "layernorm", "pre_norm": True,
    "final_norm": False, "use_post_transformer_norm": False, "fc_norm": True, "qk_norm": True,
    "scale_attn_norm": True, "scale_mlp_norm": True, "use_swiglu_ffn": True,
}  # fmt: skip


@pytest.mark.parametrize("key", OTHERWISE)
def test_parts_that_are_stated_and_not_there_refuse(tmp_path, key):
    path = as_hub(vit().state_dict(), tmp_path, **{key: OTHERWISE[key]})
    with pytest.raises(ValueError, match=rf"\({key} in config.json .*but its tensors have"):
        read_weights(path)
    assert key in "".join(read_weights(path, allow_partial=True).assumptions)


def test_every_fact_of_the_table_is_tried_here():
    followed = {fact.name for fact in FACTS if fact.sets}
    tried = {fact.name for fact in FACTS if set(fact.keys) & (STATED.keys() | OTHERWISE.keys())}
    assert {fact.name for fact in FACTS} - followed - tried == {"kind of model"}


@pytest.mark.parametrize("kind", ["BlipVision", "ChineseCLIPVision"])
def test_other_kinds_of_hugging_face_are_refused(tmp_path, kind):
    hugging_face(kind, "Model").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors "):
        load_model(tmp_path / "model.safetensors")
    source = Source.of("config.json", {"model_type": "swin", "hidden_size": 128})
    with pytest.raises(ValueError, match="kind of model: swin"):
        decide([[source]], "Hugging Face", has_head=True)


def test_a_script_may_call_its_model_as_it_likes(tmp_path):
    theirs = vit()
    state = {"model": theirs.state_dict(), "args": {"model_type": "mine", "model": "best one"}}
    assert_same(saved(state, tmp_path), theirs)


ROPE = "vit_small_patch16_rope_ape_224"


@pytest.mark.parametrize("where", ["config", "arch", "args", "file name"])
def test_rotary_positions_are_known_by_the_models_name(tmp_path, where):
    theirs = vit(ROPE)
    state = theirs.state_dict()
    if where == "config":
        path = as_hub(state, tmp_path, architecture=ROPE, num_features=128)
    elif where == "file name":
        path = saved(state, tmp_path, f"{ROPE}.naver_in1k.pth")
    else:
        told = {"arch": ROPE} if where == "arch" else {"args": {"model": ROPE}}
        path = saved({"state_dict": state} | told, tmp_path)
    assert_same(path, theirs)
    assert ROPE in read_weights(path).facts.told["rotary positions"]


@pytest.mark.parametrize("name", ["my_rope_photos.pth", "clip_art.pth", "gap.pth", "beitel.pth"])
def test_other_words_in_a_files_name_mean_nothing(tmp_path, name):
    theirs = vit()
    assert_same(saved(theirs.state_dict(), tmp_path, name), theirs)


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    path = as_hub(vit().state_dict(), tmp_path, architecture="vit_new_kind", num_features=128)
    with pytest.raises(ValueError, match=r"architecture 'vit_new_kind'.*not known.*leave that"):
        read_weights(path)


def test_two_facts_that_contradict_each_other_at_one_level_are_refused(tmp_path):
    path = as_timm(vit(num_heads=8), tmp_path, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"two attention heads, 8 \(.*4 .*make them agree"):
        read_weights(path)


@pytest.mark.parametrize("size", [(48, 192), (64, 128)])
def test_grids_that_are_not_square_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match=r"sides of the image|no square"):
        read_weights(as_timm(vit(img_size=size), tmp_path))


def test_sizes_of_the_data_contradict_no_model(tmp_path):
    theirs = vit()
    state = {"model": theirs.state_dict(), "args": {"img_size": 224}, "config": {"img_size": 64}}
    assert_same(saved(state, tmp_path), theirs)


def test_grey_models_are_refused_in_one_sentence(tmp_path):
    path = saved(vit(in_chans=1).state_dict(), tmp_path)
    with pytest.raises(ValueError, match="takes images of 1 channel, and photos here have three"):
        read_weights(path)


def test_hybrids_are_refused_in_one_sentence(tmp_path):
    state = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=2).state_dict()
    with pytest.raises(ValueError, match="cuts its patches from a convolutional network"):
        read_weights(saved(state, tmp_path))


@pytest.mark.filterwarnings("ignore")  # torch's own, of jit
def test_programs_of_torch_jit_are_called_what_they_are(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.trace(vit(), IMAGES[:1]).save(path)
    with pytest.raises(ValueError, match=r"program of torch\.jit\.save") as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)


def test_what_cannot_be_followed_is_listed_with_allow_partial(tmp_path):
    path = as_timm(vit(act_layer="elu"), tmp_path)
    with pytest.raises(ValueError, match="activation: elu"):
        read_weights(path)
    assert "activation: elu" in "".join(read_weights(path, allow_partial=True).assumptions)


# --- harmless -----------------------------------------------------------------------------------


def timm_classes() -> set[type]:
    modules = [module for name, module in vars(timm.models).items() if inspect.ismodule(module)
               and name in ("vision_transformer", "deit", "eva", "beit", "naflexvit",
                            "vision_transformer_relpos", "vision_transformer_sam")]  # fmt: skip
    return {
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, torch.nn.Module)
        and kind.__module__ == module.__name__
        and {"num_heads", "embed_dim"} <= set(inspect.signature(kind).parameters)
    }


# Defaults of classes whose arithmetic is another one: what they state is a fact.
TIMMS_OWN = {
    ("VisionTransformerRelPos", "rel_pos_type"), ("VisionTransformerSAM", "use_rel_pos"),
}  # fmt: skip


def test_no_harmless_key_of_timms_classes_refuses():
    refused, tried = set(), 0
    for kind in timm_classes():
        for key, parameter in inspect.signature(kind).parameters.items():
            value = parameter.default
            if value is parameter.empty or callable(value):
                continue
            tried += 1
            try:
                decide([[Source.of("config", {"model_args": {key: value}})]], "timm", True)
            except ValueError:
                refused.add((kind.__name__, key))
    assert tried > 100
    assert refused <= TIMMS_OWN


def hugging_face_configs() -> list:
    kinds = [getattr(transformers, name) for name in dir(transformers) if name.endswith("Config")]
    return [
        kind
        for kind in kinds
        if inspect.isclass(kind)
        and {"patch_size", "num_attention_heads"} <= set(inspect.signature(kind).parameters)
    ]


@pytest.mark.slow
def test_no_harmless_key_of_hugging_faces_configs_refuses():
    """Of every class with patches and heads; a class of another kind states that by its facts."""
    known = {key for fact in FACTS for key in fact.keys}
    refused, tried = {}, 0
    for kind in hugging_face_configs():
        config = kind().to_dict()
        for key, value in config.items():
            tried += 1
            try:
                decide([[Source.of("config", {key: value})]], "Hugging Face", True)
            except ValueError:
                refused.setdefault(key, set()).add(kind.__name__)
    assert tried > 500
    assert refused.keys() <= known
    plain = {"ViTConfig", "DeiTConfig", "Dinov2Config", "Dinov2WithRegistersConfig",
             "ViTMSNConfig", "ViTMAEConfig"}  # fmt: skip
    assert not {key for key, kinds in refused.items() if kinds & plain}


@pytest.mark.parametrize(
    "kind", ["ViT", "DeiT", "Dinov2", "Dinov2WithRegisters", "ViTMSN", "ViTMAE"]
)
def test_whole_default_configs_of_plain_classes_are_taken(kind):
    config = getattr(transformers, f"{kind}Config")().to_dict()
    decided = decide([[Source.of("config.json", config)]], "Hugging Face", has_head=True)
    assert decided.values["num_heads"] == 12
    assert "initializer_range" in decided.ignored["config.json"]


def test_rows_of_the_table_may_be_added_without_a_change_of_code(tmp_path, monkeypatch):
    row = (r".*_wavy_\d+", {"activation": "wave"})
    monkeypatch.setattr("formats.architectures.FAMILIES", (row, *FAMILIES))
    path = saved(vit().state_dict(), tmp_path, "vit_tiny_patch16_wavy_224.pth")
    with pytest.raises(ValueError, match="activation: wave"):
        read_weights(path)


def test_ignored_keys_are_kept_by_place(tmp_path):
    path = as_timm(vit(), tmp_path, colour_of_the_cat="black")
    ignored = read_weights(path).facts.ignored
    assert "colour_of_the_cat" in ignored["config.json beside the file"]


def test_a_config_that_is_not_believed_is_said(tmp_path):
    saved(vit().state_dict(), tmp_path, "a.pth")
    saved(vit().state_dict(), tmp_path, "b.pth")
    beside(tmp_path, num_heads=8)
    notes = read_weights(tmp_path / "a.pth").notes
    assert notes == ["config.json beside it: not believed, as other weights lie there"]
    beside(tmp_path, num_heads=8, hidden_size=768)
    saved(vit().state_dict(), tmp_path, "model.bin")
    assert "another width or depth" in read_weights(tmp_path / "model.bin").notes[0]


# --- the meaning of the answers, the names of the classes ---------------------------------------


@torch.no_grad()
def test_one_logit_is_a_yes_or_no(tmp_path):
    theirs = vit(num_classes=1)
    loaded = load_model(as_timm(theirs, tmp_path))
    yes = theirs(IMAGES).sigmoid()
    torch.testing.assert_close(loaded.model(IMAGES).softmax(-1), torch.cat([1 - yes, yes], 1))
    assert loaded.classes == ["0", "1"]
    assert any("one logit" in note for note in loaded.notes)


def test_the_one_class_of_one_logit_has_an_opposite(tmp_path):
    path = saved({"model": vit(num_classes=1).state_dict(), "classes": ["cat"]}, tmp_path)
    assert load_model(path).classes == ["not cat", "cat"]


def test_answers_of_many_labels_are_kept_as_such_and_saved(tmp_path):
    hugging_face(problem_type="multi_label_classification").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    assert read_weights(path).config["answers"] == "sigmoid"
    assert load_model(path).model.config["answers"] == "sigmoid"


def test_numbers_are_no_classes_but_their_backbone_trains(tmp_path):
    hugging_face(problem_type="regression").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its answers are numbers, not classes.*new head"):
        load_model(tmp_path / "model.safetensors")
    assert read_weights(tmp_path / "model.safetensors").no_head


NAMES = {
    "list": {"classes": ["cat", "dog"]},
    "by number": {"id2label": {"1": "dog", "0": "cat"}},
    "by name": {"class_to_idx": {"dog": 1, "cat": 0}},
    "numbers": {"idx_to_class": {0: "cat", 1: "dog"}},
    "options": {"args": {"class_names": ["cat", "dog"]}},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_of_classes_are_found_in_the_file(tmp_path, names):
    path = saved({"model": vit().state_dict()} | names, tmp_path)
    loaded = load_model(path)
    assert loaded.classes == ["cat", "dog"]
    assert "in the file itself" in loaded.classes_from


def test_names_that_do_not_fit_are_said():
    source = Source.of("config.json", {"label_names": ["a", "b", "c"]})
    names, why = class_names([[source]], 2)
    assert (names, why) == (None, "label_names in config.json names 3, the head has 2")


def test_a_nameless_head_is_named_by_the_data_in_text_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = read_weights(saved(vit(num_classes=11).state_dict(), tmp_path))
    folders = [str(n) for n in range(11)]
    names, whence = head_classes(weights, None, folders, names_here=True)
    assert names[:4] == ["0", "1", "10", "2"]
    assert "text order" in whence
    assert head_classes(weights)[0] == folders
    assert "numbers" in head_classes(weights)[1]


def test_names_in_the_current_folder_are_said_to_be_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = read_weights(saved(vit().state_dict(), tmp_path))
    (tmp_path / "class_indices.json").write_text('{"0": "pear", "1": "apple"}', "utf-8")
    assert head_classes(weights)[0] == ["0", "1"]
    here = (["pear", "apple"], "class_indices.json in the current folder")
    assert head_classes(weights, names_here=True) == here
    assert head_classes(weights, None, ["apple", "pear"], names_here=True) == here
    other = head_classes(weights, None, ["cats", "dogs"], names_here=True)
    assert other[0] == ["cats", "dogs"]


@pytest.mark.parametrize("size", ["large", [[64]], {"shortest_edge": "a"}, 0, -1, True, 1e300])
def test_a_side_that_is_no_number_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="sides of the image: "):
        read_weights(as_hub(vit().state_dict(), tmp_path, image_size=size))
