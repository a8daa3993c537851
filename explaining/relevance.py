"""Maps of where a model looked from relevance by rules, and from the layers' own answers.

- `input_relevance`: gradient times input. With the rules of `rules.ATTN_LRP` it is AttnLRP (arXiv
  2402.05602), with `rules.LIBRA` LibraGrad's (arXiv 2411.16760).
- `layer_relevance`: the same at the inputs of all blocks, added up patch by patch, as FullGrad+ of
  "SkipPLUS" (CVPR 2024 workshops) does.
- `legrad`: the positive gradient of each layer's own answer with respect to its attention (arXiv
  2404.03214).

Each takes `score`, what is explained: a class's logit, or how far it lies above the others.

Letters in shape comments: B batch, N tokens, C channels, H heads, D head size, P patches.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explaining.attention_maps import class_logits, recording
from explaining.rules import Rules, following


def class_margins(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The logit above the log-sum of all others, (B,): what the probability depends on alone.

    The logit itself where each class has a probability of its own.
    """
    logits = model(images)
    if model.sizes.answers == "sigmoid" or logits.shape[1] == 1:
        return logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return logits.gather(1, targets[:, None]).squeeze(1) - others.logsumexp(1)


def by_rules(model: nn.Module, rules: Rules | None):
    """What `following` gives, or plain gradients where there are no rules."""
    return following(model, rules) if rules else nullcontext()


def per_patch(pixels: Tensor, model: nn.Module) -> Tensor:
    """Sums of pixels (B, 3, S, S) over each patch, (B, P); what no patch sees is left out."""
    size = model.patch_embed.patch_size
    sums = F.avg_pool2d(pixels.sum(1, keepdim=True), size) * size**2
    return sums.flatten(1)


@torch.no_grad()
def input_relevance(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    rules: Rules | None,
    score: Callable = class_logits,
) -> Tensor:
    """Gradient times input by the rules, (B, P), signed: beside an image of the mean colour."""
    with torch.enable_grad(), by_rules(model, rules):
        x = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(model, x, targets).sum(), x)
    return per_patch(gradient * images, model)


@torch.no_grad()
def layer_relevance(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    rules: Rules | None,
    score: Callable = class_logits,
    skip: float = 0.0,
) -> Tensor:
    """Gradient times the patches' tokens before each block, added up, (B, P), signed.

    skip: the share of the blocks, from the first on, that are left out.
    """
    seen: list[Tensor] = []
    blocks = model.blocks[int(len(model.blocks) * skip) :]
    hooks = [
        block.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for block in blocks
    ]
    try:
        with torch.enable_grad(), by_rules(model, rules):
            total = score(model, images.detach().requires_grad_(), targets).sum()
            gradients = torch.autograd.grad(total, seen)
    finally:
        for hook in hooks:
            hook.remove()
    parts = [(x * g).sum(-1) for x, g in zip(seen, gradients, strict=True)]  # of (B, N)
    return torch.stack(parts).sum(0)[:, model.num_prefix_tokens :]


@torch.no_grad()
def legrad(
    model: nn.Module, images: Tensor, targets: Tensor, *, rules: Rules | None = None
) -> Tensor:
    """The mean over layers and heads of the attention's positive gradients, (B, P).

    A layer's answer is what the head makes of its tokens; the gradient is that with respect to the
    attention of this layer alone, or to that of the pool where a latent query does the reading.
    """
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda m, args, out: outputs.append(out))
        for block in model.blocks
    ]
    try:
        with torch.enable_grad(), by_rules(model, rules), recording(model) as record:
            model(images.detach().requires_grad_())
            each = [
                _of_layer(model, record, number, x, targets) for number, x in enumerate(outputs)
            ]
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(each).mean(0)


def _of_layer(model: nn.Module, record, number: int, x: Tensor, targets: Tensor) -> Tensor:
    """What one layer's tokens (B, N, C), read by the model's head, took from each patch, (B, P)."""
    pool = model.attn_pool
    seen: list[Tensor] = []
    hook = pool and pool.proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    tokens = model.norm(x)
    logits = model.forward_head(tokens)
    if hook:
        hook.remove()
    answer = logits.gather(1, targets[:, None]).sum()
    if pool:
        (gradient,) = torch.autograd.grad(answer, seen, retain_graph=True)
        read = tokens if model.sizes.pool_prefix else tokens[:, model.num_prefix_tokens :]
        _, _, v = pool.split(read)
        relevance = _to_attention(gradient, v, pool.num_heads).clamp_min(0).mean(1)[:, 0]
        return relevance[:, model.num_prefix_tokens :] if model.sizes.pool_prefix else relevance
    (gradient,) = torch.autograd.grad(answer, record.mixed[number], retain_graph=True)
    attn = model.blocks[number].attn
    _, _, v = attn.split(record.qkv[number])
    relevance = _to_attention(gradient, v, attn.num_heads).clamp_min(0)
    return relevance.mean((1, 2))[:, model.num_prefix_tokens :]  # (B, H, N, N) -> (B, P)


def _to_attention(gradient: Tensor, v: Tensor, heads: int) -> Tensor:
    """The gradient of mixed values (B, N, H D), carried to attention's weights, (B, H, N, N)."""
    return gradient.unflatten(2, (heads, -1)).transpose(1, 2) @ v.transpose(-2, -1)
