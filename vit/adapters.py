"""Small sets of numbers that adapt a built Vision Transformer while its own stay as they are.

    add_adapters(model.blocks, "lora", rank=4, at="mlp")
    state = merged(model.state_dict())      # the same model without adapters

"lora": up down of rank R beside a map's weight (LoRA, arXiv 2106.09685). "affine": a scale and a
shift of each input of fc1 and fc2 (as SSF, arXiv 2210.08823; behind the GELU that comes before
fc2). Both start as the identity and leave the names of the model's own tensors as they are. To a
layer with splines they do what they do to a linear map with its base weight.

Letters in shape comments: I inputs, O outputs, R rank.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear
from splines.interface import Base
from vit.mlps import MAPS

ADAPTERS = ("none", "affine", "lora")
# Whose inputs: of the MLP's maps, of attention's two, of all.
MLP_MAPS = tuple(f"mlp.{name}" for name in MAPS)
ATTENTION_MAPS = ("attn.qkv", "attn.proj")
LORA_PLACES = {
    "mlp": MLP_MAPS,
    "attention": ATTENTION_MAPS,
    "all": (*ATTENTION_MAPS, *MLP_MAPS),
}
# The product of the factors counts ALPHA / R times, as in the paper: with AdamW the best rate then
# is the same at every rank. At rank 4 it counts as it is.
ALPHA = 4.0
# Parameters of adapters, as the last part of a name in the state dict.
DOWN, UP, SCALE, SHIFT = "lora_down", "lora_up", "affine_scale", "affine_shift"


def is_adapter(name: str) -> bool:
    """Whether a tensor of the state dict belongs to an adapter."""
    return name.rsplit(".", 1)[-1] in (DOWN, UP, SCALE, SHIFT)


class Lora:
    """What a layer with `lora_down` (R, I) and `lora_up` (O, R) adds to one of its kind."""

    def add_parameters(self, weight: Tensor, rank: int) -> None:
        """Draws `lora_down` as torch draws a linear map; `lora_up` starts at zero."""
        outputs, inputs = weight.shape
        down = weight.new_empty(rank, inputs)
        if not down.is_meta:  # torch would import its compiler to draw nothing
            nn.init.uniform_(down, -(inputs**-0.5), inputs**-0.5)
        self.lora_down = nn.Parameter(down)
        self.lora_up = nn.Parameter(weight.new_zeros(outputs, rank))

    @property
    def strength(self) -> float:
        return ALPHA / len(self.lora_down)


class LoraLinear(Lora, nn.Linear):
    """A linear map whose weight (O, I) counts as weight + ALPHA / R up down."""

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_down)  # (..., I) -> (..., R)
        return super().forward(x) + self.strength * F.linear(low, self.lora_up)


class LoraSplines(Lora):
    """The same of a layer's base weight, which here is put together in every step."""

    def base(self, x: Tensor) -> Base:
        base = super().base(x)
        return base._replace(weight=base.weight + self.strength * (self.lora_up @ self.lora_down))


class Affine:
    """What a layer with `affine_scale` and `affine_shift` (I,) adds to one of its kind."""

    def add_parameters(self, weight: Tensor, rank: int) -> None:
        self.affine_scale = nn.Parameter(weight.new_ones(weight.shape[1]))
        self.affine_shift = nn.Parameter(weight.new_zeros(weight.shape[1]))


class AffineLinear(Affine, nn.Linear):
    """A linear map of scale x + shift."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.addcmul(self.affine_shift, x, self.affine_scale))


class AffineSplines(Affine):
    """The same of what a layer's base weight is applied to."""

    def base(self, x: Tensor) -> Base:
        base = super().base(x)
        bias = base.bias + F.linear(self.affine_shift, self.base_weight)
        return base._replace(weight=base.weight * self.affine_scale, bias=bias)


class LoraKANLinear(LoraSplines, KANLinear):
    """A KANLinear with LoRA."""


class LoraGroupKANLinear(LoraSplines, GroupKANLinear):
    """A GroupKANLinear with LoRA."""


class AffineKANLinear(AffineSplines, KANLinear):
    """A KANLinear with scale and shift."""


class AffineGroupKANLinear(AffineSplines, GroupKANLinear):
    """A GroupKANLinear with scale and shift."""


ADAPTED = {
    ("lora", nn.Linear): LoraLinear,
    ("lora", KANLinear): LoraKANLinear,
    ("lora", GroupKANLinear): LoraGroupKANLinear,
    ("affine", nn.Linear): AffineLinear,
    ("affine", KANLinear): AffineKANLinear,
    ("affine", GroupKANLinear): AffineGroupKANLinear,
}


def check_adapters(kind: str, rank: int, at: str) -> None:
    """Raises ValueError for what is no adapter: `adapt`, `lora_rank` and `lora_at` of a config."""
    for field, value, known in (("adapt", kind, ADAPTERS), ("lora_at", at, tuple(LORA_PLACES))):
        if value not in known:
            raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r:.80}")
    if type(rank) is not int or not 1 <= rank <= 4096:
        raise ValueError(
            f"lora_rank must be at least 1 and at most 4096, a whole number; got {rank!r:.80}"
        )


def add_adapters(blocks: Iterable[nn.Module], kind: str, rank: int, at: str) -> None:
    """Puts adapters of a kind onto the maps of blocks, which compute what they did before.

    The layers stay the same objects, with the same parameters under the same names, and get a
    class that uses more of them.
    """
    if kind == "none":
        return
    places = LORA_PLACES[at if kind == "lora" else "mlp"]
    modules = (pair for block in blocks for pair in block.named_modules())
    for layer in [module for name, module in modules if name in places]:
        layer.__class__ = ADAPTED[kind, type(layer)]
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.base_weight
        layer.add_parameters(weight.detach(), rank)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of the same model without adapters: their part is in the weights."""
    plain = {name: value for name, value in state.items() if not is_adapter(name)}
    for name, value in state.items():
        layer, _, last = name.rpartition(".")
        weight = next((w for w in (f"{layer}.weight", f"{layer}.base_weight") if w in plain), "")
        if last == UP:
            change = ALPHA / value.shape[1] * (value.double() @ state[f"{layer}.{DOWN}"].double())
            plain[weight] = (plain[weight].double() + change).to(plain[weight])
        elif last == SCALE:
            shift = plain[weight].double() @ state[f"{layer}.{SHIFT}"].double()
            bias = plain[f"{layer}.bias"]
            plain[f"{layer}.bias"] = (bias.double() + shift).to(bias)
            plain[weight] = (plain[weight].double() * value.double()).to(plain[weight])
    return plain
