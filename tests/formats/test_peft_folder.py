"""LoRA of the peft library: as peft writes it, and by its formula where peft itself is too slow."""

import json
import re

import pytest
import safetensors.torch
import torch
import transformers
from oracles import as_hub, hugging_face, shaken, vit

from formats.fitting import load_into
from formats.reading import read_weights
from pretrained import load_model
from vit_model import create_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def logits(path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path).model(IMAGES)


def as_peft(folder, tensors, **config):
    """Writes a folder as peft does."""
    folder.mkdir()
    named = {f"base_model.model.{name}": value for name, value in tensors.items()}
    safetensors.torch.save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def factors(module: str, inputs: int, outputs: int, rank: int = 3) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(rank, inputs) / 9,
        f"{module}.lora_B.weight": torch.randn(outputs, rank) / 9,
    }


@pytest.fixture
def timm_base(tmp_path):
    model = vit()
    torch.save(model.state_dict(), tmp_path / "base.pth")
    return model, tmp_path / "base.pth"


# --- what is followed -----------------------------------------------------------------------------


def test_factors_over_timms_names_are_merged(timm_base, tmp_path):
    model, base = timm_base
    tensors = factors("blocks.1.attn.qkv", 128, 384) | factors("blocks.0.mlp.fc2", 512, 128)
    folder = as_peft(tmp_path / "peft", tensors, base_model_name_or_path=str(base))
    with torch.no_grad():
        for name in ("blocks.1.attn.qkv", "blocks.0.mlp.fc2"):
            up, down = tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"]
            model.get_submodule(name).weight += 6 / 3 * up @ down
        torch.testing.assert_close(logits(folder), model(IMAGES), rtol=0, atol=1e-4)
    assert torch.equal(logits(folder / "adapter_model.safetensors"), logits(folder))


SIZES = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
    "image_size": 64, "patch_size": 16,
}  # fmt: skip
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


@pytest.mark.parametrize(
    ("kind", "options", "module", "sizes"),
    [
        ("CLIPVision", {}, "encoder.layers.1.self_attn.v_proj", (48, 48)),
        ("SiglipVision", {}, "encoder.layers.0.mlp.fc2", (80, 48)),
        ("DINOv3ViT", {}, "model.layer.1.mlp.up_proj", (48, 80)),
        ("DINOv3ViT", GATED, "model.layer.1.mlp.up_proj", (48, 80)),
        ("DINOv3ViT", GATED, "model.layer.0.attention.k_proj", (48, 48)),
    ],
)
def test_factors_over_other_families_of_hugging_face_are_merged(
    tmp_path, kind, options, module, sizes
):
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = shaken(getattr(transformers, f"{kind}Model")(config))
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    tensors = factors(module, *sizes)
    named = {"base_model_name_or_path": str(tmp_path / "base")}
    folder = as_peft(tmp_path / "peft", tensors, **named)
    down, up = tensors.values()
    with torch.no_grad():
        model.get_submodule(module).weight += 2 * up @ down
        weights = read_weights(folder)
        ours = create_model(**weights.config).eval()
        load_into(ours, weights)
        theirs = model(IMAGES).pooler_output
        torch.testing.assert_close(ours(IMAGES), theirs, rtol=0, atol=1e-4 * theirs.std().item())


@pytest.mark.parametrize("part", ["attention.q_proj", "attention.attention.value"])
def test_queries_and_values_of_hugging_face_are_their_third_of_qkv(tmp_path, part):
    model = hugging_face()
    base = as_hub(model.state_dict(), tmp_path / "base", **model.config.to_dict())
    tensors = factors(f"vit.layers.1.{part}", 128, 128, rank=4)
    head = {"classifier.weight": torch.randn(5, 128), "classifier.bias": torch.randn(5)}
    settings = {"use_rslora": True, "base_model_name_or_path": str(base.parent)}
    folder = as_peft(tmp_path / "peft", tensors | head, **settings)
    down, up = tensors.values()
    wanted = model.state_dict() | head
    ends = r"q_proj|query" if "q" in part else r"v_proj|value"
    name = next(n for n in wanted if re.search(rf"layers?\.1\..*({ends})\.weight", n))
    wanted[name] = wanted[name] + 6 / 2 * up @ down
    other = hugging_face(num_labels=5)
    other.load_state_dict(wanted)
    with torch.no_grad():
        torch.testing.assert_close(logits(folder), other(IMAGES).logits, rtol=0, atol=1e-4)
    assert read_weights(folder).classes is None  # the names of the base are of another head


def test_the_backbone_is_found_in_the_weights_folder_by_its_name(timm_base, tmp_path, monkeypatch):
    _, base = timm_base
    (tmp_path / "here/weights").mkdir(parents=True)
    base.rename(tmp_path / "here/weights/my-vit.pth")
    folder = as_peft(
        tmp_path / "peft",
        factors("blocks.0.mlp.fc1", 128, 512),
        base_model_name_or_path="somebody/my-vit",
    )
    with pytest.raises(ValueError, match=r"needs its backbone somebody/my-vit: put its file into"):
        read_weights(folder)
    monkeypatch.chdir(tmp_path / "here")
    assert read_weights(folder).notes[-1].startswith("LoRA of peft")


def test_the_backbone_is_found_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    model = hugging_face()
    cache = tmp_path / "hub/models--some--vit/snapshots"
    cache.mkdir(parents=True)
    as_hub(model.state_dict(), cache / "abc", **model.config.to_dict())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    tensors = factors("vit.encoder.layer.0.intermediate.dense", 128, 512)
    folder = as_peft(tmp_path / "peft", tensors, base_model_name_or_path="some/vit")
    assert load_model(folder).model(IMAGES).shape == (2, 2)


@pytest.mark.slow  # peft takes seconds to import
@pytest.mark.parametrize("kind", ["timm", "Hugging Face"])
def test_what_peft_writes_gives_its_logits(tmp_path, kind):
    peft = pytest.importorskip("peft")
    shared = {"r": 3, "lora_alpha": 5, "bias": "all"}
    if kind == "timm":
        base, head = vit(), "head"
        torch.save(base.state_dict(), tmp_path / "base.pth")
        targets, patterns = ["qkv", "proj", "fc1"], {"alpha_pattern": {"attn.proj": 9}}
    else:
        base, head = hugging_face(), "classifier"
        base.save_pretrained(tmp_path / "base.pth")
        targets = ["query", "q_proj", "value", "v_proj", "dense", "fc2"]
        patterns = {"rank_pattern": {"query": 2, "q_proj": 2}}
    config = peft.LoraConfig(**shared, **patterns, target_modules=targets, modules_to_save=[head])
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "peft")
    settings = json.loads((tmp_path / "peft/adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = str(tmp_path / "base.pth")
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(settings), "utf-8")
    with torch.no_grad():
        theirs = model(IMAGES)
    theirs = getattr(theirs, "logits", theirs)
    torch.testing.assert_close(logits(tmp_path / "peft"), theirs, rtol=0, atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------


BAD = {
    "another kind": ({"peft_type": "IA3"}, "is an adapter of type 'IA3': only LORA is read"),
    "dora": ({"use_dora": True}, "is LoRA with use_dora, which is not followed"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "changes the backbone"),
    "no alpha": ({"lora_alpha": "many"}, "has a lora_alpha that is no number"),
    "no pattern": ({"alpha_pattern": {"(": 3}}, "has an alpha_pattern that is none"),
    "no base": ({"base_model_name_or_path": None}, "needs its backbone, which its config does not"),
    "gone": ({"base_model_name_or_path": "x" * 9999}, "needs its backbone xxx"),
}


@pytest.mark.parametrize(("settings", "sentence"), BAD.values(), ids=BAD)
def test_what_is_not_followed_is_refused_with_the_reason(timm_base, tmp_path, settings, sentence):
    module = factors("blocks.0.mlp.fc1", 128, 512)
    config = {"base_model_name_or_path": str(timm_base[1])} | settings
    folder = as_peft(tmp_path / "peft", module, **config)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read_weights(folder)
    assert str(folder) in str(error.value)


ALIEN = {
    "no such module": (factors("blocks.7.mlp.fc1", 128, 512), "adapts blocks.7.mlp.fc1.weight"),
    "another width": (factors("blocks.0.mlp.fc1", 96, 512), "is for another backbone"),
    "a third of none": (factors("blocks.0.attn.query", 128, 100), "is for another backbone"),
    "half": ({"blocks.0.mlp.fc1.lora_A.weight": torch.zeros(2, 128)}, "do not fit each other"),
    "no matrix": (
        {f"blocks.0.mlp.fc1.lora_{x}.weight": torch.zeros(()) for x in "AB"},
        "do not fit each other",
    ),
    "other parameters": ({"blocks.0.mlp.fc1.ia3_l": torch.zeros(9)}, "has no such module"),
}


@pytest.mark.parametrize(("tensors", "sentence"), ALIEN.values(), ids=ALIEN)
def test_modules_that_this_model_lacks_are_named(timm_base, tmp_path, tensors, sentence):
    base = str(timm_base[1])
    folder = as_peft(tmp_path / "peft", tensors, base_model_name_or_path=base)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_weights(folder)


def test_a_folder_that_names_itself_ends(tmp_path):
    tensors = factors("blocks.0.mlp.fc1", 128, 512)
    folder = as_peft(tmp_path / "peft", tensors)
    config = {"peft_type": "LORA", "lora_alpha": 1}
    config["base_model_name_or_path"] = str(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match="is an adapter of an adapter"):
        read_weights(folder)


def test_other_folders_are_refused_as_before(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a weights file"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("kind", "module"),
    [
        ("CLIP", "vision_model.encoder.layers.1.self_attn.v_proj"),
        ("Siglip", "vision_model.encoder.layers.1.self_attn.v_proj"),
        ("Dinov2", "dinov2.layers.1.attention.v_proj"),
    ],
)
def test_a_classifier_reads_what_its_class_does_over_a_backbone_without_one(tmp_path, kind, module):
    sizes = {k: v for k, v in SIZES.items() if kind != "Dinov2" or k != "intermediate_size"}
    config = getattr(transformers, f"{kind}Config")
    towers = kind != "Dinov2"
    options = {"vision_config": sizes} if towers else sizes
    whole = f"{kind}ForImageClassification"
    model = shaken(getattr(transformers, whole)(config(**options, num_labels=3)))
    inner = getattr(model, "vision_model" if towers else "dinov2")
    bare = getattr(transformers, f"{kind}{'Vision' * towers}Model")(inner.config)
    bare.load_state_dict({k: v for k, v in inner.state_dict().items() if k in bare.state_dict()})
    bare.save_pretrained(tmp_path / "base")
    module = next(n for n, _ in model.named_modules() if re.search(r"1\..*(v_proj|value)$", n))
    tensors = factors(module, 48, 48)
    head = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("classifier.")}
    named = {"base_model_name_or_path": str(tmp_path / "base")}
    folder = as_peft(tmp_path / "peft", tensors | head, **named)
    down, up = tensors.values()
    with torch.no_grad():
        model.get_submodule(module).weight += 2 * up @ down
        theirs = model(IMAGES).logits
    torch.testing.assert_close(logits(folder), theirs, rtol=0, atol=1e-4 * theirs.std().item())


def test_small_changes_of_half_precision_weights_are_kept(tmp_path):
    model = hugging_face()
    half = {name: value.bfloat16() for name, value in model.state_dict().items()}
    base = as_hub(half, tmp_path / "base", **model.config.to_dict())
    tensors = factors("vit.layers.0.mlp.fc1", 128, 512)
    tensors = {name: value / 30 for name, value in tensors.items()}
    folder = as_peft(tmp_path / "peft", tensors, base_model_name_or_path=str(base.parent))
    down, up = tensors.values()
    name = "blocks.0.mlp.fc1.weight"
    change = read_weights(folder).state[name] - read_weights(base).state[name].float()
    torch.testing.assert_close(change, 2 * up @ down, rtol=1e-3, atol=1e-6)


def test_the_revision_of_a_backbone_that_an_adapter_names_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--vit"
    for commit in ("a" * 40, "b" * 40, "c" * 40):
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        as_hub(hugging_face().state_dict(), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40, "utf-8")
    (repository / "refs" / "pr").mkdir()
    (repository / "refs" / "pr" / "1").write_text("a" * 40, "utf-8")
    asked = [(None, "b"), ("c" * 40, "c"), ("pr/1", "a"), ("d" * 40, None)]
    for n, (revision, commit) in enumerate(asked):
        folder = as_peft(
            tmp_path / f"peft{n}",
            factors("vit.layers.0.mlp.fc1", 128, 512),
            base_model_name_or_path="some/vit",
            revision=revision,
        )
        if commit:
            assert f"/{commit * 40}/" in read_weights(folder).notes[-1]
        else:
            with pytest.raises(ValueError, match=r"needs its backbone some/vit at revision d+:"):
                read_weights(folder)
            told = json.loads((folder / "adapter_config.json").read_text("utf-8"))
            odd = json.dumps(told | {"revision": "../main"})
            (folder / "adapter_config.json").write_text(odd, "utf-8")
            with pytest.raises(ValueError, match=r"at the revision '\.\./main', which is none"):
                read_weights(folder)
