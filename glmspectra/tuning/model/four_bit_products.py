"""Products of many tokens with frozen NF4 weights, widened by our own kernel instead of bitsandbytes'.

Each product, forward and backward, widens the whole weight to bfloat16 first. Ours writes the same numbers in two
thirds of the time (docs/measured.md), which is some 3 % of a QLoRA step of ChatGLM2-6B.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function
from torch.nn import functional as F

from glmspectra.chatglm2.nf4_cuda import nf4_kernels
from glmspectra.chatglm2.one_token import block_scales, nf4_scales
from glmspectra.tuning.model.four_bit import four_bit_modules

FEWEST_TOKENS = 256  # below, bitsandbytes multiplies without widening the whole weight


def widen_by_kernel(model: nn.Module) -> int:
    """Have the NF4 layers of `model` widen by the kernel where it applies; returns how many there are.

    What they compute is the same to the bit, and all else (few tokens, other types, no kernel) is left to bitsandbytes.
    """
    modules = four_bit_modules(model)
    for layer in modules.values():
        layer.forward = MethodType(_forward, layer)
    return len(modules)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    usable = (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and layer.compute_dtype in (None, torch.bfloat16)
        and x.numel() // x.shape[-1] >= FEWEST_TOKENS
        and nf4_kernels(x.device) is not None
        and (layer.bias is None or layer.bias.dtype == x.dtype)
    )
    scales = nf4_scales(layer) if usable else None
    if scales is None:
        whole: torch.Tensor = type(layer).forward(layer, x)
        return whole
    product: torch.Tensor = _FrozenProduct.apply(x, layer, scales)
    return product


class _FrozenProduct(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, scales: torch.Tensor) -> torch.Tensor:
        # The weight is frozen, and the widened one is thrown away. Sharding may put another tensor in its place.
        ctx.layer, ctx.state = layer, layer.weight.quant_state
        return F.linear(x, _widened(layer, scales), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0] @ _widened(ctx.layer, block_scales(ctx.state)), None, None


def _widened(layer: Any, scales: torch.Tensor) -> torch.Tensor:
    kernels = nf4_kernels(scales.device)
    assert kernels is not None
    return kernels.widened(layer.weight.data, scales, (layer.out_features, layer.in_features))
