"""Compiles the blocks of a model for training (--compile), or says in a line why it does not."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from vit_model import Block, VisionTransformer


def compile_blocks(
    model: VisionTransformer,
    forward: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]],
    images: Tensor,
    autocast: AbstractContextManager,
) -> None:
    """Compiles the forward pass of each block as it is in training; evaluation stays as it was.

    All blocks share one graph, which is built a depth-th as long as the whole model's would be.
    forward: the training model, into which `images` go once, forth and back, to find out: a
    compiler that fails costs a line of warning, not the run.
    """
    # A graph for each rate of stochastic depth, and again for an epoch's last, smaller batch.
    torch._dynamo.config.recompile_limit = max(8, 4 * len(model.blocks))
    was_training = model.training
    try:
        for block in model.blocks:
            _compile(block)
        model.train()
        with autocast:
            outputs = forward(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(output.float().sum() for output in outputs).backward()
    except Exception as error:  # whatever a missing compiler or an unsupported machine raises
        for block in model.blocks:
            block.__dict__.pop("forward", None)
        reason = " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
        print(f"warning: --compile failed, going on without: {reason}", file=sys.stderr)
    finally:
        model.train(was_training)
        for parameter in model.parameters():
            parameter.grad = None


def _compile(block: Block) -> None:
    """Puts the compiled forward pass before the block's own, out of sight of its state dict."""
    plain, compiled = block.forward, torch.compile(block.forward)

    def forward(*arguments):
        return (compiled if block.training else plain)(*arguments)

    block.forward = forward
