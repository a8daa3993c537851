"""The sizes of a Vision Transformer and all in which families of them differ: `ViTConfig`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vit.adapters import check_adapters
from vit.mlps import ACTIVATIONS, SWIGLU, parse_blocks
from vit.parts import NORMS
from vit.pooling import POOLS
from vit.positions import INDEXINGS, RELATIVE, ROPES

# What may stand in a block, and how words call the KAN among it.
MLP_KINDS = {"mlp": "", "kan": "KAN", "gkan": "grouped KAN"}
# Whose inputs in such a block have splines: fc1 and fc2, fc2 alone, or qkv and proj as well.
KAN_PLACES = ("mlp", "hidden", "all")
# What logits may mean: see `ViTConfig.answers`.
ANSWERS = ("softmax", "sigmoid")
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
SIZES_OR_NONE = {
    "representation_size": (0, 65536),
    "head_dim": (1, 65536),
    "pool_heads": (1, 65536),
    "pool_hidden": (1, 2**20),
    "rope_ref_grid": (1, 4096),
}
SWITCHES = (
    "qkv_bias", "distilled", "no_embed_class", "dist_head", "class_token", "pos_embed",
    "patch_norm", "norm_pre", "final_norm", "fc_norm", "pool_prefix", "mlp_norm", "attn_norm",
    "qk_norm", "mlp_scale", "rope_rotate_half",
)  # fmt: skip
CHOICES = {
    "answers": ANSWERS,
    "mlp": MLP_KINDS,
    "kan_at": KAN_PLACES,
    "norm": NORMS,
    "global_pool": POOLS,
    "act": ACTIVATIONS,
    "swiglu": SWIGLU,
    "rel_pos": RELATIVE,
    "rope": ROPES,
    "rope_grid_indexing": INDEXINGS,
}
# Fields that belong to a file of weights and its family: no name of a variant tells them.
OF_FAMILY = (
    "dist_head", "norm", "norm_eps", "class_token", "pos_embed", "patch_norm", "norm_pre",
    "final_norm", "fc_norm", "global_pool", "pool_prefix", "pool_heads", "pool_hidden", "act",
    "swiglu", "mlp_norm", "attn_norm", "qk_norm", "head_dim", "mlp_scale", "rel_pos", "rope",
    "rope_temperature", "rope_rotate_half", "rope_grid_indexing", "rope_grid_offset",
    "rope_ref_grid",
)  # fmt: skip


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float."""
    return type(value) in (int, float) and abs(value) < float("inf")


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
    norm, norm_eps: the kind of every norm ("layer" or "rms") and what it adds to the variance.
    class_token, pos_embed: whether there is a class token, and learned absolute positions.
    patch_norm, norm_pre, final_norm, fc_norm: norms of the patches, before the blocks, after them,
        and of what was pooled.
    global_pool: what the head reads: the class token ("token"), the mean of the patches ("avg"), a
        latent query's attention ("map"), the class token beside the mean ("token+avg").
    pool_prefix: whether "avg" and "map" read the special tokens too.
    pool_heads, pool_hidden: sizes of "map", None for num_heads and 4 * embed_dim.
    act: the activation of MLPs: see `vit.mlps.ACTIVATIONS`.
    swiglu: whether MLPs are gated, with the gate's weights "packed" in fc1 or "unpacked".
    mlp_norm, attn_norm, qk_norm: norms of what fc2 reads, of what proj reads, and of each head's
        queries and keys.
    head_dim: width of a head, None for embed_dim / num_heads.
    init_values: what layer scale starts at, None for none; mlp_scale: whether MLPs have it too.
    rel_pos: relative position biases, of each "block", "shared" by all, or "both".
    rope, rope_...: rotary positions, see `vit.positions.Rotary`.
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
    norm: str = "layer"
    norm_eps: float = 1e-6
    class_token: bool = True
    pos_embed: bool = True
    patch_norm: bool = False
    norm_pre: bool = False
    final_norm: bool = True
    fc_norm: bool = False
    global_pool: str = "token"
    pool_prefix: bool = False
    pool_heads: int | None = None
    pool_hidden: int | None = None
    act: str = "gelu"
    swiglu: str = "none"
    mlp_norm: bool = False
    attn_norm: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    mlp_scale: bool = True
    rel_pos: str = "none"
    rope: str = "none"
    rope_temperature: float = 10000.0
    rope_rotate_half: bool = False
    rope_grid_indexing: str = "ij"
    rope_grid_offset: float = 0.0
    rope_ref_grid: int | None = None
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
        for field, (low, high) in SIZES_OR_NONE.items():
            if getattr(self, field) is not None:
                self._require_whole(field, low, high)
        for field in SWITCHES:
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} must be true or false, got {getattr(self, field)!r:.80}")
        for field, known in CHOICES.items():
            self._require_choice(field, known)
        if self.img_size % self.patch_size:
            near = max(1, round(self.img_size / self.patch_size)) * self.patch_size
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of the patch size {self.patch_size}; "
                f"{near} is the nearest that is"
            )
        if self.head_dim is None and self.embed_dim % self.num_heads:
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
        self._check_tokens()
        self._check_positions()
        self._check_kan()

    def _check_tokens(self) -> None:
        """Raises ValueError where the head would read what is not there."""
        if not self.class_token and (self.distilled or self.global_pool in ("token", "token+avg")):
            asks = "distilled" if self.distilled else f"global_pool {self.global_pool}"
            raise ValueError(f"{asks} needs a class token: class_token is false")
        if self.distilled and self.global_pool != "token":
            raise ValueError(f"distilled needs global_pool token, got {self.global_pool}")
        if self.global_pool == "map" and self.embed_dim % (self.pool_heads or self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} is not a multiple of pool_heads "
                f"{self.pool_heads or self.num_heads}"
            )

    def _check_positions(self) -> None:
        """Raises ValueError for positions that the model's tokens and heads cannot have."""
        for field in ("rope_temperature", "rope_grid_offset"):
            if not is_number(getattr(self, field)):
                raise ValueError(f"{field} must be a number, got {getattr(self, field)!r:.80}")
        if self.rope_temperature <= 0:
            raise ValueError(f"rope_temperature must be above 0, got {self.rope_temperature:g}")
        if self.rope != "none" and self.head_width % 4:
            raise ValueError(f"rope needs heads of a multiple of 4, not {self.head_width}, wide")
        if self.rel_pos != "none" and self.prefix != 1:
            raise ValueError("rel_pos needs a class token and no other special token")

    def _check_kan(self) -> None:
        """Raises ValueError for fields of the KAN blocks and adapters that mean nothing."""
        if self.kan_rank not in (None, "full"):
            self._require_whole("kan_rank", 1, 65536)
        if self.kan_groups != "feature":
            self._require_whole("kan_groups", 1, 65536, "feature or ")
        if self.kan_hidden not in ("full", "match"):
            self._require_whole("kan_hidden", 1, 2**20, "full, match or ")
        ends = self.kan_range
        if ends != "auto" and not (
            isinstance(ends, tuple) and len(ends) == 2 and all(map(is_number, ends))
        ):
            raise ValueError(f"kan_range must be auto or two numbers, got {ends!r:.80}")
        parse_blocks(self.kan_blocks, self.depth)
        check_adapters(self.adapt, self.lora_rank, self.lora_at)
        if self.mlp == "gkan" and self.kan_groups != "feature":
            self._require_divisor()

    def _require_choice(self, field: str, known: Iterable[str]) -> None:
        value = getattr(self, field)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r:.80}")

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

    @property
    def grid(self) -> int:
        """How many patches stand along a side."""
        return self.img_size // self.patch_size

    @property
    def head_width(self) -> int:
        """The width of a head's queries, keys and values."""
        return self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def prefix(self) -> int:
        """How many special tokens stand before the patches."""
        return self.class_token + self.distilled + self.reg_tokens

    @property
    def positions(self) -> int:
        """How many learned absolute positions belong to special tokens."""
        return 0 if self.no_embed_class else self.prefix
