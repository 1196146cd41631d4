"""What CUDA's kernels allocate and keep for backward, played on tensors without data.

A training step is run on fake tensors (shapes and types, no memory), so most of what it allocates is simply observed.
Where the CPU's implementation of an operation keeps other things than CUDA's, it is replaced here by one that keeps
what CUDA's keeps:

- a linear layer in 4 bits: bitsandbytes dequantizes the whole weight for each product and keeps neither the
  dequantized weight nor the input;
- dropout: one byte an element for the mask;
- LoRA's product with A, where dropout is drawn by our kernels: the input alone;
- rms_norm: input and one float32 a row; under autocast it runs, and answers, in float32;
- attention: FlashAttention (Dao et al. 2022, arXiv:2205.14135) keeps q, k, v, the output and one float32 a query;
  backward adds the gradient of q in float32. Which kernel PyTorch takes is decided as it does.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from glmspectra.tuning.memory.tracking import Tracker
from glmspectra.tuning.model.adapter_products import SHARE

DEQUANTIZED = "dequantized weight"
HALF = (torch.float16, torch.bfloat16)


class _FourBitLinear(Function):
    """x [..., K] times the transpose of a 4-bit weight of shape [N, K], dequantized for the product."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tracker: Tracker
    ) -> torch.Tensor:
        ctx.weight, ctx.tracker = weight, tracker  # packed; what is dequantized is thrown away
        return F.linear(x, _dequantized(weight, x, tracker), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ _dequantized(ctx.weight, gradient, ctx.tracker), None, None, None


def _dequantized(weight: torch.Tensor, like: torch.Tensor, tracker: Tracker) -> torch.Tensor:
    with tracker.labelled(DEQUANTIZED):
        return torch.empty(weight.shape, dtype=like.dtype, device=like.device)


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(torch.empty(x.shape, dtype=torch.bool, device=x.device))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(gradients[0])


class AdapterShapes:
    """What `tuning/model/adapter_kernels.py` allocates, in its place."""

    def drawn_seed(self) -> int:
        """No number is drawn."""
        return 0

    def down_product(self, x: torch.Tensor, down: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
        """[n, rank] for x [n, in] and A [rank, in]."""
        return x.new_empty(x.shape[0], down.shape[0])

    def gradient_of_down(self, x: torch.Tensor, of_inner: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
        """[rank, in] in float32, out of its summands."""
        return x.new_empty(-(-x.shape[0] // SHARE), of_inner.shape[1], x.shape[1], dtype=torch.float32).sum(0)

    def gradient_of_x(
        self, of_x: torch.Tensor, of_inner: torch.Tensor, down: torch.Tensor, dropout: float, seed: int
    ) -> torch.Tensor:
        """A new [n, in]."""
        return torch.empty_like(of_x)

    def sum_with_up(self, y: torch.Tensor, inner: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
        """A new [n, out]."""
        return torch.empty_like(y)


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        _, weight, _ = ctx.saved_tensors
        return torch.empty_like(gradients[0]), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _Attention(Function):
    """FlashAttention, and the memory-efficient kernel, which takes masks: q [b, H, s, d], k and v [b, G, t, d]."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        b, heads, s, _ = q.shape
        out = torch.empty(b, s, heads, v.shape[-1], dtype=q.dtype, device=q.device).transpose(1, 2)
        ctx.save_for_backward(q, k, v, bias, out, torch.empty(b, heads, s, dtype=torch.float32, device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        q, k, v, _, _, sums = ctx.saved_tensors
        delta = torch.empty_like(sums)
        # Both kernels add up the gradient of q in float32 and round it at the end.
        collected = torch.empty(q.shape, dtype=torch.float32, device=q.device) if q.dtype in HALF else None
        grad_q = torch.empty_like(q)
        wide = (*k.shape[:1], q.shape[1], *k.shape[2:])  # gradients of shared k and v come a query head each
        grad_k, grad_v = (torch.empty(wide, dtype=k.dtype, device=k.device) for _ in range(2))
        if wide != tuple(k.shape):
            grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        del delta, collected
        return grad_q, grad_k, grad_v, None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The kernel that PyTorch takes on CUDA: flash for half types without a mask, else the memory-efficient one.

    The latter does not share keys among query heads, so shared keys it cannot take go to plain products and a softmax.
    """
    flash = attn_mask is None and q.dtype in HALF and q.shape[-1] <= 256
    if not flash and q.shape[1] != k.shape[1]:
        found: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
        return found
    bias = None if attn_mask is None else attn_mask.to(q.dtype)
    attended: torch.Tensor = _Attention.apply(q, k, v, bias)
    return attended


class CudaKernels(TorchFunctionMode):
    """Replaces the operations above while it is entered.

    `autocast`: the dtype of automatic mixed precision, or None; `four_bit`: ids of weights that stand for 4-bit ones.
    """

    def __init__(self, four_bit: set[int], autocast: torch.dtype | None, tracker: Tracker):
        super().__init__()
        self.tracker = tracker
        self.four_bit = four_bit
        self.autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacement: Any = {
            F.linear: self._linear,
            F.dropout: self._dropout,
            F.rms_norm: self._rms_norm,
            F.layer_norm: self._layer_norm,
            F.scaled_dot_product_attention: _attend,
        }.get(func)
        return (replacement or func)(*args, **kwargs)

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if id(weight) in self.four_bit:
            product: torch.Tensor = _FourBitLinear.apply(x, weight, bias, self.tracker)
            return product
        if self.autocast is not None:
            x, weight = x.to(self.autocast), weight.to(self.autocast)
            bias = None if bias is None else bias.to(self.autocast)
        return F.linear(x, weight, bias)

    def _dropout(self, x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return _Dropout.apply(x) if training and p > 0 else x

    def _rms_norm(
        self, x: torch.Tensor, shape: Any, weight: torch.Tensor | None = None, eps: float | None = None
    ) -> torch.Tensor:
        if self.autocast is not None:
            x, weight = x.float(), None if weight is None else weight.float()
        normed: torch.Tensor = _RmsNorm.apply(x, weight)
        return normed

    def _layer_norm(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.autocast is not None:
            x = x.float()
            args = tuple(value.float() if isinstance(value, torch.Tensor) else value for value in args)
            kwargs = {
                name: value.float() if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()
            }
        return F.layer_norm(x, *args, **kwargs)


def mark_four_bit(model: Any, compute: torch.dtype, quant_type: str) -> dict[str, nn.Linear]:
    """Put layers that PEFT takes for bitsandbytes' Linear4bit in the place of every linear layer but the output layer.

    Returns name -> layer. Their weights keep their shape [out_features, in_features] and hold no data.
    """
    from bitsandbytes.nn.modules import Linear4bit

    class Counted(Linear4bit):
        """Linear4bit without its quantized weight."""

        def __init__(self, of: nn.Linear):
            nn.Linear.__init__(self, of.in_features, of.out_features, of.bias is not None, device="meta")
            self.weight, self.bias = of.weight, of.bias
            self.weight.requires_grad_(False)
            self.weight.compress_statistics, self.weight.quant_type = False, quant_type  # type: ignore[attr-defined]
            self.compute_dtype = compute

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x.to(self.compute_dtype), self.weight, self.bias).to(x.dtype)

    head = model.get_output_embeddings()
    marked: dict[str, nn.Linear] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            marked[name] = Counted(module)
            setattr(model.get_submodule(parent), leaf, marked[name])
    model.is_loaded_in_4bit = True
    return marked
