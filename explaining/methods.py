"""All methods that say where a model looked, by name, and which of them serves.

    relevance = METHODS[DEFAULT](model, images, targets)    # (B, 3, S, S) and (B,) -> (B, P)

benchmarks/explain_faithfulness.py compares them by intervention.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from explaining.attention_maps import gradient_attention, integrated_gradients, rollout
from explaining.relevance import class_margins, input_relevance, layer_relevance, legrad
from explaining.rules import ATTN_LRP, ATTN_LRP_GAMMA, LIBRA, Rules, following, uncovered

DEFAULT = "LibraGrad, all layers, margin"  # the most faithful by that benchmark
# What serves where the rules of another do not cover a part of a model: it needs gradients alone.
NEXT_BEST = "gradient-weighted attention"


def balanced_attention(
    model: nn.Module, images: Tensor, targets: Tensor, *, rules: Rules, **options
) -> Tensor:
    """Attention weighted by its gradient by the rules, (B, P), not negative."""
    with following(model, rules):
        return gradient_attention(model, images, targets, **options)


def occlusion(model: nn.Module, images: Tensor, targets: Tensor, *, window: int = 3) -> Tensor:
    """What the class's margin loses when squares of patches show the mean colour, (B, P).

    Each patch gets the mean of the squares that it lies in: as many passes as there are patches.
    """
    side, size = model.patch_embed.grid_size, model.patch_embed.patch_size
    near = torch.arange(side, device=images.device)
    apart = ((near[:, None] - near[None]).abs() <= window // 2).to(images)  # (side, side)
    squares = torch.einsum("ab,cd->acbd", apart, apart).flatten(0, 1)
    edges = (0, images.shape[-1] - side * size) * 2
    maps = []
    for image, target in zip(images, targets, strict=True):
        falls = []
        for some in squares.split(32):
            seen = 1 - some.repeat_interleave(size, 1).repeat_interleave(size, 2)
            seen = nn.functional.pad(seen, edges, value=1.0)[:, None]
            falls.append(class_margins(model, image * seen, target.expand(len(some))))
        whole = class_margins(model, image[None], target[None])
        maps.append(whole - torch.cat(falls))
    falls = torch.stack(maps)  # (B, P), of each square by its middle
    return falls @ squares.flatten(1) / squares.sum((1, 2))


METHODS: dict[str, Callable[..., Tensor]] = {
    "roll-out": rollout,
    "gradient-weighted attention": gradient_attention,
    "integrated gradients": integrated_gradients,
    "AttnLRP": partial(input_relevance, rules=ATTN_LRP),
    "AttnLRP, gamma": partial(input_relevance, rules=ATTN_LRP_GAMMA),
    "LibraGrad": partial(input_relevance, rules=LIBRA),
    "LibraGrad, all layers": partial(layer_relevance, rules=LIBRA),
    "LibraGrad, late layers": partial(layer_relevance, rules=LIBRA, skip=0.5),
    "LibraGrad, attention": partial(balanced_attention, rules=LIBRA),
    "AttnLRP, gamma, all layers": partial(layer_relevance, rules=ATTN_LRP_GAMMA),
    "AttnLRP, all layers, margin": partial(
        layer_relevance, rules=ATTN_LRP, score=class_margins
    ),
    "LibraGrad, late layers, margin": partial(
        layer_relevance, rules=LIBRA, score=class_margins, skip=0.5
    ),
    "LibraGrad, all layers, margin": partial(layer_relevance, rules=LIBRA, score=class_margins),
    "LibraGrad, attention, margin": partial(
        balanced_attention, rules=LIBRA, score=class_margins
    ),
    "AttnLRP, gamma, all layers, margin": partial(
        layer_relevance, rules=ATTN_LRP_GAMMA, score=class_margins
    ),
    "LeGrad": legrad,
    "occlusion": torch.no_grad()(occlusion),
}  # fmt: skip


def serving(model: nn.Module, wanted: str = DEFAULT) -> str:
    """Returns the name of the method that explains `model`: the wanted one where it can."""
    by_rules = isinstance(METHODS[wanted], partial) and "rules" in METHODS[wanted].keywords
    return NEXT_BEST if by_rules and uncovered(model) else wanted
