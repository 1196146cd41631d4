"""compressed-tensors' whole numbers: int8 with scales (`X.weight`), 1 to 8 bits in words (`X.weight_packed`).

W = scale * (q - z), with one scale (and zero point z, where the format is asymmetric) a tensor, a row, a group of a
row's columns, or a block. Packed: q + 2^(bits - 1) in one string of bits along a row, z in one along the rows. Its
float formats are those of fp8.py (float-quantized, mxfp8) and microscaling.py (nvfp4, mxfp4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.bits import spread, unpack_words, words_for
from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.fp8 import as_blocks, fits
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.checkpoint.formats.settings import CompressedTensors

if TYPE_CHECKING:
    import torch

BITS = range(1, 9)


def recognize_int8(name: str, files: Files) -> Logical | None:
    """The weight of an int8 `X.weight` with `X.weight_scale`, unless it is ChatGLM's format (chatglm_int.py)."""
    entry, scale, zero = files.stored[name], name + "_scale", name + "_zero_point"
    if entry.dtype != "int8" or not name.endswith("weight") or scale not in files.stored:
        return None
    if files.method != "compressed-tensors" and zero not in files.stored:
        return None
    parts = [name, scale] + [part for part in (zero, name + "_g_idx") if part in files.stored]
    block = _block(entry.shape, parts, files)
    if block is None:
        return files.weight(entry.shape, "int8", parts, fault=unlike("compressed-tensors' int8", files, *parts))
    if fault := _lacks_zero(zero, files):
        return files.weight(entry.shape, "int8", parts, fault=fault)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        return _affine(tensors[name], tensors[scale], tensors.get(zero), tensors.get(name + "_g_idx"), block)

    return files.weight(entry.shape, "int8", parts, dequantize)


def recognize_packed(name: str, files: Files) -> Logical | None:
    """The weight of an int32 `X.weight_packed` with `X.weight_scale` and `X.weight_shape`."""
    if not name.endswith("weight_packed") or files.stored[name].dtype != "int32":
        return None
    weight = name.removesuffix("_packed")
    scale, zero, size = weight + "_scale", weight + "_zero_point", weight + "_shape"
    parts = [name] + [part for part in (scale, size, zero, weight + "_g_idx") if part in files.stored]
    shape = tuple(int(n) for n in files.numbers(size)) if size in files.stored else ()
    found = _bits(shape, files.stored[name].shape, files)
    label = f"int{found}" if found else "packed int"
    block = _block(shape, [weight, *parts[1:]], files) if found and scale in files.stored else None
    fault = _lacks_zero(zero, files) if block else unlike("compressed-tensors' packed words", files, *parts)
    if block and found and zero in files.stored:
        scales = files.stored[scale].shape
        if len(scales) != 2 or files.stored[zero].shape != (words_for(shape[0], found), scales[1]):
            fault = unlike("compressed-tensors' packed words", files, *parts)
    if fault or not found or not block:
        return files.weight(shape or files.stored[name].shape, label, parts, fault=fault)
    bits, middle = found, 2 ** (found - 1)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        numbers = torch.empty(shape, dtype=torch.int8)
        for rows in row_chunks(shape):
            numbers[rows] = (unpack_words(tensors[name][rows], bits, shape[1]) - middle).to(torch.int8)
        zeros = tensors.get(zero)
        if zeros is not None:
            zeros = unpack_words(zeros.t(), bits, shape[0]).t() - middle
        return _affine(numbers, tensors[scale], zeros, tensors.get(weight + "_g_idx"), block)

    return files.weight(shape, label, parts, dequantize)


def _bits(shape: tuple[int, ...], packed: tuple[int, ...], files: Files) -> int | None:
    """Bits of a number: the configuration's among those that fit the width; None when they cannot be known.

    Before version 0.18 a number never crossed from one word to the next; where that gives the same width as one string
    of bits, the content cannot be distinguished.
    """
    if len(shape) != 2 or len(packed) != 2 or shape[0] != packed[0] or min(shape) < 1:
        return None
    settings = files.settings_of(CompressedTensors)
    stated = settings.bits if settings else set()
    fitting = [bits for bits in BITS if words_for(shape[1], bits) == packed[1] and (not stated or bits in stated)]
    if len(fitting) != 1:
        return None
    bits = fitting[0]
    old = -(-shape[1] // (32 // bits))
    return bits if 32 % bits == 0 or old != packed[1] or packed[1] == 1 else None


def _block(shape: tuple[int, ...], parts: list[str], files: Files) -> tuple[int, int] | None:
    """Rows and columns that share a scale, from the scale's shape and, for blocks of rows, the configuration."""
    scale = next(part for part in parts if part.endswith("_scale"))
    scales, zero, index = files.stored[scale].shape, parts[0] + "_zero_point", parts[0] + "_g_idx"
    if len(shape) != 2 or not files.stored[scale].dtype.startswith(("float", "bfloat")):
        return None
    if zero in parts and files.stored[zero].dtype != "int32" and files.stored[zero].shape != scales:
        return None
    if index in parts and files.stored[index].shape != (shape[1],):
        return None
    settings = files.settings_of(CompressedTensors)
    for block in settings.blocks if settings else ():
        if fits(shape, scales, block):
            return block
    if len(scales) == 2 and scales[0] == 1 < min(shape[0], scales[1]):
        return None  # one a group of columns, for all rows: no strategy of compressed-tensors
    columns = shape[1] // scales[1] if len(scales) == 2 and scales[1] and shape[1] % scales[1] == 0 else shape[1]
    return (1, columns) if fits(shape, scales, (1, columns)) else None


def _lacks_zero(zero: str, files: Files) -> str | None:
    settings = files.settings_of(CompressedTensors)
    if settings and settings.asymmetric and zero not in files.stored:
        return f"its quantization_config says that it is asymmetric, and {zero} is missing; fetch the model again"
    return None


def _affine(
    numbers: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group: torch.Tensor | None,
    block: tuple[int, int],
) -> torch.Tensor:
    """Weight `scale * (q - z)` in float32, piece by piece.

    `group` gives each column its group, where columns were reordered.
    """
    import torch

    def spread_out(values: torch.Tensor) -> torch.Tensor:
        values = as_blocks(values.float())
        if group is not None and values.shape[1] > 1:
            return values[:, group.long()]
        return spread(values, tuple(numbers.shape), block)

    scales = spread_out(scales)
    zeros = None if zeros is None else spread_out(zeros)
    result = torch.empty(numbers.shape, dtype=torch.float32)
    for rows in row_chunks(tuple(numbers.shape)):
        piece = numbers[rows].float()
        if zeros is not None:
            piece -= zeros[rows] if zeros.shape[0] > 1 else zeros
        torch.mul(piece, scales[rows] if scales.shape[0] > 1 else scales, out=result[rows])
    return result
