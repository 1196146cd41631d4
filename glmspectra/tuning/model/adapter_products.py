"""LoRA's products in the precision of the base, with float32 parameters, and added to the base's in one product.

PEFT casts a layer's input to the adapter's type, float32, and keeps that copy for backward: on ChatGLM2 with 8 x 512
tokens 64 MiB in each of 28 layers. Here the factors are cast to the input's type instead, as autocast would do. PEFT
then goes through the layer's output four times more (a copy where the base is in 4 bits, the product with B, its
scaling, the sum); here y + scale (x A^T) B^T is one matrix product that starts from y. On a GPU the product with A
takes dropout in, and its gradient the frozen product's (`adapter_kernels.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import MethodType
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F

LARGEST_RANK = 128  # what one program of the kernels holds of both factors
SHARE = 512  # rows that one program of theirs sums for the gradient of A


class BranchKernels(Protocol):
    """How a layer's input goes through its adapter and back: `adapter_kernels`, or what stands for it."""

    def drawn_seed(self) -> int: ...
    def down_product(self, x: torch.Tensor, down: torch.Tensor, dropout: float, seed: int) -> torch.Tensor: ...
    def gradient_of_down(self, x: torch.Tensor, of_inner: torch.Tensor, dropout: float, seed: int) -> torch.Tensor: ...
    def gradient_of_x(
        self, of_x: torch.Tensor, of_inner: torch.Tensor, down: torch.Tensor, dropout: float, seed: int
    ) -> torch.Tensor: ...
    def sum_with_up(self, y: torch.Tensor, inner: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor: ...


Choice = Callable[[torch.Tensor, int], BranchKernels | None]  # of the kernels for an input and a rank


class InputTypedLinear(nn.Linear):
    """A linear layer whose float32 weight is cast to the type of its input: [..., in] to [..., out] of that type."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def branch_kernels(x: torch.Tensor, rank: int) -> BranchKernels | None:
    """The kernels for an adapter of this rank on inputs like `x`; None where torch's operations compute it."""
    return _branch_kernels() if x.is_cuda and taken_by_kernels(x, rank) else None


def taken_by_kernels(x: torch.Tensor, rank: int) -> bool:
    """Whether the kernels take inputs of this type and adapters of this rank."""
    return x.dtype in (torch.float16, torch.bfloat16) and rank <= LARGEST_RANK


@cache
def _branch_kernels() -> BranchKernels | None:
    try:
        from glmspectra.tuning.model import adapter_kernels
    except ImportError:  # no Triton: slower, and as right
        return None
    return adapter_kernels


def follow_input_dtype(model: nn.Module, adapter: str, kernels: Choice = branch_kernels) -> int:
    """Make the LoRA factors of `model` compute in the type of their input; returns the number of layers changed.

    Parameters and their names stay as they are. Layers that are not plain LoRA (AdaLoRA, DoRA) are left
    alone. `kernels`: what says by which kernels a layer's input goes through its adapter.
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
        layer.forward = MethodType(partial(_joined_forward, kernels), layer)
        changed += 1
    return changed


def _joined_forward(kernels: Choice, layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
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
    dropout = layer.lora_dropout[name]
    down, up = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
    found = kernels(x, len(down)) if torch.is_grad_enabled() else None
    if found is not None and type(dropout) in (nn.Dropout, nn.Identity):
        share = dropout.p if type(dropout) is nn.Dropout and dropout.training else 0.0
        x, inner = _DownProduct.apply(x, down, share, found)
        y = layer.base_layer(x)
        total: torch.Tensor = _SumWithUp.apply(y.flatten(0, -2), inner, up, layer.scaling[name], found)
        return total.view(y.shape)
    inner = F.linear(dropout(x), down).flatten(0, -2)
    y = layer.base_layer(x)
    return torch.addmm(y.flatten(0, -2), inner, up.t(), alpha=layer.scaling[name]).view(y.shape)


class _DownProduct(Function):
    """x and dropout(x) A^T, [..., in] and [n, rank], of an input that the frozen product takes from here.

    So the gradient of the frozen product arrives with that of the adapter's, and one kernel sums them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, down: torch.Tensor, dropout: float, kernels: BranchKernels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.seed = kernels.drawn_seed() if dropout else 0
        ctx.dropout, ctx.kernels = dropout, kernels
        ctx.save_for_backward(rows, down)
        return x.view_as(x), kernels.down_product(rows, down, dropout, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        rows, down = ctx.saved_tensors
        of_x, of_inner = gradients[0], gradients[1].contiguous()
        found = None
        if ctx.needs_input_grad[0]:
            flat = of_x.reshape(rows.shape).contiguous()
            found = ctx.kernels.gradient_of_x(flat, of_inner, down, ctx.dropout, ctx.seed).view(of_x.shape)
        of_down = ctx.kernels.gradient_of_down(rows, of_inner, ctx.dropout, ctx.seed)
        return found, of_down.to(down.dtype), None, None


class _SumWithUp(Function):
    """y + scale inner B^T, [n, out], for y [n, out], inner [n, rank] and B [out, rank]."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, inner: torch.Tensor, up: torch.Tensor, scale: float, kernels: BranchKernels
    ) -> torch.Tensor:
        ctx.scale = scale
        ctx.save_for_backward(inner, up)
        total: torch.Tensor = kernels.sum_with_up(y, inner, up, scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        inner, up = ctx.saved_tensors
        (given,) = gradients
        return given, given @ (ctx.scale * up), given.t() @ (ctx.scale * inner), None, None


def _typed(linear: nn.Linear) -> InputTypedLinear:
    typed = InputTypedLinear(linear.in_features, linear.out_features, bias=False, device="meta")
    typed.weight = linear.weight
    return typed.train(linear.training)
