"""The Vision Transformer, with MLP or Kolmogorov-Arnold blocks, and the table of its variants.

    model = create_model("deit_tiny_patch16_224", num_classes=5, mlp="kan", kan_rank=16)
    logits = model(images)                      # (B, 3, 224, 224) -> (B, 5)

The network is that of "An Image is Worth 16x16 Words" (arXiv 2010.11929); the distillation token
is DeiT's (arXiv 2012.12877), register tokens those of "Vision Transformers Need Registers" (arXiv
2309.16588). What other families do otherwise (CLIP, SigLIP, EVA-02, BEiT, DINOv3 ...) are fields of
`ViTConfig`, and parts of their own in `vit/`. State-dict keys are timm's VisionTransformer's, so
the files of timm, of DeiT and of the reference load unchanged.

Letters in shape comments: B batch, N tokens, C channels (embed_dim).
"""

import difflib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splines.layer import SplineLayer
from vit.adapters import add_adapters
from vit.attention import Attention
from vit.config import MLP_KINDS, ViTConfig, is_number
from vit.mlps import KanMlp, Mlp, SwiGlu, make_mlp, matching_hidden
from vit.parts import DropPath, LayerScale, PatchEmbed, norm_of
from vit.pooling import AttentionPool, reading
from vit.positions import RelativeBias, Rotary, Turn

__all__ = ["KanMlp", "Mlp", "SwiGlu", "is_number"]  # parts that users find here

# Mean and standard deviation by which each family of pretrained weights normalises its input.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
# Names in the state dict: of the heads, which a new set of classes replaces.
HEADS = ("head.", "head_dist.")


def is_spline(name: str) -> bool:
    """Whether a tensor of the state dict belongs to a KAN layer's splines: coefficients or grid."""
    last = name.rsplit(".", 1)[-1]
    return "spline" in last or last == "grid"


def kind_of(config: dict, before: str, after: str = "") -> str:
    """Returns how words call the KAN of a model between `before` and `after`; "" for none."""
    kind = MLP_KINDS.get(config.get("mlp", "mlp"))
    return f"{before}{kind}{after}" if kind else ""


class Block(nn.Module):
    """One pre-norm transformer layer of a model of that config.

    forward: tokens (B, N, C) -> (B, N, C); with `out`, only the first `out` of them come out. All
    are attended to. turn, shared: what rotates queries and keys, and biases of all blocks alike.
    """

    def __init__(self, cfg: ViTConfig, mlp: nn.Module, drop_path: float, kan: dict | None) -> None:
        super().__init__()
        dim, norm = cfg.embed_dim, norm_of(cfg.norm, cfg.norm_eps)

        def scale(wanted: bool = True) -> nn.Module:
            has = wanted and cfg.init_values is not None
            return LayerScale(dim, cfg.init_values) if has else nn.Identity()

        self.norm1 = norm(dim)
        self.attn = Attention(
            dim,
            cfg.num_heads,
            cfg.head_width,
            norm,
            qkv_bias=cfg.qkv_bias,
            qk_norm=cfg.qk_norm,
            inner_norm=cfg.attn_norm,
            relative_grid=cfg.grid if cfg.rel_pos in ("block", "both") else None,
            rope_half=cfg.rope_rotate_half,
            attn_drop=cfg.attn_drop_rate,
            proj_drop=cfg.drop_rate,
            kan=kan,
        )
        self.ls1 = scale()
        self.norm2 = norm(dim)
        self.mlp = mlp
        self.ls2 = scale(cfg.mlp_scale)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        out: int | None = None,
        turn: Turn | None = None,
        shared: Tensor | None = None,
    ) -> Tensor:
        mixed = self.attn(self.norm1(x), out, turn, shared)
        x = x[:, :out] + self.drop_path(self.ls1(mixed))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformer(nn.Module):
    """A Vision Transformer; `config` names all its sizes. See `create_model` for named variants.

    forward(x): images (B, in_chans, img_size, img_size), normalised as the weights' family wants
        -> logits (B, num_classes). A distilled model returns the mean of its two heads, except in
        training with `distill_outputs = True`, where it returns both (logits, logits_dist).
    """

    def __init__(self, config: ViTConfig | None = None, **sizes) -> None:
        super().__init__()
        cfg = config or ViTConfig(**sizes)
        self.sizes = cfg
        self.name = "custom"
        self.num_classes, self.embed_dim = cfg.num_classes, cfg.embed_dim
        self.grad_checkpointing = False
        self.distill_outputs = False
        dim, norm = cfg.embed_dim, norm_of(cfg.norm, cfg.norm_eps)

        def tokens(count: int) -> nn.Parameter | None:
            return nn.Parameter(torch.zeros(1, count, dim)) if count else None

        patch_norm = norm if cfg.patch_norm else None
        self.patch_embed = PatchEmbed(cfg.img_size, cfg.patch_size, cfg.in_chans, dim, patch_norm)
        self.cls_token, self.dist_token = tokens(cfg.class_token), tokens(cfg.distilled)
        self.reg_token = tokens(cfg.reg_tokens)
        self.num_prefix_tokens = cfg.prefix
        positions = self.patch_embed.num_patches + cfg.positions
        self.pos_embed = tokens(positions if cfg.pos_embed else 0)
        self.pos_drop = nn.Dropout(cfg.drop_rate)
        self.rope, self.rel_pos_bias = self._make_rope(), None
        if cfg.rel_pos in ("shared", "both"):
            self.rel_pos_bias = RelativeBias(self.patch_embed.grid_size, cfg.num_heads)
        self.norm_pre = norm(dim) if cfg.norm_pre else nn.Identity()
        # Drop path grows linearly with depth, as in the paper.
        rates = [cfg.drop_path_rate * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]
        all_maps = cfg.kan_numbers if cfg.kan_at == "all" else ()
        self.blocks = nn.ModuleList(
            Block(cfg, self._make_mlp(i), rates[i], cfg.kan_options if i in all_maps else None)
            for i in range(cfg.depth)
        )
        self.norm = norm(dim) if cfg.final_norm else nn.Identity()
        self.attn_pool = self._make_pool(norm) if cfg.global_pool == "map" else None
        width = 2 * dim if cfg.global_pool == "token+avg" else dim
        self.fc_norm = norm(width) if cfg.fc_norm else nn.Identity()
        self.pre_logits = nn.Identity()
        if cfg.representation_size and not cfg.distilled:
            inner = nn.Linear(width, cfg.representation_size)
            self.pre_logits = nn.Sequential(OrderedDict([("fc", inner), ("act", nn.Tanh())]))
            width = cfg.representation_size
        self.head = nn.Linear(width, cfg.num_classes) if cfg.num_classes else nn.Identity()
        two_heads = cfg.distilled and cfg.dist_head and cfg.num_classes
        self.head_dist = nn.Linear(dim, cfg.num_classes) if two_heads else None
        self.init_weights()
        add_adapters(self.blocks, cfg.adapt, cfg.lora_rank, cfg.lora_at)

    def _make_mlp(self, block: int) -> nn.Module:
        cfg, hidden = self.sizes, self.sizes.hidden[block]
        kan = cfg.kan_options if block in cfg.kan_numbers else None
        form = {"swiglu": cfg.swiglu, "at": cfg.kan_at}
        if kan and cfg.kan_hidden == "match":
            hidden = matching_hidden(cfg.embed_dim, hidden, **form, **kan)
        elif kan and cfg.kan_hidden != "full":
            hidden = int(cfg.kan_hidden)
        norm = norm_of(cfg.norm, cfg.norm_eps) if cfg.mlp_norm else None
        form |= {"act": cfg.act, "norm": norm}
        return make_mlp(cfg.embed_dim, hidden, cfg.drop_rate, **form, kan=kan)

    def _make_rope(self) -> Rotary | None:
        cfg = self.sizes
        if cfg.rope == "none":
            return None
        return Rotary(
            cfg.rope,
            cfg.depth,
            cfg.num_heads,
            cfg.head_width,
            self.patch_embed.grid_size,
            cfg.prefix,
            temperature=cfg.rope_temperature,
            half=cfg.rope_rotate_half,
            indexing=cfg.rope_grid_indexing,
            offset=cfg.rope_grid_offset,
            reference=cfg.rope_ref_grid,
        )

    def _make_pool(self, norm: partial) -> AttentionPool:
        cfg = self.sizes
        heads, hidden = cfg.pool_heads or cfg.num_heads, cfg.pool_hidden or 4 * cfg.embed_dim
        return AttentionPool(cfg.embed_dim, heads, hidden, norm, cfg.act)

    def init_weights(self) -> None:
        """Truncated normal (0.02) weights, zero biases and a zero head (ViT paper, appendix B)."""
        if self.patch_embed.proj.weight.is_meta:  # torch would import its compiler to draw nothing
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SplineLayer):
                nn.init.trunc_normal_(module.base_weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.rope is not None:
            self.rope.init_weights()
        if self.attn_pool is not None:
            nn.init.trunc_normal_(self.attn_pool.latent, std=self.embed_dim**-0.5)
        for head in (self.head, self.head_dist):
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)

    @property
    def config(self) -> dict:
        """Plain values with which `create_model(**config)` rebuilds the model."""
        return {"name": self.name} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self.sizes).items()
        }

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, S, S) -> tokens (B, N, C) with positions, special tokens first."""
        x = self.patch_embed(x)
        tokens = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        tokens = [token.expand(x.shape[0], -1, -1) for token in tokens]
        if self.pos_embed is not None and not self.sizes.positions:
            x = x + self.pos_embed
        x = torch.cat([*tokens, x], dim=1)
        if self.pos_embed is not None and self.sizes.positions:
            x = x + self.pos_embed
        return self.norm_pre(self.pos_drop(x))

    def forward_blocks(
        self, x: Tensor, first: int = 0, last: int | None = None, out: int | None = None
    ) -> Tensor:
        """Tokens (B, N, C) through the blocks `first` to `last` (exclusive) -> (B, N, C).

        out: how many tokens the model's last block gives (None: all).
        """
        turns = self.rope(x.device) if self.rope else [None] * len(self.blocks)
        shared = self.rel_pos_bias() if self.rel_pos_bias else None
        for block, turn in list(zip(self.blocks, turns, strict=True))[first:last]:
            wanted = out if block is self.blocks[-1] else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, wanted, turn, shared, use_reentrant=False)
            else:
                x = block(x, wanted, turn, shared)
        return x

    def forward_rest(self, x: Tensor, first: int = 0) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, N, C) through the blocks from `first` on, norm and head -> logits.

        In training the last block computes what the head reads alone, which saves three quarters of
        that block and changes no gradient where this is the class token, whose place is first. In
        evaluation hooks find every token.
        """
        out = self.readers if self.training and self.sizes.global_pool == "token" else None
        return self.forward_head(self.norm(self.forward_blocks(x, first, out=out)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, S, S) -> normalised tokens (B, N, C), class token first."""
        return self.norm(self.forward_blocks(self.embed(x)))

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, in_chans, S, S) -> logits (B, num_classes), and what the heads read (B, F)."""
        pooled = self.pool(self.forward_features(x))
        return self.classify(pooled), pooled.flatten(1)

    @property
    def num_features(self) -> int:
        """How many numbers the heads read: see `pool`."""
        parts = {"token": self.readers, "token+avg": 2}.get(self.sizes.global_pool, 1)
        return self.sizes.embed_dim * parts

    @property
    def readers(self) -> int:
        """How many special tokens heads read: the class token, and DeiT's other beside it."""
        return 1 + self.sizes.distilled

    def reading(self, tokens: int) -> Tensor:
        """How much of each of so many tokens the heads read, (N,): see `vit.pooling.reading`."""
        cfg = self.sizes
        first = 1 + (self.head_dist is not None)
        return reading(cfg.global_pool, tokens, first, cfg.prefix, cfg.pool_prefix)

    def pool(self, x: Tensor) -> Tensor:
        """Normalised tokens (B, N, C) -> what the heads read, (B, 1, C): see `global_pool`.

        Of "token+avg" (B, 1, 2 C), of a distilled model (B, 2, C).
        """
        kind = self.sizes.global_pool
        if kind == "token":
            return self.fc_norm(x[:, : self.readers])
        pooled = x if self.sizes.pool_prefix else x[:, self.num_prefix_tokens :]
        pooled = self.attn_pool(pooled) if kind == "map" else pooled.mean(1, keepdim=True)
        if kind == "token+avg":
            pooled = torch.cat([x[:, :1], pooled], dim=-1)
        return self.fc_norm(pooled)

    def classify(self, pooled: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What the heads read, as `pool` gives it -> logits (B, num_classes)."""
        logits = self.head(self.pre_logits(pooled[:, 0]))
        if self.head_dist is None:
            return logits
        logits_dist = self.head_dist(pooled[:, 1])
        if self.training and self.distill_outputs:
            return logits, logits_dist
        return (logits + logits_dist) / 2

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised tokens (B, N, C) -> logits (B, num_classes)."""
        return self.classify(self.pool(x))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_rest(self.embed(x))


@dataclass(frozen=True)
class Variant:
    """A named model: its sizes (fields of `ViTConfig`), where its weights lie, how they normalise.

    url is None where no address is known to hold the file; sha256 is None where the file's name
    carries its hash. pre_logits: whether the reference's function of that name adds that layer.
    """

    sizes: dict
    family: str
    url: str | None = None
    sha256: str | None = None
    pre_logits: bool = False


TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
AUGREG = "https://storage.googleapis.com/vit_models/augreg/"
JX = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
DEIT = "https://dl.fbaipublicfiles.com/deit/"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/"


def _vit(size: dict, patch: int, url: str | None, img: int = 224, **extra) -> Variant:
    return Variant({**size, "patch_size": patch, "img_size": img, **extra}, "half", url)


def _in21k(size: dict, patch: int, url: str | None, pre_logits: bool = True) -> Variant:
    return replace(_vit(size, patch, url, num_classes=21843), pre_logits=pre_logits)


def _deit(size: dict, file: str, img: int = 224, distilled: bool = False) -> Variant:
    sizes = {**size, "patch_size": 16, "img_size": img, "distilled": distilled}
    return Variant(sizes, "imagenet", DEIT + file)


def _dinov2(size: dict, letter: str, registers: bool) -> Variant:
    sizes = {**size, "patch_size": 14, "img_size": 518, "num_classes": 0, "init_values": 1e-5}
    if registers:
        sizes |= {"reg_tokens": 4, "no_embed_class": True}
    folder = f"dinov2_vit{letter}14"
    file = f"{folder}{'_reg4' if registers else ''}_pretrain.pth"
    return Variant(sizes, "imagenet", f"{DINOV2}{folder}/{file}")


_I21K = "-i21k-300ep-lr_0.001-aug_"
_I1K = "--imagenet2012-steps_20k-lr_0.03-res_"
_TI16 = f"{AUGREG}Ti_16{_I21K}none-wd_0.03-do_0.0-sd_0.0"
_S16 = f"{AUGREG}S_16{_I21K}light1-wd_0.03-do_0.0-sd_0.0"
_S32 = f"{AUGREG}S_32{_I21K}light1-wd_0.03-do_0.0-sd_0.0"
_B32 = f"{AUGREG}B_32{_I21K}medium1-wd_0.03-do_0.0-sd_0.0"
_L16 = f"{AUGREG}L_16{_I21K}medium1-wd_0.1-do_0.1-sd_0.1"
# Sizes: table 1 of the ViT paper and of DeiT. Addresses: the reference's where it names one, else
# AugReg's (arXiv 2106.10270), DeiT's and DINOv2's own. The micro model is for trying things out.
VARIANTS: dict[str, Variant] = {
    "vit_micro_patch8_64": _vit(
        {"embed_dim": 128, "depth": 4, "num_heads": 4}, 8, None, img=64, mlp_hidden=256
    ),
    "vit_tiny_patch16_224": _vit(TINY, 16, f"{_TI16}{_I1K}224.npz"),
    "vit_tiny_patch16_224_in21k": _in21k(TINY, 16, f"{_TI16}.npz", pre_logits=False),
    "vit_tiny_patch16_384": _vit(TINY, 16, f"{_TI16}{_I1K}384.npz", img=384),
    "vit_small_patch16_224": _vit(SMALL, 16, f"{_S16}{_I1K}224.npz"),
    "vit_small_patch16_224_in21k": _in21k(SMALL, 16, f"{_S16}.npz", pre_logits=False),
    "vit_small_patch16_384": _vit(SMALL, 16, f"{_S16}{_I1K}384.npz", img=384),
    "vit_small_patch32_224": _vit(SMALL, 32, f"{_S32}{_I1K}224.npz"),
    "vit_small_patch32_224_in21k": _in21k(SMALL, 32, f"{_S32}.npz", pre_logits=False),
    "vit_small_patch32_384": _vit(SMALL, 32, f"{_S32}{_I1K}384.npz", img=384),
    "vit_base_patch16_224": _vit(BASE, 16, f"{JX}jx_vit_base_p16_224-80ecf9dd.pth"),
    "vit_base_patch16_224_in21k": _in21k(
        BASE, 16, f"{JX}jx_vit_base_patch16_224_in21k-e5005f0a.pth"
    ),
    "vit_base_patch16_384": _vit(BASE, 16, f"{JX}jx_vit_base_p16_384-83fb41ba.pth", img=384),
    "vit_base_patch32_224": _vit(BASE, 32, f"{_B32}{_I1K}224.npz"),
    "vit_base_patch32_224_in21k": _in21k(
        BASE, 32, f"{JX}jx_vit_base_patch32_224_in21k-8db57226.pth"
    ),
    "vit_base_patch32_384": _vit(BASE, 32, f"{JX}jx_vit_base_p32_384-830016f5.pth", img=384),
    "vit_large_patch16_224": _vit(LARGE, 16, f"{JX}jx_vit_large_p16_224-4ee7a4dc.pth"),
    "vit_large_patch16_224_in21k": _in21k(
        LARGE, 16, f"{JX}jx_vit_large_patch16_224_in21k-606da67d.pth"
    ),
    "vit_large_patch16_384": _vit(LARGE, 16, f"{JX}jx_vit_large_p16_384-b3be5167.pth", img=384),
    "vit_large_patch32_224_in21k": _in21k(
        LARGE, 32, f"{JX}jx_vit_large_patch32_224_in21k-9046d2e7.pth"
    ),
    "vit_large_patch32_384": _vit(LARGE, 32, f"{JX}jx_vit_large_p32_384-9b920ba8.pth", img=384),
    "vit_huge_patch14_224_in21k": _in21k(HUGE, 14, None),
    "deit_tiny_patch16_224": _deit(TINY, "deit_tiny_patch16_224-a1311bcf.pth"),
    "deit_small_patch16_224": _deit(SMALL, "deit_small_patch16_224-cd65a155.pth"),
    "deit_base_patch16_224": _deit(BASE, "deit_base_patch16_224-b5f2ef4d.pth"),
    "deit_base_patch16_384": _deit(BASE, "deit_base_patch16_384-8de9b5d1.pth", img=384),
    "deit_tiny_distilled_patch16_224": _deit(
        TINY, "deit_tiny_distilled_patch16_224-b40b3cf7.pth", distilled=True
    ),
    "deit_small_distilled_patch16_224": _deit(
        SMALL, "deit_small_distilled_patch16_224-649709d9.pth", distilled=True
    ),
    "deit_base_distilled_patch16_224": _deit(
        BASE, "deit_base_distilled_patch16_224-df68dfff.pth", distilled=True
    ),
    "deit_base_distilled_patch16_384": _deit(
        BASE, "deit_base_distilled_patch16_384-d0272ac0.pth", img=384, distilled=True
    ),
    "vit_small_patch14_dinov2": _dinov2(SMALL, "s", registers=False),
    "vit_small_patch14_reg4_dinov2": _dinov2(SMALL, "s", registers=True),
    "vit_base_patch14_dinov2": _dinov2(BASE, "b", registers=False),
    "vit_base_patch14_reg4_dinov2": _dinov2(BASE, "b", registers=True),
    "vit_large_patch14_dinov2": _dinov2(LARGE, "l", registers=False),
    "vit_large_patch14_reg4_dinov2": _dinov2(LARGE, "l", registers=True),
}


def find_variant(name: str) -> Variant:
    """Returns the variant called `name`; raises ValueError with the nearest names."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "--list-models shows all names"
    raise ValueError(f"unknown model {name!r}: {hint}")


def create_model(
    name: str,
    num_classes: int | None = None,
    mlp: str = "mlp",
    kan_blocks: str | Iterable[int] = "all",
    kan_hidden: str | int = "full",
    kan_rank: int | str | None = None,
    kan_grid: int = 5,
    kan_order: int = 3,
    kan_range: str | tuple[float, float] = "auto",
    **overrides,
) -> VisionTransformer:
    """Returns the variant `name` (a key of VARIANTS, or "custom") with new weights.

    Every keyword is a field of `ViTConfig`, described there, and overrides the variant's own;
    num_classes defaults to the variant's (1000, or 21843 for ImageNet-21k, or 0 for DINOv2).
    Raises ValueError for an unknown name or keyword and for sizes that do not fit.
    """
    sizes = {} if name == "custom" else dict(find_variant(name).sizes)
    sizes |= overrides
    sizes |= {"mlp": mlp, "kan_blocks": kan_blocks, "kan_hidden": kan_hidden}
    sizes |= {"kan_rank": kan_rank, "kan_grid": kan_grid, "kan_order": kan_order}
    sizes |= {"kan_range": kan_range}
    if num_classes is not None:
        sizes["num_classes"] = num_classes
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in sizes.items()}
    unknown = set(sizes) - set(ViTConfig.__dataclass_fields__)
    if unknown:
        raise ValueError(f"create_model has no argument {', '.join(sorted(unknown))}")
    model = VisionTransformer(ViTConfig(**sizes))
    model.name = name
    return model


def __getattr__(name: str):
    """The reference's functions: `vit_model.vit_base_patch16_224(num_classes)` and so on."""
    if name not in VARIANTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_reference_model, name)


def _reference_model(
    name: str, num_classes: int | None = None, has_logits: bool = True, **options
) -> VisionTransformer:
    """Returns a new model; has_logits: whether it has the pre-logits layer of some variants."""
    variant = VARIANTS[name]
    width = variant.sizes["embed_dim"] if variant.pre_logits and has_logits else None
    return create_model(name, num_classes, **{"representation_size": width} | options)
