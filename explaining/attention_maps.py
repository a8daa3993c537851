"""Where a Vision Transformer looked: how much each patch of a photo mattered for one class.

Three methods; `methods` has all that benchmarks/explain_faithfulness.py compares:

- `rollout`: attention roll-out, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928).
- `gradient_attention`: attention weighted by its gradient, the rule for self-attention of "Generic
  Attention-model Explainability" (arXiv 2103.15679). It follows "Transformer Interpretability
  Beyond Attention Visualization" (arXiv 2012.09838) with attention in the place of its layer-wise
  relevances, and so needs no special backward pass.
- `integrated_gradients`: "Axiomatic Attribution for Deep Networks" (arXiv 1703.01365), from the
  embedding of an empty image to that of the photo.

The model computes attention in one fused step that never shows its weights, so they are computed
again here from what `attn.qkv` put out; the model itself is neither changed nor slowed.

Letters in shape comments: B batch, N tokens, H heads, D head size, P patches.
"""

from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AttentionRecord:
    """What a pass left in each block: `qkv` (B, N, 3HD), and `mixed` (B, N, HD), the mixed values.

    places: what its attention knows of places, as `Attention.forward` takes it: (turn, shared).
    """

    def __init__(self):
        self.qkv: list[Tensor] = []
        self.mixed: list[Tensor] = []
        self.places: list[tuple] = []


@contextmanager
def recording(model: nn.Module):
    """Within it, every pass through `model` adds to the AttentionRecord that it gives."""
    record = AttentionRecord()
    hooks = []
    for block in model.blocks:
        hooks.append(block.attn.qkv.register_forward_hook(lambda m, i, out: record.qkv.append(out)))
        hooks.append(
            block.attn.norm.register_forward_pre_hook(lambda m, i: record.mixed.append(i[0]))
        )
        hooks.append(block.attn.register_forward_pre_hook(lambda m, i: record.places.append(i[2:])))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(qkv: Tensor, attn: nn.Module, places: tuple = (None, None)) -> Tensor:
    """The softmax that scaled_dot_product_attention does not show: (B, H, N, N)."""
    turn, shared = places
    q, k, _ = attn.split(qkv, turn)
    logits, bias = q @ k.transpose(-2, -1) * attn.scale, attn.bias(shared)
    return (logits if bias is None else logits + bias).softmax(-1)


def class_logits(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return model(images).gather(1, targets[:, None]).squeeze(1)  # (B, K) -> (B,)


def to_patches(relevance: Tensor, model: nn.Module) -> Tensor:
    """Token relations (B, N, N) -> what the head's tokens took from each patch, (B, P)."""
    shares = model.reading(relevance.shape[1]).to(relevance)  # (N,)
    return (shares @ relevance)[:, model.num_prefix_tokens :]


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Attention roll-out, (B, P): the same map for every class."""
    with recording(model) as record:
        model(images)
    total = None
    for block, qkv, places in zip(model.blocks, record.qkv, record.places, strict=True):
        mean = attention_weights(qkv, block.attn, places).mean(1)  # (B, H, N, N) -> (B, N, N)
        step = (
            mean + torch.eye(mean.shape[-1], device=mean.device)
        ) / 2  # half stays: the residual
        total = step if total is None else step @ total
    return to_patches(total, model)


@torch.no_grad()
def gradient_attention(
    model: nn.Module, images: Tensor, targets: Tensor, *, score: Callable = class_logits
) -> Tensor:
    """Gradient-weighted attention relevance for `targets`, (B, P), not negative.

    For a block that mixes values by o = A v, the gradient of A is (dL/do) v^T; eq. 5 of arXiv
    2103.15679 keeps the positive part of gradient times attention, averaged over heads.
    """
    with torch.enable_grad(), recording(model) as record:
        # Frozen models have no graph of their own: let it begin at the image.
        logits = score(model, images.detach().requires_grad_(), targets)
        gradients = torch.autograd.grad(logits.sum(), record.mixed)
    batch, tokens, _ = gradients[0].shape
    total = torch.eye(tokens).to(images).expand(batch, -1, -1)
    each = zip(model.blocks, record.qkv, record.places, gradients, strict=True)
    for block, qkv, places, gradient in each:
        _, _, v = block.attn.split(qkv)
        to_output = gradient.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2)
        to_attention = to_output @ v.transpose(-2, -1)  # (B, H, N, D) -> (B, H, N, N)
        weighted = to_attention * attention_weights(qkv, block.attn, places)
        total = total + weighted.clamp_min(0).mean(1) @ total
    return to_patches(total, model)


def integrated_gradients(
    model: nn.Module, images: Tensor, targets: Tensor, steps: int = 16
) -> Tensor:
    """Integrated gradients of the class's logit over the patch embeddings, (B, P), signed.

    The path leads from the embedding of an image of the mean colour (zero after normalisation).
    The values of all patches add up to what the photo's logit has above that empty image's.
    """
    with torch.no_grad():
        full, empty = model.embed(images), model.embed(torch.zeros_like(images))
    total = torch.zeros_like(full)
    for step in range(steps):
        with torch.enable_grad():
            x = (empty + (full - empty) * (step + 0.5) / steps).requires_grad_()
            logits = model.forward_head(model.norm(model.forward_blocks(x)))
            logit = logits.gather(1, targets[:, None]).sum()
            total += torch.autograd.grad(logit, x)[0] / steps
    return ((full - empty) * total).sum(-1)[:, model.num_prefix_tokens :]
