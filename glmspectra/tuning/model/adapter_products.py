"""LoRA's products in the precision of the base, with float32 parameters, and added to the base's in one product.

PEFT casts a layer's input to the adapter's type, float32, and keeps that copy for backward: on ChatGLM2 with 8 x 512
tokens 64 MiB in each of 28 layers. Here the factors are cast to the input's type instead, as autocast would do. PEFT
then goes through the layer's output four times more (a copy where the base is in 4 bits, the product with B, its
scaling, the sum); here y + scale (x A^T) B^T is one matrix product that starts from y.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F


class InputTypedLinear(nn.Linear):
    """A linear layer whose float32 weight is cast to the type of its input: [..., in] to [..., out] of that type."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def follow_input_dtype(model: nn.Module, adapter: str) -> int:
    """Make the LoRA factors of `model` compute in the type of their input; returns the number of layers changed.

    Parameters and their names stay as they are. Layers that are not plain LoRA (AdaLoRA, DoRA) are left
    alone.
    """
    changed = 0
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A or layer.use_dora.get(adapter):
            continue
        pair: list[Any] = [layer.lora_A, layer.lora_B]
        if not all(type(factors[adapter]) is nn.Linear for factors in pair):
            continue
        if any(factors[adapter].bias is not None for factors in pair):
            continue
        for factors in pair:
            factors[adapter] = _typed(factors[adapter])
        layer.cast_input_dtype_enabled = False
        layer.forward = MethodType(_joined_forward, layer)
        changed += 1
    return changed


def _joined_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the LoRA layer computes: [..., in] to [..., out]; by PEFT's own forward in all but the plain case."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    plain = (
        len(active) == 1
        and isinstance(layer.lora_A[active[0]], InputTypedLinear)
        and not (layer.disable_adapters or layer.merged or args or kwargs or layer.lora_variant)
        and not torch.is_autocast_enabled(x.device.type)
    )
    if not plain:
        whole: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return whole
    (name,) = active
    y = layer.base_layer(x)
    down, up = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
    inner = F.linear(layer.lora_dropout[name](x), down).flatten(0, -2)
    return torch.addmm(y.flatten(0, -2), inner, up.t(), alpha=layer.scaling[name]).view(y.shape)


def _typed(linear: nn.Linear) -> InputTypedLinear:
    typed = InputTypedLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    typed.weight = linear.weight
    return typed.train(linear.training)
