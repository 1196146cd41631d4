"""Which Triton kernels a tensor can go to: None on a CPU and where Triton is not installed; torch code then runs.

The kernels themselves are in files of their own, since importing them needs Triton.
"""

import importlib
import os
from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch

# Triton's interpreter runs the kernels on a CPU, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def packed_weight_kernels(tensor: torch.Tensor) -> ModuleType | None:
    """The kernels over packed int4 and int8 weights, for a tensor on CUDA."""
    return _module("quantization_kernels") if tensor.is_cuda else None


def layer_kernels(tensor: torch.Tensor) -> ModuleType | None:
    """The fused SwiGLU, rotary and norm kernels, for a half-precision tensor on CUDA.

    Float32 keeps to the torch code, whose results are the published code's to the bit; so does a model that
    torch.compile is tracing, which fuses by itself.
    """
    if not tensor.is_cuda or tensor.dtype not in (torch.float16, torch.bfloat16) or torch.compiler.is_compiling():
        return None
    return _module("layer_kernels")


def decode_kernels(tensor: torch.Tensor) -> ModuleType | None:
    """The kernels for a step of decoding, where `layer_kernels` has some and no gradient is wanted."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        return None
    return _module("decode_kernels") if layer_kernels(tensor) is not None else None


def one_token_kernels(x: torch.Tensor, columns: int) -> ModuleType | None:
    """The kernels for the product of one token with a weight of so many columns, where `x` is one."""
    kernels = _module("vector_kernels") if layer_kernels(x) is not None else None
    return kernels if kernels is not None and kernels.takes(x, columns) else None


@cache
def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"glmspectra.chatglm2.{name}")
    except ImportError:
        return None  # slower, and as right


def launching_on(device: torch.device) -> Any:
    """Context in which Triton launches on the tensors' device; by itself it launches on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
