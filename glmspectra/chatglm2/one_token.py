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

SMALLEST = 1 << 20  # numbers in a weight; an adapter's factors are not worth a kernel of their own


class OneTokenProducts:
    """The layers of a model that can compute by the kernels.

    Keep it as long as what was recorded with it is replayed: it holds the scales of NF4 weights whose own are quantised
    too.
    """

    def __init__(self, model: nn.Module):
        self._ways: list[tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]] = []
        for module in model.modules():
            way = _way(module)
            if way is not None and "forward" not in vars(module):
                self._ways.append((module, way))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, these layers compute one token's product by the kernels, and all else as ever."""
        for module, way in self._ways:
            module.forward = way
        try:
            yield
        finally:
            for module, _ in self._ways:
                del module.forward


def _way(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
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
    if not state.nested:
        return state.absmax if state.absmax.dtype == torch.float32 else None
    from bitsandbytes.functional import dequantize_blockwise

    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()


def _plain(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    kernels = one_token_kernels(x, module.in_features) if x.dtype == module.weight.dtype else None
    if kernels is None:
        return type(module).forward(module, x)
    return kernels.plain_product(x, module.weight, module.bias)


def _nf4(module: Any, scales: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    kernels = one_token_kernels(x, module.in_features)
    if kernels is None or x.dtype != torch.bfloat16 or module.compute_dtype not in (None, torch.bfloat16):
        return type(module).forward(module, x)
    return kernels.nf4_product(x, module.weight.data, scales, module.out_features, module.bias)
