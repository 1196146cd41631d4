"""Products of one token with a model's weights by the kernels for it, while a step of decoding is recorded.

cuBLAS reads the weights of ChatGLM2-6B's shape at 89 % of the memory's bandwidth with one token on an H100, and
bitsandbytes' NF4 product at 37 %; the kernels are faster at both (benchmarks/quantized_matmul.py). They are worth their
launching from Python only inside a CUDA graph, so that layers compute by them only there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from glmspectra.chatglm2.kernels import one_token_kernels
from glmspectra.chatglm2.layers import norms_after_blocks, swiglu
from glmspectra.chatglm2.nf4_cuda import nf4_kernels

GATED = "dense_h_to_4h"  # ChatGLM2's name of the layer whose product SwiGLU takes
SMALLEST = 1 << 20  # numbers in a weight; an adapter's factors are not worth a kernel of their own
Way = Callable[..., torch.Tensor]


class OneTokenProducts:
    """The layers of a model that can compute by the kernels.

    Keep it as long as what was recorded with it is replayed: it holds the scales of NF4 weights whose own are quantized
    too.
    """

    def __init__(self, model: nn.Module):
        self._ways: list[tuple[nn.Module, str, Any]] = []  # a module, an attribute, its value while a step is recorded
        for name, module in model.named_modules():
            way = _way(module)
            if way is not None and "forward" not in vars(module):
                self._ways.append((module, "forward", way))
                if name.endswith(GATED):
                    self._ways.append((module, "gated", partial(way, gated=True)))
        self._ways += [(block, "following", norm) for block, norm in norms_after_blocks(model)]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, these layers compute one token's product by the kernels, and all else as ever."""
        before = [(module, attribute, vars(module).get(attribute)) for module, attribute, _ in self._ways]
        for module, attribute, value in self._ways:
            vars(module)[attribute] = value  # not by setattr, which would make a norm a part of the block before it
        try:
            yield
        finally:
            for module, attribute, value in before:
                if value is None:
                    del vars(module)[attribute]
                else:
                    vars(module)[attribute] = value


def _way(module: nn.Module) -> Way | None:
    """What computes this layer for one token; None where the kernels do not know its weight."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_cuda:
        return None
    if type(module) is nn.Linear and weight.numel() >= SMALLEST and weight.is_contiguous():
        return partial(_plain, module)
    scales = nf4_scales(module)
    return None if scales is None else partial(_nf4, module, scales)


def nf4_scales(module: Any) -> torch.Tensor | None:
    """float32 scales, one for 64 numbers, of a bitsandbytes layer in NF4; None of any other layer."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is None or type(module).__name__ != "Linear4bit":
        return None
    if (state.quant_type, state.blocksize) != ("nf4", 64) or module.in_features % 64:
        return None
    if tuple(state.shape) != (module.out_features, module.in_features):
        return None
    return block_scales(state) if state.nested or state.absmax.dtype == torch.float32 else None


def block_scales(state: Any) -> torch.Tensor:
    """float32 scales of the blocks of a bitsandbytes quantization state, made anew where they are quantized too."""
    scales: torch.Tensor = state.absmax
    if not state.nested:
        return scales
    from bitsandbytes.functional import dequantize_blockwise

    unpacked: torch.Tensor = dequantize_blockwise(scales, state.state2)
    offset: torch.Tensor = state.offset
    return (unpacked + offset).float()


def _plain(module: nn.Linear, x: torch.Tensor, gated: bool = False) -> torch.Tensor:
    kernels = one_token_kernels(x, module.in_features) if x.dtype == module.weight.dtype else None
    if kernels is None:
        return _apart(module, x, gated)
    multiply: Callable[..., torch.Tensor] = kernels.gated_product if gated else kernels.plain_product
    return multiply(x, module.weight, module.bias)


def _nf4(module: Any, scales: torch.Tensor, x: torch.Tensor, gated: bool = False) -> torch.Tensor:
    kernels = one_token_kernels(x, module.in_features)
    if kernels is None or x.dtype != torch.bfloat16 or module.compute_dtype not in (None, torch.bfloat16):
        return _apart(module, x, gated)
    compiled = nf4_kernels(x.device)
    if compiled is not None:
        return compiled.product(x, module.weight.data, scales, module.out_features, module.bias, gated)
    y = kernels.nf4_product(x, module.weight.data, scales, module.out_features, module.bias)
    return swiglu(y) if gated else y


def _apart(module: nn.Module, x: torch.Tensor, gated: bool) -> torch.Tensor:
    """What the layer computes by itself."""
    y = type(module).forward(module, x)
    return swiglu(y) if gated else y
