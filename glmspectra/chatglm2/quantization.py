"""ChatGLM2's own int4 and int8 weights: linear layers that hold whole numbers and one scale a row.

Only weights are quantized; inputs, outputs and sums stay in the model's precision. The stored format is that of the
published int4/int8 checkpoints (see checkpoint/formats/chatglm_int.py), under the same names: `weight` and
`weight_scale`. In decoding the product is taken straight from the packed weight: on CUDA by the Triton kernel for one
token, on a CPU block by block in torch. Otherwise the weight is widened for the call.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from glmspectra.chatglm2.kernels import one_token_kernels, packed_weight_kernels
from glmspectra.checkpoint.formats.chatglm_int import BITS, dequantize_rows, quantize_rows, row_chunks
from glmspectra.errors import RequestError

# With more tokens than this a CPU widens the weight once and multiplies by the library: the work then grows beyond what
# reading the packed weight costs. A GPU does so with more than one.
FUSED_TOKENS = 64
BLOCK = 1 << 18  # packed bytes that torch widens at a time: what a core's cache holds


class QuantizedLinear(nn.Linear):
    """y = x W^T + b with W = weight_scale[:, None] * q, q whole numbers of 4 or 8 bits.

    A subclass of `nn.Linear`, so that adapters (PEFT) attach to it and train on top; its own numbers are never
    trained.

    Attributes:
        weight: int8 (out_features, in_features * bits / 8).
        weight_scale: (out_features,), of the model's dtype.
        bias: (out_features,) or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # not Linear's: it would make a weight of full size
        if bits not in BITS:
            raise RequestError(f"A weight is quantized to 4 or 8 bits, not {bits}.")
        if in_features * bits % 8:
            raise RequestError(
                f"int4 packs two columns in a byte, and a weight of {in_features} columns does not pair up."
            )
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        packed = torch.zeros(out_features, in_features * bits // 8, dtype=torch.int8, device=device)
        scale = torch.zeros(out_features, dtype=dtype, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        # With the base frozen the original freezes the bias too.
        values = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.register_parameter("bias", None if values is None else nn.Parameter(values, requires_grad=False))
        # transformers fills what a checkpoint lacks with random numbers, which whole numbers cannot take.
        self._is_hf_initialized = True

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int) -> "QuantizedLinear":
        """Quantize a linear layer on its own device.

        Raises RequestError when its weight is on `meta` or not finite.
        """
        if linear.weight.is_meta:
            raise RequestError("The model has no weights yet (it is on the meta device): load it, then quantize.")
        made = cls(
            linear.in_features,
            linear.out_features,
            bits,
            linear.bias is not None,
            device=torch.device("meta"),
            dtype=linear.weight.dtype,
        )
        packed, scale = quantize_rows(linear.weight.detach(), bits)
        made.weight = nn.Parameter(packed, requires_grad=False)
        made.weight_scale = nn.Parameter(scale, requires_grad=False)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return made

    def dequantized_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight that the layer multiplies by, (out_features, in_features), by default of the scales' dtype."""
        return widen(self.weight, self.weight_scale, self.bits, dtype or self.weight_scale.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), of x's dtype (of autocast's where that is on)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: torch.Tensor = _PackedProduct.apply(x, self.weight, self.weight_scale, self.bits)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def reset_parameters(self) -> None:
        """Nothing is drawn: whole numbers come from a checkpoint or from `from_linear`."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class _PackedProduct(torch.autograd.Function):
    """x W^T with a gradient for x alone. The widened weight is not kept for the way back, but made again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.bits = bits
        kernels = one_token_kernels(x, x.shape[-1])
        if kernels is not None and not packed.numel() % 4:
            fused: torch.Tensor = kernels.integer_product(x, packed, scale, bits)
            return fused
        tokens = x.numel() // max(1, x.shape[-1])
        if x.is_cuda or not 0 < tokens <= FUSED_TOKENS:
            return functional.linear(x, widen(packed, scale, bits, x.dtype))
        return product(x, packed, scale, bits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        packed, scale = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = widen(packed, scale, ctx.bits, gradients[0].dtype)
        return gradients[0] @ weight, None, None, None


def product(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Product x W^T in torch: (..., columns) to (..., rows), of x's dtype, widening a block of rows at a time.

    Sums are in float32 at least and scaled at their end. Even and odd columns, which share a byte in int4, are
    multiplied apart, so that no number moves: ten times faster than widening, for one token on a CPU.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    flat = x.reshape(-1, x.shape[-1]).to(wide)
    y = torch.empty(flat.shape[0], packed.shape[0], dtype=wide, device=x.device)
    even, odd = flat[:, 0::2].contiguous(), flat[:, 1::2].contiguous()
    for rows in row_chunks(packed.shape, BLOCK):
        block = packed[rows]
        if bits == 4:
            y[:, rows] = even @ (block >> 4).to(wide).t() + odd @ ((block << 4) >> 4).to(wide).t()
        else:
            y[:, rows] = flat @ block.to(wide).t()
    return (y * scale.to(wide)).to(x.dtype).reshape(*x.shape[:-1], packed.shape[0])


def widen(packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight of `dtype`, (rows, columns), from its packed format, on its own device."""
    kernels = packed_weight_kernels(packed)
    if kernels is not None:
        weight: torch.Tensor = kernels.dequantize(packed, scale, bits, dtype)
        return weight
    return dequantize_rows(packed, scale, bits, dtype)


def quantize_model(model: Any, bits: int) -> Any:
    """Quantize the linear layers inside a ChatGLM2's layers to 4 or 8 bits, in place, one after the other.

    Embedding, output layer and norms stay as they are, as in the published int4/int8 checkpoints. The
    configuration then says `quantization_bit`, so that what `save_pretrained` writes is loaded as it is.

    Raises:
        RequestError: the model is quantized already, has adapters, no weights yet, weights that are not finite, or no
            linear layer to quantize; nothing was changed.
    """
    if bits not in BITS:
        raise RequestError(f"A model is quantized to 4 or 8 bits, not {bits}.")
    if any(isinstance(module, QuantizedLinear) for module in model.modules()) or getattr(model, "is_quantized", False):
        raise RequestError("The model is quantized already: load it anew in full precision, then quantize.")
    found = list(_layer_linears(model))
    unusual = [name for _, name, child in found if type(child) is not nn.Linear]
    if unusual:
        raise RequestError(
            f"{unusual[0]} carries an adapter or another quantization: merge or load plain weights first."
        )
    if not found:
        raise RequestError(f"{type(model).__name__} has no linear layers in layers: nothing was quantized.")
    for _, name, child in found:  # before the first is replaced: a model half quantized is of no use
        if not child.weight.is_meta and not bool(child.weight.detach().abs().amax().isfinite()):
            raise RequestError(
                f"{name}.weight holds NaN or Inf and cannot be quantized: look for where they come from."
            )
    for parent, name, child in found:
        setattr(parent, name.rpartition(".")[2], QuantizedLinear.from_linear(child, bits))
    _note_bits(model, bits)
    return model


def prepare_quantized_modules(model: Any, bits: int) -> Any:
    """Put empty QuantizedLinear layers where a packed checkpoint has whole numbers, before its weights are loaded.

    Raises RequestError when the model has no linear layers in layers.
    """
    found = list(_layer_linears(model))
    if not found:
        raise RequestError(
            f"{type(model).__name__} has no linear layers in layers: a packed checkpoint does not fit it."
        )
    for parent, name, child in found:
        empty = QuantizedLinear(
            child.in_features, child.out_features, bits, child.bias is not None, child.weight.device, child.weight.dtype
        )
        setattr(parent, name.rpartition(".")[2], empty)
    _note_bits(model, bits)
    return model


def _layer_linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, full name and module of each linear layer inside the decoder's layers."""
    for parent_name, parent in model.named_modules():
        if ".layers." not in f".{parent_name}.":
            continue
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, f"{parent_name}.{name}", child


def _note_bits(model: nn.Module, bits: int) -> None:
    config = getattr(model, "config", None)
    if config is not None:
        config.quantization_bit = bits
