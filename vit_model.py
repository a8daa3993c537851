"""The Vision Transformer, with MLP or Kolmogorov-Arnold blocks, and the table of its variants.

    model = create_model("deit_tiny_patch16_224", num_classes=5, mlp="kan", kan_rank=16)
    logits = model(images)                      # (B, 3, 224, 224) -> (B, 5)

The network is that of "An Image is Worth 16x16 Words" (arXiv 2010.11929); the distillation token
is DeiT's (arXiv 2012.12877), layer scale CaiT's (arXiv 2103.17239), register tokens those of
"Vision Transformers Need Registers" (arXiv 2309.16588). State-dict keys are timm's, so the files of
timm, of DeiT and of the reference load unchanged.

Letters in shape comments: B batch, N tokens, C channels (embed_dim), H heads, D head size.
"""

import difflib
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splines.layer import SplineLayer
from vit.adapters import add_adapters, check_adapters
from vit.mlps import KanMlp, Mlp, kan_layer, matching_hidden, parse_blocks

# Mean and standard deviation by which each family of pretrained weights normalises its input.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
# What may stand in a block, and how words call the KAN among it.
MLP_KINDS = {"mlp": "", "kan": "KAN", "gkan": "grouped KAN"}
# Whose inputs in such a block have splines: fc1 and fc2, fc2 alone, or qkv and proj as well.
KAN_PLACES = ("mlp", "hidden", "all")
# What logits may mean: see `ViTConfig.answers`.
ANSWERS = ("softmax", "sigmoid")
# Names in the state dict: of the heads, which a new set of classes replaces.
HEADS = ("head.", "head_dist.")
# The sizes that are whole numbers, each with its lowest and highest value. A file may claim any:
# the highest lie above every model that was built and below what nothing could hold.
SIZES = {
    "img_size": (1, 4096),
    "patch_size": (1, 4096),
    "in_chans": (1, 1024),
    "num_classes": (0, 1_000_000),
    "embed_dim": (1, 65536),
    "depth": (1, 1000),
    "num_heads": (1, 65536),
    "reg_tokens": (0, 65536),
    "kan_grid": (1, 1000),
    "kan_order": (0, 10),
}


def is_spline(name: str) -> bool:
    """Whether a tensor of the state dict belongs to a KAN layer's splines: coefficients or grid."""
    last = name.rsplit(".", 1)[-1]
    return "spline" in last or last == "grid"


def kind_of(config: dict, before: str, after: str = "") -> str:
    """Returns how words call the KAN of a model between `before` and `after`; "" for none."""
    kind = MLP_KINDS.get(config.get("mlp", "mlp"))
    return f"{before}{kind}{after}" if kind else ""


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (stochastic depth, arXiv 1603.09382).

    What survives is scaled by 1 / (1 - rate), so that the expectation stays; the identity in eval.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class LayerScale(nn.Module):
    """Multiplies each channel by a learned factor that starts at `init_value`."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each one: (B, in_chans, S, S) -> (B, N, C)."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.grid_size = img_size // patch_size
        self.num_patches = self.grid_size**2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"the model takes images of {self.img_size} x {self.img_size} pixels, "
                f"not {x.shape[-2]} x {x.shape[-1]}"
            )
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, C) -> (B, N, C), or of the first `out` tokens alone.

    kan: what `kan_layer` needs where both of its maps have splines.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        kan: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.attn_drop = attn_drop
        linear = nn.Linear if kan is None else partial(kan_layer, base=nn.Identity, **kan)
        self.qkv = linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, N, 3, H, D) -> 3 of (B, H, N, D)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q[:, :, :out], k, v, dropout_p=dropout)
        x = x.transpose(1, 2).reshape(B, -1, C)  # (B, H, N, D) -> (B, N, H * D)
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """One pre-norm transformer layer.

    forward: tokens (B, N, C) -> (B, N, C); with `out`, only the first `out` of them come out. All
    are attended to.
    """

    def __init__(
        self, dim, num_heads, mlp, qkv_bias, drop, attn_drop, drop_path, init_values, eps, kan=None
    ) -> None:
        super().__init__()

        def scale():
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, drop, kan)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, out: int | None = None) -> Tensor:
        x = x[:, :out] + self.drop_path(self.ls1(self.attn(self.norm1(x), out)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a Vision Transformer: everything that `VisionTransformer` needs.

    mlp_hidden: the width inside each block's MLP: None for 4 * embed_dim, one number, or one per
        block.
    mlp: "mlp", "kan" (KANLinear) or "gkan" (GroupKANLinear) in the blocks that `kan_blocks` names:
        "all", "last:N", or their numbers as a list or as in "0,3,5".
    kan_hidden: "full" for mlp_hidden, "match" for the width at which a KAN block has as many
        parameters as the MLP it replaces, or a number.
    kan_rank: None or "full" for a spline coefficient per edge and basis, else their rank.
    kan_range: "auto" (set from images by calibration before training) or (low, high).
    kan_groups: how many splines each layer of "gkan" has, or "feature": one for each input.
    kan_at: the inputs that have splines: those of fc1 and fc2 ("mlp"), of fc2 alone ("hidden"), or
        of qkv and proj too ("all").
    adapt, lora_rank, lora_at: adapters beside the blocks' own numbers, see `vit.adapters`.
    reg_tokens: register tokens; with `no_embed_class` positions are added to patches alone.
    representation_size: width of the pre-logits layer, None for none.
    dist_head: whether the distillation token, where there is one, has a head of its own.
    norm_eps: what every LayerNorm adds to the variance.
    answers: what the logits mean: "softmax" for one class of all, "sigmoid" for each class a yes or
        no of its own. The model computes the same; who turns logits into probabilities asks.
    """

    img_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_hidden: int | tuple[int, ...] | None = None
    qkv_bias: bool = True
    representation_size: int | None = None
    distilled: bool = False
    reg_tokens: int = 0
    no_embed_class: bool = False
    init_values: float | None = None
    dist_head: bool = True
    norm_eps: float = 1e-6
    answers: str = "softmax"
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    mlp: str = "mlp"
    kan_blocks: str | tuple[int, ...] = "all"
    kan_hidden: str | int = "full"
    kan_rank: int | str | None = None
    kan_grid: int = 5
    kan_order: int = 3
    kan_range: str | tuple[float, float] = "auto"
    kan_groups: int | str = 8
    kan_at: str = "mlp"
    adapt: str = "none"
    lora_rank: int = 4
    lora_at: str = "mlp"

    def __post_init__(self) -> None:
        for field, (low, high) in SIZES.items():
            self._require_whole(field, low, high)
        if self.representation_size is not None:
            self._require_whole("representation_size", 0, 65536)
        if self.kan_rank not in (None, "full"):
            self._require_whole("kan_rank", 1, 65536)
        if self.kan_groups != "feature":
            self._require_whole("kan_groups", 1, 65536, "feature or ")
        if self.kan_hidden not in ("full", "match"):
            self._require_whole("kan_hidden", 1, 2**20, "full, match or ")
        for field in ("qkv_bias", "distilled", "no_embed_class", "dist_head"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} must be true or false, got {getattr(self, field)!r:.80}")
        if self.img_size % self.patch_size:
            near = max(1, round(self.img_size / self.patch_size)) * self.patch_size
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of the patch size {self.patch_size}; "
                f"{near} is the nearest that is"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        for field in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            if not (is_number(getattr(self, field)) and 0 <= getattr(self, field) < 1):
                raise ValueError(f"{field} must lie in [0, 1), got {getattr(self, field)!r:.80}")
        if self.init_values is not None and not is_number(self.init_values):
            raise ValueError(f"init_values must be None or a number, got {self.init_values!r:.80}")
        if not is_number(self.norm_eps) or not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps must lie between 0 and 1, got {self.norm_eps!r:.80}")
        if self.answers not in ANSWERS:
            raise ValueError(
                f"answers must be one of {', '.join(ANSWERS)}, got {self.answers!r:.80}"
            )
        if self.mlp not in MLP_KINDS:
            raise ValueError(f"mlp must be one of {', '.join(MLP_KINDS)}, got {self.mlp!r}")
        ends = self.kan_range
        if ends != "auto" and not (
            isinstance(ends, tuple) and len(ends) == 2 and all(map(is_number, ends))
        ):
            raise ValueError(f"kan_range must be auto or two numbers, got {ends!r:.80}")
        if self.kan_at not in KAN_PLACES:
            raise ValueError(
                f"kan_at must be one of {', '.join(KAN_PLACES)}, got {self.kan_at!r:.80}"
            )
        parse_blocks(self.kan_blocks, self.depth)
        check_adapters(self.adapt, self.lora_rank, self.lora_at)
        if self.mlp == "gkan" and self.kan_groups != "feature":
            self._require_divisor()

    def _require_divisor(self) -> None:
        """Raises ValueError where the inputs of some layer do not fall into `kan_groups` groups."""
        if self.kan_hidden == "match":
            hidden = []  # which is made a multiple
        elif self.kan_hidden == "full":
            hidden = [self.hidden[n] for n in self.kan_numbers]
        else:
            hidden = [self.kan_hidden]
        widths = sorted({*hidden, *([] if self.kan_at == "hidden" else [self.embed_dim])})
        if any(width % self.kan_groups for width in widths):
            common = math.gcd(*widths)
            near = [n for n in range(1, common + 1) if common % n == 0]
            near = sorted(sorted(near, key=lambda n: abs(n - self.kan_groups))[:3])
            raise ValueError(
                f"kan_groups {self.kan_groups} does not divide the "
                f"{' and '.join(map(str, widths))} inputs of the layers: feature, "
                f"{', '.join(map(str, near))} do"
            )

    def _require_whole(self, field: str, low: int, high: int, words: str = "") -> None:
        value = getattr(self, field)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(
                f"{field} must be {words}at least {low} and at most {high}, a whole number; got "
                f"{value!r:.80}"
            )

    @property
    def hidden(self) -> tuple[int, ...]:
        """The width inside the MLP of each block, before `kan_hidden` has its say."""
        hidden = 4 * self.embed_dim if self.mlp_hidden is None else self.mlp_hidden
        widths = hidden if isinstance(hidden, tuple) else (hidden,) * self.depth
        if len(widths) != self.depth or not all(type(w) is int and 0 < w <= 2**20 for w in widths):
            raise ValueError(
                f"mlp_hidden must be one positive width or {self.depth} of them, got {hidden!r:.80}"
            )
        return widths

    @property
    def kan_numbers(self) -> tuple[int, ...]:
        """The numbers of the blocks that are KAN blocks."""
        return () if self.mlp == "mlp" else parse_blocks(self.kan_blocks, self.depth)

    @property
    def kan_options(self) -> dict:
        """What `kan_layer` needs beyond the two widths and the base function."""
        return {
            "kind": self.mlp,
            "rank": None if self.kan_rank == "full" else self.kan_rank,
            "groups": self.kan_groups,
            "grid": self.kan_grid,
            "order": self.kan_order,
            # LayerNorm's output lies within 3 standard deviations; calibration replaces this.
            "grid_range": (-3.0, 3.0) if self.kan_range == "auto" else tuple(self.kan_range),
        }


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
        dim = cfg.embed_dim
        self.patch_embed = PatchEmbed(cfg.img_size, cfg.patch_size, cfg.in_chans, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.distilled else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, cfg.reg_tokens, dim)) if cfg.reg_tokens else None
        )
        self.num_prefix_tokens = 1 + cfg.distilled + cfg.reg_tokens
        positions = self.patch_embed.num_patches
        if not cfg.no_embed_class:
            positions += self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.pos_drop = nn.Dropout(cfg.drop_rate)
        # Drop path grows linearly with depth, as in the paper.
        rates = [cfg.drop_path_rate * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]
        self.blocks = nn.ModuleList(
            Block(
                dim,
                cfg.num_heads,
                self._make_mlp(i),
                cfg.qkv_bias,
                cfg.drop_rate,
                cfg.attn_drop_rate,
                rates[i],
                cfg.init_values,
                cfg.norm_eps,
                cfg.kan_options if cfg.kan_at == "all" and i in cfg.kan_numbers else None,
            )
            for i in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=cfg.norm_eps)
        width = dim
        if cfg.representation_size and not cfg.distilled:
            width = cfg.representation_size
            self.pre_logits = nn.Sequential(
                OrderedDict([("fc", nn.Linear(dim, width)), ("act", nn.Tanh())])
            )
        else:
            self.pre_logits = nn.Identity()
        self.head = nn.Linear(width, cfg.num_classes) if cfg.num_classes else nn.Identity()
        two_heads = cfg.distilled and cfg.dist_head and cfg.num_classes
        self.head_dist = nn.Linear(dim, cfg.num_classes) if two_heads else None
        self.init_weights()
        add_adapters(self.blocks, cfg.adapt, cfg.lora_rank, cfg.lora_at)

    def _make_mlp(self, block: int) -> nn.Module:
        cfg, hidden = self.sizes, self.sizes.hidden[block]
        if block not in cfg.kan_numbers:
            return Mlp(cfg.embed_dim, hidden, cfg.drop_rate)
        if cfg.kan_hidden == "match":
            hidden = matching_hidden(cfg.embed_dim, hidden, at=cfg.kan_at, **cfg.kan_options)
        elif cfg.kan_hidden != "full":
            hidden = int(cfg.kan_hidden)
        return KanMlp(cfg.embed_dim, hidden, cfg.drop_rate, at=cfg.kan_at, **cfg.kan_options)

    def init_weights(self) -> None:
        """Truncated normal (0.02) weights, zero biases and a zero head (ViT paper, appendix B)."""
        if self.cls_token.is_meta:  # torch would import its compiler (1.5 s) to draw nothing
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
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
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
        prefix = torch.cat(tokens, dim=1).expand(x.shape[0], -1, -1)
        if self.sizes.no_embed_class:
            x = torch.cat([prefix, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([prefix, x], dim=1) + self.pos_embed
        return self.pos_drop(x)

    def forward_blocks(
        self, x: Tensor, first: int = 0, last: int | None = None, out: int | None = None
    ) -> Tensor:
        """Tokens (B, N, C) through the blocks `first` to `last` (exclusive) -> (B, N, C).

        out: how many tokens the model's last block gives (None: all).
        """
        for block in self.blocks[first:last]:
            wanted = out if block is self.blocks[-1] else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, wanted, use_reentrant=False)
            else:
                x = block(x, wanted)
        return x

    def forward_rest(self, x: Tensor, first: int = 0) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, N, C) through the blocks from `first` on, norm and head -> logits.

        In training the last block computes what the head reads alone, which saves three quarters of
        that block and changes no gradient. In evaluation hooks find every token.
        """
        out = 1 + self.sizes.distilled if self.training else None
        return self.forward_head(self.norm(self.forward_blocks(x, first, out=out)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, S, S) -> normalised tokens (B, N, C), class token first."""
        return self.norm(self.forward_blocks(self.embed(x)))

    def forward_head(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalised tokens (B, N, C) -> logits (B, num_classes)."""
        logits = self.head(self.pre_logits(x[:, 0]))
        if self.head_dist is None:
            return logits
        logits_dist = self.head_dist(x[:, 1])
        if self.training and self.distill_outputs:
            return logits, logits_dist
        return (logits + logits_dist) / 2

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


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float."""
    return type(value) in (int, float) and abs(value) < float("inf")


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
