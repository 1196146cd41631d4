"""Tensor types of torch alone (quantized, sparse, nested), and types of safetensors that torch has not.

Quantized tensors are dequantized by torch's own rule; sparse and nested ones, and the foreign types, are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors
from glmspectra.device import dtype_name

if TYPE_CHECKING:
    import torch

QUANTIZED = ("qint8", "quint8", "qint32")


def stored_dtype(tensor: torch.Tensor) -> str:
    """The dtype of a stored tensor by torch's name, with its layout before it where that is not strided."""
    import torch

    name = dtype_name(tensor.dtype)
    if tensor.is_nested:
        return f"nested {name}"
    return name if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} {name}"


def recognize(name: str, files: Files) -> Logical | None:
    """A tensor of `torch.quantize_per_tensor` or `_per_channel`; with its fault a sparse, nested or foreign one."""
    entry = files.stored[name]
    layout, space, _ = entry.dtype.partition(" ")
    if entry.dtype in QUANTIZED:

        def dequantize(tensors: Tensors) -> torch.Tensor:
            return tensors[name].dequantize()

        return files.weight(entry.shape, entry.dtype, [name], dequantize)
    if entry.dtype.startswith("safetensors:"):
        fault = f"it is stored in {entry.dtype.partition(':')[2]}, a type that torch has not"
        return files.weight(entry.shape, entry.dtype, [name], fault=fault)
    if space:
        fault = f"it is a {layout} tensor, no array of numbers; save it as a dense one"
        return files.weight(entry.shape, layout, [name], fault=fault)
    return None
