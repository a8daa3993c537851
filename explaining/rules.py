"""Rules that share out a logit backwards, in the place of the gradient: AttnLRP, LibraGrad.

    with following(model, LIBRA):
        logits = model(images)              # what it always computes
    torch.autograd.grad(...)                # "gradients" by the rules: times the input, relevance

A gradient says what a small change would do; of a softmax, a norm or a GELU that is not what the
input did. AttnLRP (arXiv 2402.05602) and LibraGrad (arXiv 2411.16760) replace the derivatives so
that gradient times input adds up, layer by layer: relevance is neither made nor lost but for what
belongs to biases. Every rule here is a slope, so that autograd does the propagation:

- A linear map keeps its gradient (the epsilon rule); with `gamma` its contributions that go the
  output's way count (1 + gamma) times (the gamma rule, arXiv 1911.09017), which calms noise.
- A norm divides by a constant; an activation is multiplication by the constant (f(x) - f(0)) / x.
- A product of two parts shares its relevance evenly: half of the gradient each (SwiGLU).
- Attention: "values" takes the weights as constants (LibraGrad, and CP-LRP of arXiv 2202.07304);
  "halves" gives half to the values and half through the softmax (AttnLRP).
- An edge of a KAN layer is base plus spline, a function of one input: its rule is the secant
  (phi(x) - phi(0)) / x, so that an input's relevance is what its edges add beyond what they give
  for nothing; phi(0) counts as a bias, as that of a linear map does. Dividing phi(x) itself by x
  would have no bound near zero.

All are put in by hooks, for the time of a pass; the model is not changed.

Letters in shape comments: B batch, N tokens or rows, C channels, H heads, D head size, I inputs,
O outputs, K bases.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kan import GroupKANLinear, KANLinear
from splines.bases import dense_bases
from splines.layer import SplineLayer
from vit.adapters import AffineLinear, LoraLinear
from vit.attention import Attention
from vit.mlps import KanMlp, Mlp, QuickGELU, SwiGlu
from vit.parts import DropPath, LayerScale, PatchEmbed
from vit.pooling import AttentionPool
from vit.positions import RelativeBias, Rotary
from vit_model import Block, VisionTransformer

NORMS = (nn.LayerNorm, nn.RMSNorm)
ACTIVATIONS = (nn.GELU, QuickGELU, nn.SiLU, nn.ReLU, nn.Tanh)
# What needs no rule of its own: linear in its input, or made of parts that are.
PLAIN = (
    nn.Linear, nn.Conv2d, nn.Identity, nn.Dropout, nn.ModuleList, nn.Sequential, LayerScale,
    DropPath, PatchEmbed, Mlp, KanMlp, Rotary, RelativeBias, Block, VisionTransformer,
)  # fmt: skip
COMPOSED = (Attention, SwiGlu, AttentionPool)


@dataclass(frozen=True)
class Rules:
    """Which rules a pass follows: how attention shares, gamma of linear maps and of the patches."""

    attention: str = "values"
    gamma: float = 0.0
    patch_gamma: float = 0.0


LIBRA = Rules()
# AttnLRP as its paper gives it for text; for ViTs it takes gamma, with attention's weights constant
# ("easier to tune", say its authors, whose values these are).
ATTN_LRP = Rules("halves")
ATTN_LRP_GAMMA = Rules("values", gamma=0.05, patch_gamma=0.25)


def uncovered(model: nn.Module) -> list[str]:
    """Returns the names of the modules in `model` for which there is no rule."""
    known = (*NORMS, *ACTIVATIONS, *PLAIN, *COMPOSED, SplineLayer)
    inside = {id(m.base_activation) for m in model.modules() if isinstance(m, SplineLayer)}
    return [
        name
        for name, module in model.named_modules()
        if not isinstance(module, known) and id(module) not in inside
    ]


@contextmanager
def following(model: nn.Module, rules: Rules) -> Iterator[None]:
    """Within it, the gradients of passes through `model` are those of the rules."""
    handles: list = []
    inside = {id(m.base_activation) for m in model.modules() if isinstance(m, SplineLayer)}
    try:
        for module in model.modules():  # first what acts on one module alone
            if (rule := _simple_rule(module, rules)) and id(module) not in inside:
                handles.append(module.register_forward_hook(rule))
        for module in model.modules():
            if isinstance(module, Attention):
                handles += _watch_attention(module, rules)
            elif isinstance(module, AttentionPool):
                handles += _watch_pool(module, rules)
            elif isinstance(module, SwiGlu):
                handles += _watch_gate(module)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _simple_rule(module: nn.Module, rules: Rules) -> Callable | None:
    """Returns a forward hook that gives the output again, with the slope of the rule."""
    if isinstance(module, NORMS):
        return _norm
    if isinstance(module, ACTIVATIONS):
        return lambda m, args, out: secant_of(m.forward, args[0])
    if isinstance(module, SplineLayer):
        return lambda m, args, out: _Splines.apply(args[0], m, out.detach(), rules.gamma)
    if isinstance(module, nn.Linear) and rules.gamma:
        return partial(_gamma_linear, gamma=rules.gamma)
    if isinstance(module, nn.Conv2d) and rules.patch_gamma:
        return partial(_gamma_patches, gamma=rules.patch_gamma)
    return None


# --- norms and activations ----------------------------------------------------------------------


def _norm(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    """A norm whose divisor is a constant: linear in its input."""
    x = args[0]
    centred, eps = x, module.eps
    if isinstance(module, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
    elif eps is None:
        eps = torch.finfo(x.dtype).eps
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt().detach()
    y = centred * scale if module.weight is None else centred * scale * module.weight
    bias = getattr(module, "bias", None)
    return y if bias is None else y + bias


def away_from_zero(x: Tensor) -> Tensor:
    """`x`, where it is too small to divide by as small as it may be: secants become tangents."""
    least = torch.finfo(x.dtype).eps ** 0.5
    return torch.where(x.abs() < least, torch.full_like(x, least).copysign(x), x)


@torch.no_grad()
def secant(function: Callable, x: Tensor) -> Tensor:
    """(f(x) - f(0)) / x of an elementwise function, of x's shape."""
    at = away_from_zero(x)
    return (function(at) - function(torch.zeros_like(at))) / at


def secant_of(function: Callable, x: Tensor) -> Tensor:
    """The function as multiplication by its secant, above its value at zero."""
    with torch.no_grad():
        zero = function(torch.zeros_like(x))
    return x * secant(function, x) + zero


# --- linear maps with gamma ---------------------------------------------------------------------


def shares(x: Tensor, weight: Tensor, y: Tensor, gradient: Tensor, gamma: float):
    """What the gamma rule makes of outputs' gradients (N, O): a factor on each, and what it adds.

    The edges from x (N, I) with weight (O, I) that push an output y (N, O) the way it went count
    1 + gamma times, and all are divided by as much. Returns (gradient scaled, the further gradient
    of x): relevance x g adds up to y times the old gradient, but for the bias. See eq. 8 of the
    overview arXiv 1911.09017, here for inputs and outputs of either sign.
    """
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    high, low = x.clamp_min(0), x.clamp_max(0)
    pushing = torch.where(y > 0, high @ up.t() + low @ down.t(), high @ down.t() + low @ up.t())
    whole = y + gamma * pushing
    scaled = torch.where(whole == 0, 0, gradient * y / torch.where(whole == 0, 1, whole))
    rising, falling = scaled * (y > 0), scaled * (y < 0)
    added = torch.where(x > 0, rising @ up + falling @ down, rising @ down + falling @ up)
    return scaled, gamma * added


class _Gamma(torch.autograd.Function):
    """The output y (N, O) of a linear map of x (N, I), with the gamma rule for its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, y: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(x, weight, y)
        ctx.gamma = gamma
        return y.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, y = ctx.saved_tensors
        scaled, added = shares(x, weight, y, gradient, ctx.gamma)
        return scaled @ weight + added, None, None, None


def _gamma_linear(module: nn.Linear, args: tuple, out: Tensor, *, gamma: float) -> Tensor:
    weight = module.weight
    if isinstance(module, LoraLinear):
        weight = weight + module.strength * (module.lora_up @ module.lora_down)
    elif isinstance(module, AffineLinear):
        weight = weight * module.affine_scale
    rows = args[0].flatten(0, -2)
    return _Gamma.apply(rows, weight.detach(), out.detach().flatten(0, -2), gamma).view_as(out)


def _gamma_patches(module: nn.Conv2d, args: tuple, out: Tensor, *, gamma: float) -> Tensor:
    """The map of patches, whose windows do not overlap, as a linear map of each patch."""
    patches = F.unfold(args[0], module.kernel_size, stride=module.stride)  # (B, I, P)
    rows = patches.transpose(1, 2).flatten(0, 1)
    y = out.detach().flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, P, C)
    shared = _Gamma.apply(rows, module.weight.detach().flatten(1), y.flatten(0, 1), gamma)
    return shared.view_as(y).transpose(1, 2).reshape(out.shape)


# --- KAN layers ---------------------------------------------------------------------------------


class _Splines(torch.autograd.Function):
    """The output of a KAN layer, (..., I) -> (..., O), with its edges' secants for a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: SplineLayer, y: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.layer, ctx.gamma = layer, gamma
        return y.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x, y), layer = ctx.saved_tensors, ctx.layer
        each = zip(*(t.flatten(0, -2).split(256) for t in (x, y, gradient)), strict=True)
        rows = [of_edges(layer, *some, ctx.gamma) for some in each]
        return torch.cat(rows).view_as(x), None, None, None


@torch.no_grad()
def of_edges(
    layer: SplineLayer, x: Tensor, y: Tensor, gradient: Tensor, gamma: float = 0.0
) -> Tensor:
    """The gradient (N, O) of y (N, O) carried to x (N, I) along the secants of all edges.

    gamma acts on the base weights, whose edges are linear behind the base function.
    """
    weight, function = layer.base(x).weight, layer.base_activation
    added = 0.0
    if gamma:
        gradient, added = shares(function(x), weight, y, gradient, gamma)
    to_base = gradient @ weight
    base = (to_base + added) * secant(function, x)
    steps = spline_secants(layer, x)  # (N, I, K)
    if isinstance(layer, GroupKANLinear):
        size = layer.in_features // layer.groups
        curves = (steps * layer.spline_weight.repeat_interleave(size, 0)).sum(-1)  # (N, I)
        return base + gradient @ weight * curves
    if layer.spline_rank is not None:
        to_bases = gradient @ layer.spline_up @ layer.spline_down.flatten(1)
    else:
        to_bases = gradient @ layer.scaled_spline_weight.flatten(1)  # (N, O) @ (O, I * K)
    return base + (to_bases.view_as(steps) * steps).sum(-1)


def spline_secants(layer: KANLinear | GroupKANLinear, x: Tensor) -> Tensor:
    """(B_j(x) - B_j(0)) / x of all bases, (N, I) -> (N, I, K), of x's type."""
    grid = layer.grid.repeat_interleave(layer.in_features // layer.curves, 0)
    at = away_from_zero(x).to(grid)
    here, zero = (
        dense_bases(value, grid, layer.spline_order, layer.outside)
        for value in (at, torch.zeros_like(at[:1]))
    )
    return ((here - zero) / at[..., None]).to(x)


# --- attention and gates ------------------------------------------------------------------------


def share(x: Tensor, part: float) -> Tensor:
    """`x`, of whose gradient only a part goes on."""
    return x * part + (x * (1 - part)).detach()


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, how: str) -> Tensor:
    """Mixed values (B, N, H D) of queries, keys and values (B, H, N, D), by the rule `how`."""
    if how == "halves":  # of the product with v, then again of that of q and k
        q, k, v = share(q, 0.25), share(k, 0.25), share(v, 0.5)
    logits = q @ k.transpose(-2, -1) * scale
    weights = (logits if bias is None else logits + bias).softmax(-1)
    mixed = (weights.detach() if how == "values" else weights) @ v
    return mixed.transpose(1, 2).flatten(2)


def _watch_attention(attn: Attention, rules: Rules) -> list:
    """Hooks that put the rule's mixed values where `attn` reads those of the fused attention."""
    seen: dict = {}

    def mixed(module: nn.Module, args: tuple) -> Tensor:
        turn, shared = (*seen["places"], None, None)[:2]
        q, k, v = attn.split(seen["qkv"], turn)
        return attend(q, k, v, attn.scale, attn.bias(shared), rules.attention)

    return [
        attn.register_forward_pre_hook(lambda m, args: seen.update(places=args[2:])),
        attn.qkv.register_forward_hook(lambda m, args, out: seen.update(qkv=out)),
        attn.norm.register_forward_pre_hook(mixed),
    ]


def _watch_pool(pool: AttentionPool, rules: Rules) -> list:
    """The same of the attention with which a latent query reads all tokens."""
    seen: dict = {}

    def mixed(module: nn.Module, args: tuple) -> Tensor:
        q, k, v = pool.split(seen["x"])
        return attend(q, k, v, k.shape[-1] ** -0.5, None, rules.attention)

    return [
        pool.register_forward_pre_hook(lambda m, args: seen.update(x=args[0])),
        pool.proj.register_forward_pre_hook(mixed),
    ]


def _watch_gate(mlp: SwiGlu) -> list:
    """Hooks that put silu(gate) * value, shared by halves, where the gated MLP goes on."""
    seen: dict = {}

    def keep(name: str) -> Callable:
        return lambda module, args, out: seen.update({name: out})

    def product(module: nn.Module, args: tuple) -> Tensor:
        gate, value = (seen["g"], seen["x"]) if mlp.split else seen["both"].chunk(2, -1)
        return share(secant_of(F.silu, gate) * value, 0.5)

    firsts = {"g": mlp.fc1_g, "x": mlp.fc1_x} if mlp.split else {"both": mlp.fc1}
    handles = [layer.register_forward_hook(keep(name)) for name, layer in firsts.items()]
    return [*handles, mlp.norm.register_forward_pre_hook(product)]
