"""Models that lie on the Hugging Face hub: by family, with licence and what they are good for.

The table of variants in `vit_model.py` holds what has an address of its own; these are fetched by
name (`formats/hub.py`). Names, licences and sizes are those of timm's repositories.
"""

from dataclasses import dataclass

OWNER = "timm"


@dataclass(frozen=True)
class Family:
    """Models that were trained in one way.

    models: {name of the repository: (millions of parameters, image size)}.
    licence: as the hub calls it; terms: what to know of it, where it is not one of the usual.
    """

    title: str
    models: dict[str, tuple[float, int]]
    licence: str
    good_for: str
    terms: str = ""


FAMILIES = (
    Family(
        "DINOv3",
        {
            "vit_small_patch16_dinov3.lvd1689m": (21.6, 256),
            "vit_base_patch16_dinov3.lvd1689m": (85.6, 256),
            "vit_large_patch16_dinov3.lvd1689m": (303.1, 256),
        },
        "dinov3-license",
        "most photos, the head alone; fine differences",
        "a licence of Meta's own: https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    ),
    Family(
        "DINOv2",
        {
            "vit_small_patch14_reg4_dinov2.lvd142m": (22.1, 518),
            "vit_base_patch14_reg4_dinov2.lvd142m": (86.6, 518),
            "vit_large_patch14_reg4_dinov2.lvd142m": (304.4, 518),
            "vit_giant_patch14_reg4_dinov2.lvd142m": (1136.5, 518),
        },
        "apache-2.0",
        "most photos, the head alone; textures and plants",
    ),
    Family(
        "SigLIP 2",
        {
            "vit_base_patch32_siglip_256.v2_webli": (94.6, 256),
            "vit_base_patch16_siglip_224.v2_webli": (92.9, 224),
            "vit_large_patch16_siglip_256.v2_webli": (316.0, 256),
            "vit_so400m_patch14_siglip_224.v2_webli": (427.7, 224),
        },
        "apache-2.0",
        "things that have names: products, signs, scenes",
    ),
    Family(
        "CLIP",
        {
            "vit_base_patch32_clip_224.openai": (87.5, 224),
            "vit_base_patch16_clip_224.openai": (85.8, 224),
            "vit_base_patch16_clip_224.datacompxl": (85.8, 224),
            "vit_large_patch14_clip_224.laion2b": (303.2, 224),
        },
        "apache-2.0",
        "drawings and screenshots beside photos, styles",
    ),
    Family(
        "EVA-02",
        {
            "eva02_tiny_patch14_224.mim_in22k": (5.5, 224),
            "eva02_small_patch14_224.mim_in22k": (21.6, 224),
            "eva02_base_patch14_224.mim_in22k": (85.8, 224),
            "eva02_large_patch14_224.mim_m38m": (303.3, 224),
        },
        "mit",
        "all layers trained, some thousand photos",
    ),
    Family(
        "BEiT v2",
        {
            "beitv2_base_patch16_224.in1k_ft_in22k": (85.8, 224),
            "beitv2_large_patch16_224.in1k_ft_in22k": (303.4, 224),
        },
        "apache-2.0",
        "all layers trained; knows ImageNet-22k's classes",
    ),
    Family(
        "MAE",
        {
            "vit_base_patch16_224.mae": (85.8, 224),
            "vit_large_patch16_224.mae": (303.3, 224),
            "vit_huge_patch14_224.mae": (630.8, 224),
        },
        "cc-by-nc-4.0",
        "all layers trained, never the head alone",
        "for no commercial use",
    ),
)
BY_NAME = {name: family for family in FAMILIES for name in family.models}


def repository(name: str) -> str | None:
    """Returns the repository of a listed model, called by its name; None for any other name."""
    return f"{OWNER}/{name}" if name in BY_NAME else None


def family_of(repo: str) -> Family | None:
    """Returns the family of a repository of timm that is listed."""
    owner, _, name = repo.partition("/")
    return BY_NAME.get(name) if owner == OWNER else None


def rows() -> list[tuple[str, ...]]:
    """The families as a table: name, parameters, image size, licence, what it is good for."""
    table = [("name on the hub", "params", "image", "licence", "good for")]
    for family in FAMILIES:
        terms = f" ({family.terms.partition(':')[0]})" if family.terms else ""
        for name, (millions, size) in family.models.items():
            cells = name, f"{millions:.1f} M", str(size), family.licence
            table.append((*cells, f"{family.title}{terms}: {family.good_for}"))
    return table
