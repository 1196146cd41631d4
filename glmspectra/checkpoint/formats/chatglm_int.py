"""The official ChatGLM2 int4/int8 format: whole numbers packed in int8, one scale a row.

A weight W of shape (rows, columns) is stored as `weight_scale` s of shape (rows,) and whole numbers q with
W ~ s[:, None] * q, where s = max|row| / (2^(bits-1) - 1), so that q lies in -7..7 or -127..127. With 8 bits q
is stored as it is, (rows, columns) int8; with 4 bits two neighbours of a row share a byte, the left one in
its high half: (rows, columns / 2) int8. This is the format that the 2023 code of ChatGLM2-6B writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    import torch

BITS = (4, 8)
# Rows are worked on in pieces of about this many numbers, so that temporaries stay small beside the result.
CHUNK = 1 << 22


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of an int8 `X.weight` with `X.weight_scale`, one a row."""
    entry, scale = files.stored[name], name + "_scale"
    if entry.dtype != "int8" or not name.endswith("weight") or scale not in files.stored:
        return None
    parts = [name, scale]
    if len(entry.shape) != 2 or files.stored[scale].shape not in ((entry.shape[0],), (entry.shape[0], 1)):
        fault = unlike("int8 rows with one scale each", files, *parts)
        return files.weight(entry.shape, "int8", parts, fault=fault)
    bits = _bits_of(entry.shape[1], files)
    if bits is None:
        fault = 'whether it holds 4 or 8 bits a number cannot be known: give "quantization_bit" in config.json'
        return files.weight(entry.shape, "int8", parts, fault=fault)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        return dequantize_rows(tensors[name], tensors[scale].float(), bits)

    return files.weight((entry.shape[0], entry.shape[1] * 8 // bits), f"int{bits}", parts, dequantize)


def _bits_of(width: int, files: Files) -> int | None:
    """4 or 8, as the configuration says, else the one by which the width is one that the configuration knows."""
    config = files.config
    stated = config.get("quantization_bit")
    if stated in BITS and isinstance(stated, int):
        return stated
    heads, size = config.get("num_attention_heads"), config.get("kv_channels")
    widths = {config.get("hidden_size"), config.get("ffn_hidden_size")}
    if isinstance(heads, int) and isinstance(size, int):
        widths.add(heads * size)
    fitting = [bits for bits in BITS if width * 8 // bits in widths]
    return fitting[0] if len(fitting) == 1 else None


def pack_int4(values: torch.Tensor) -> torch.Tensor:
    """Pack int8 values in -8..7, shape (rows, columns), into int8 of shape (rows, columns / 2).

    Raises RequestError when the number of columns is odd.
    """
    if values.dim() != 2 or values.shape[1] % 2:
        raise RequestError(f"int4 packs two columns in a byte, and a shape of {list(values.shape)} does not pair up.")
    return (values[:, 0::2] << 4) | (values[:, 1::2] & 0x0F)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`.

    Int8 of shape (rows, columns / 2) to int8 in -8..7 of shape (rows, columns).
    """
    import torch

    # Both shifts keep the sign: int8 shifts right arithmetically, and the low half is moved up before it
    # comes down.
    return torch.stack((packed >> 4, (packed << 4) >> 4), dim=-1).flatten(-2)


def quantize_rows(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight of shape (rows, columns): the packed int8 and the scales (rows,), of the weight's dtype.

    Arithmetic is done in the weight's own dtype and rounds half to even, as the original's, so that the
    packed format of an fp16 weight is the same bit for bit. A row of zeros gets scale 0 (the original: NaN).

    Raises RequestError for other bits than 4 and 8, an odd number of columns with 4, or a weight that is not
    finite.
    """
    import torch

    _check_bits(bits)
    peak = weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(weight.shape[0])
    if not bool(torch.isfinite(peak).all()):
        raise RequestError(f"A weight of shape {list(weight.shape)} holds NaN or Inf: it cannot be quantized.")
    scale = peak / (2 ** (bits - 1) - 1)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    limit = 2 ** (bits - 1) - 1
    for rows in row_chunks(weight.shape):
        # In half precision a scale among the subnormal numbers is coarse, and the quotient can pass the
        # limit.
        values[rows] = (weight[rows] / divisor[rows, None]).round_().clamp_(-limit, limit).to(torch.int8)
    return (pack_int4(values) if bits == 4 else values), scale


def dequantize_rows(
    packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The weight of shape (rows, columns) from its packed format, in `dtype`, or float32 where it is None.

    In float32 the products are exact for scales in fp16.

    Raises RequestError for other bits than 4 and 8; CheckpointError when the shapes do not belong together.
    """
    import torch

    _check_bits(bits)
    if packed.dim() != 2 or packed.dtype != torch.int8 or scale.numel() != packed.shape[0]:
        raise CheckpointError(
            f"A packed weight of shape {list(packed.shape)} ({packed.dtype}) and scales of shape "
            f"{list(scale.shape)} do not belong together: the format is int8 rows with one scale each."
        )
    columns = packed.shape[1] * 8 // bits
    dtype = dtype or torch.float32
    weight = torch.empty(packed.shape[0], columns, dtype=dtype, device=packed.device)
    scale = scale.reshape(-1, 1).to(dtype)
    for rows in row_chunks((packed.shape[0], columns)):
        values = unpack_int4(packed[rows]) if bits == 4 else packed[rows]
        torch.mul(values, scale[rows], out=weight[rows])
    return weight


def row_chunks(shape: tuple[int, ...] | torch.Size, numbers: int = CHUNK) -> list[slice]:
    """Slices over the rows of a matrix, each of about so many numbers."""
    step = max(1, numbers // max(1, shape[1]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise RequestError(f"A weight is quantized to 4 or 8 bits, not {bits}.")
