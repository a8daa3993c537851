"""What timm's name of a model tells of it: tables from patterns of names to facts.

    facts = facts_of("vit_small_patch16_dinov3.lvd1689m")     # {fact: value}, None where unknown

The first row of `FAMILIES` that matches the whole name decides; what it does not tell is as in a
plain Vision Transformer, or told by the tensors. `NOTES` adds what goes across families. Facts are
called as in `fact_table.FACTS`.
"""

import re
from collections.abc import Iterable
from typing import Any

SIZE = r"(?:\d+b|[a-z]+\d*[a-z]*\d*)(?:_plus)?"  # tiny, huge_plus, so150m2, 7b
PATCH = r"_patch\d+"
SIDE = r"(?:_\d+)?"

EPS = {"norm epsilon": 1e-5}
OF_PATCHES = {"pooling": "avg"}
OF_TOKEN = {"pooling": "token"}


def rotary(kind: str, temperature: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {
        "rotary positions": True,
        "kind of rotary positions": kind,
        "rotary temperature": temperature,
        **{f"rotary {key}": value for key, value in more.items()},
    }


# timm's Eva, whose pooling by attention reads all tokens.
EVA = {"special tokens in the pooling by attention": True}
DINOV3 = EVA | EPS | rotary("dinov3", 100.0, pairs=True) | {"sides of the image": 256}
EVA02 = EVA | rotary("cat", reference=16)
# Meta's Perception Encoder: the grid at which it was trained.
PE = {
    side: EVA | EPS | rotary("cat", axes="xy", offset=1.0, reference=side) for side in (14, 24, 32)
}
PE_WHOLE = EVA | EPS | rotary("cat", axes="xy", reference=32)
CORE = {"heads of the pooling": 8}
POST_NORM = {"norm after each part": True}

FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        rf"(?:vit|deit3?)_{SIZE}(?:_distilled)?{PATCH}(?:_plus)?(?:_reg\d+)?(?:_36x1)?(?:_gap|_map)?"
        rf"(?:_dinov2|_tipsv2)?{SIDE}(?:_(?:miil|in21k))*|flexivit_[a-z]+|test_vit2?",
        {},
    ),
    (r"test_vit3", {"special tokens in the pooling": True}),
    (r"test_vit4", {"kind of norm": "rms"}),
    (rf"vit_{SIZE}{PATCH}(?:_plus)?_clip{SIDE}", EPS),
    (rf"vit_{SIZE}{PATCH}_clip_quickgelu{SIDE}", EPS | {"activation": "quick_gelu"}),
    # SigLIP 2 in the sizes that it was first to have; the others keep the exact GELU of SigLIP's.
    (
        rf"vit_(?:so400m_patch16|giantopt_patch16|base_patch32)_siglip(?:_gap)?{SIDE}"
        rf"|vit_large_patch16_siglip(?:_gap)?_512",
        {"activation": "gelu_tanh"},
    ),
    (rf"vit_{SIZE}{PATCH}_siglip(?:_gap)?{SIDE}", {}),
    (rf"aimv2_\w+{PATCH}{SIDE}", EPS | {"kind of norm": "rms"}),
    (rf"beit3_{SIZE}{PATCH}{SIDE}", EPS | OF_PATCHES),
    (rf"beit(?:v2)?_{SIZE}{PATCH}{SIDE}", OF_PATCHES),
    (rf"eva02_enormous{PATCH}_clip{SIDE}", POST_NORM),
    (rf"eva02_{SIZE}{PATCH}_clip{SIDE}", EVA02 | OF_TOKEN),
    (rf"eva02_{SIZE}{PATCH}{SIDE}", EVA02 | OF_PATCHES),
    (rf"eva_{SIZE}{PATCH}_clip{SIDE}", EVA | OF_TOKEN),
    (rf"eva_large{PATCH}{SIDE}", OF_PATCHES),
    (rf"eva_{SIZE}{PATCH}{SIDE}", EVA | OF_PATCHES),
    (rf"vit_{SIZE}{PATCH}_rope_reg\d+_gap{SIDE}", EVA02),
    (rf"vit_{SIZE}{PATCH}_rope_mixed(?:_ape)?{SIDE}", EVA | rotary("mixed", 10.0, axes="xy")),
    (rf"vit_{SIZE}{PATCH}_rope(?:_ape)?{SIDE}", EVA | rotary("cat", 100.0, axes="xy")),
    (rf"vit_{SIZE}{PATCH}_dinov3(?:_qkvb)?{SIDE}", DINOV3 | OF_PATCHES),
    (r"dinov3_vit\w+?\d+(?:_pretrain)?(?:_\w+)?", DINOV3),  # as its authors call it
    (rf"vit_{SIZE}{PATCH}_lingbot{SIDE}", DINOV3 | OF_TOKEN),
    (
        rf"vit_{SIZE}{PATCH}_sapiens2",
        DINOV3 | OF_PATCHES | {"norm epsilon": 1e-6, "kind of norm": "rms"},
    ),
    (r"vit_pe_core_base_patch16_224", PE[14] | CORE),
    (rf"vit_pe_core_gigantic{PATCH}{SIDE}", PE_WHOLE | CORE),
    (rf"vit_pe_core_{SIZE}{PATCH}{SIDE}", PE[24] | CORE),
    (rf"vit_pe_(?:lang|spatial)_gigantic{PATCH}{SIDE}", PE_WHOLE | OF_PATCHES),
    (rf"vit_pe_(?:lang|spatial)_{SIZE}{PATCH}{SIDE}", PE[32] | OF_PATCHES),
    (rf"vit_{SIZE}{PATCH}_radio_v\d|vit_intern300m{PATCH}{SIDE}", OF_TOKEN),
    (rf"vit_{SIZE}{PATCH}_rpn{SIDE}", POST_NORM),
    (rf"vit_{SIZE}{PATCH}_xp{SIDE}|vit_{SIZE}{PATCH}_\d+x[2-9]{SIDE}", {"parallel blocks": 2}),
    (rf"vit_\w+_r\d*_s\d+\w*|vit_\w+_resnet\w+|vit_\w*_mci{SIDE}|vit_{SIZE}_r\d*_\w+",
     {"hybrid stem": "a convolutional network"}),
    (r"vit_(?:s?relpos)_\w+", {"relative positions": "by an MLP or a table of windows"}),
    (r"samvit_\w+|vit_\w+_det_\w+", {"attention in windows": "windows"}),
)  # fmt: skip

OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# (pattern somewhere in the name or its tag, what it tells); of several that tell one fact the last
# counts.
NOTES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"_clip_|^eva|^aimv2|_radio_|patch16_rope_reg4", OPENAI),
    (r"^eva_giant_patch14_560|^beit3|^beitv2|dinov3|lingbot|sapiens2|_rope_(?:ape_)?224", IMAGENET),
    (r"_rope_mixed_|intern300m|dinov2|^deit|^vit_(?:giant|huge)_patch1\d_gap", IMAGENET),
    (r"siglip|^beit_|_pe_", HALF),
    (r"miil|tipsv2", {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
    # By what photos, as the tag behind the point tells.
    (r"sat493m", {"mean": (0.43, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}),
    (r"^vit_large_patch14_clip_\d+\.laion2b", HALF),
    (r"\.bamboo$", OPENAI),
    (r"^eva_giant_patch14_336\.m30m", IMAGENET),
)
# Heads of models that are not 64 wide, beside those of the variants: {(width, depth): heads}; of
# models of a width and depth that others have, too, by name.
HEADS = {
    (64, 6): 2, (64, 8): 2, (96, 9): 3, (1152, 27): 16, (1408, 40): 16, (1536, 24): 12,
    (1536, 47): 16, (1536, 50): 16, (1664, 48): 16, (1792, 64): 16, (2048, 24): 16, (2432, 56): 32,
    (3072, 24): 24, (4096, 40): 32,
}  # fmt: skip
NAMED_HEADS = (
    (r"^aimv2_large", {(1024, 24): 8}),
    (r"giantopt", {(1536, 40): 16}),
    (r"huge_plus", {(1280, 32): 20}),
    (r"^vit_base_patch16_gap_224", {(768, 12): 16}),
)


def tagged(name: str) -> str:
    """Returns a name without its owner, in one spelling."""
    return name.lower().split("/")[-1].replace("-", "_")


def short(name: str) -> str:
    """Returns a name without its owner and its tag, in one spelling."""
    return tagged(name).split(".")[0]


def heads_by_name(names: Iterable[str], width: int, depth: int) -> int | None:
    """Returns the heads of a model of such a name where others of its sizes have others."""
    for pattern, heads in NAMED_HEADS:
        if (width, depth) in heads and any(re.search(pattern, short(name)) for name in names):
            return heads[width, depth]
    return None


def facts_of(name: str) -> dict[str, Any] | None:
    """Returns the facts that timm's name of a model tells beyond a plain one, None if unknown."""
    whole, name = tagged(name), short(name)
    told = next((dict(facts) for pattern, facts in FAMILIES if re.fullmatch(pattern, name)), None)
    if told is None:
        return None
    side = re.search(r"_(\d{3,4})$", name)
    told |= {"sides of the image": int(side[1])} if side else {}
    for pattern, facts in NOTES:
        if re.search(pattern, whole):
            told |= facts
    return told
