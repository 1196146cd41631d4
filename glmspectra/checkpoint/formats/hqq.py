"""HQQ: `X.W_q` with its meta-data as tensors beside it (`X.scale`, `X.zero`, `X.nbits`, `X.shape` ...).

The weight, reshaped to groups along one axis, is (q - zero) * scale. Numbers are packed along the first axis: the first
half of the rows of 4 bits in the high halves of the bytes, the second half in the low ones, and so on (mobiusml/hqq,
core/bitpack.py); three bits go ten to an int32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike

if TYPE_CHECKING:
    import torch

# Bits of a number -> dtype of the packed tensor, numbers in one of its elements, and the bits that each takes there.
PACKING = {
    8: ("uint8", 1, 8),
    6: ("uint8", 1, 8),
    5: ("uint8", 1, 8),
    4: ("uint8", 2, 4),
    3: ("int32", 10, 3),
    2: ("uint8", 4, 2),  # 1.58 bits too
    1: ("uint8", 8, 1),
}
WORDS = ("scale", "zero", "nbits", "group_size", "shape", "axis", "packing")
# What HQQ writes beside them, and what has no effect on the weight.
REST = ("view_as_float", "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero", "channel_wise", "optimize")
FURTHER = ("round_zero", "offload_meta", "encoded_state_dict", "stores_quant_config", "meta_scale", "meta_zero")


def recognise(name: str, files: Files) -> Logical | None:
    """The weight of a `W_q`."""
    if name != "W_q" and not name.endswith(".W_q"):
        return None
    module = name.removesuffix("W_q")
    parts = [name, *(module + word for word in (*WORDS, *REST, *FURTHER) if module + word in files.stored)]
    entry = files.stored[name]
    absent = [word for word in ("scale", "zero", "nbits", "shape", "axis") if module + word not in files.stored]
    if absent:
        fault = f"it is packed by HQQ and {module}{absent[0]} is missing; fetch the model again"
        return files.weight(entry.shape, "hqq", parts, fault=fault)
    bits, axis = round(files.number(module + "nbits"), 2), int(files.number(module + "axis"))
    shape = tuple(int(n) for n in files.numbers(module + "shape"))
    label = f"hqq:{bits:g}bit"
    quantised = [
        word for word in ("quant_scale", "quant_zero") if module + word in files.stored and files.number(module + word)
    ]
    if quantised:
        fault = "its scales or zero points are quantised by HQQ in their turn, which is not read here"
        return files.weight(shape, label, parts, fault=fault)
    storage, share, width = PACKING.get(math.ceil(bits), ("", 1, 8))
    scale, zero = files.stored[module + "scale"], files.stored[module + "zero"]
    fit = (
        entry.dtype == storage
        and len(entry.shape) == len(scale.shape) == len(shape) == 2
        and scale.shape == zero.shape
        and axis in (0, 1)
        and scale.shape[axis] == 1
        and scale.shape[1 - axis] > 0
        and math.prod(shape) % scale.shape[1 - axis] == 0
        and all(part.dtype.startswith(("float", "bfloat")) for part in (scale, zero))
    )
    rows = _grouped_rows(shape, scale.shape, axis) if fit else 0
    if not fit or entry.shape[0] != -(-rows // share) or entry.shape[0] * share * entry.shape[1] < math.prod(shape):
        return files.weight(shape, label, parts, fault=unlike("HQQ", files, *parts[:6]))

    def dequantize(tensors: Tensors) -> torch.Tensor:
        numbers = _unpack(tensors[name], share, width)[:rows]
        result = (numbers - tensors[zero.name].float()) * tensors[scale.name].float()
        return result.reshape(shape)

    return files.weight(shape, label, parts, dequantize)


def _grouped_rows(shape: tuple[int, ...], scale: tuple[int, ...], axis: int) -> int:
    """Rows of the weight reshaped to its groups: a group is a row of it (axis 1) or a column (axis 0)."""
    return scale[0] if axis == 1 else math.prod(shape) // scale[1]


def _unpack(packed: torch.Tensor, share: int, width: int) -> torch.Tensor:
    """Float32 numbers; piece k of the rows lies in the k-th bits from the top."""
    import torch

    if share == 1:
        return packed.float()
    mask = 2**width - 1
    pieces = [(packed >> (width * (share - 1 - piece))) & mask for piece in range(share)]
    return torch.cat(pieces).float()
