"""Four-bit floating point (E2M1) with a scale a block: MXFP4 of GPT-OSS, of compressed-tensors and of ModelOpt, NVFP4.

Two numbers to a byte, the low half first. MXFP4 (OCP Microscaling Formats v1.0): 32 numbers of a row share a power of
two. NVFP4: 16 numbers of a row share a scale in E4M3, and the whole weight a second one, by which compressed-tensors
divides (`weight_global_scale`) and ModelOpt multiplies (`weight_scale_2`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.bits import E2M1, e8m0, unpack_nibbles
from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike

if TYPE_CHECKING:
    import torch

MX_BLOCK, NV_BLOCK = 32, 16
EXPONENTS = ("uint8", "float8_e8m0fnu")


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of `X.weight_packed` or `X.weight` in uint8 with its scales, or of GPT-OSS' `X_blocks`."""
    if files.stored[name].dtype != "uint8":
        return None
    if name.endswith("_blocks") and name.removesuffix("_blocks") + "_scales" in files.stored:
        return _gpt_oss(name, files)
    module = name.removesuffix("weight_packed").removesuffix("weight")
    scale = module + "weight_scale"
    if module == name or scale not in files.stored:
        return None
    second = next(
        (module + word for word in ("weight_global_scale", "weight_scale_2") if module + word in files.stored), None
    )
    return _blocks(name, scale, second, files)


def _blocks(name: str, scale: str, second: str | None, files: Files) -> Logical:
    shape, scale_dtype = files.stored[name].shape, files.stored[scale].dtype
    parts = [name, scale] + ([second] if second else [])
    exponents = scale_dtype in EXPONENTS and second is None
    label, size = ("mxfp4", MX_BLOCK) if exponents else ("nvfp4", NV_BLOCK)
    whole = (*shape[:-1], 2 * shape[-1]) if shape else ()
    fits = (
        len(shape) in (2, 3) and files.stored[scale].shape == (*shape[:-1], whole[-1] // size) and whole[-1] % size == 0
    )
    if second is not None:
        factor = files.stored[second]
        fits = fits and factor.shape in ((), (1,)) and factor.dtype in ("float32", "bfloat16", "float16")
    if not fits or (not exponents and (scale_dtype != "float8_e4m3fn" or second is None)):
        return files.weight(shape, label, parts, fault=unlike("MXFP4 or NVFP4", files, *parts))
    divides = second is not None and second.endswith("global_scale")

    def dequantize(tensors: Tensors) -> torch.Tensor:
        scales = e8m0(tensors[scale]) if exponents else tensors[scale].float()
        if second is not None:
            factor = tensors[second].float().reshape(-1)
            scales = scales / factor if divides else scales * factor
        return _multiply(tensors[name], scales, size)

    return files.weight(whole, label, parts, dequantize)


def _gpt_oss(name: str, files: Files) -> Logical:
    """(experts, outputs, blocks, 16) bytes and (experts, outputs, blocks) exponents; the model means the transpose."""
    scale = name.removesuffix("_blocks") + "_scales"
    shape = files.stored[name].shape
    if len(shape) != 4 or shape[3] != MX_BLOCK // 2 or files.stored[scale].shape != shape[:3]:
        return files.weight(shape, "mxfp4", [name, scale], fault=unlike("GPT-OSS' MXFP4", files, name, scale))

    def dequantize(tensors: Tensors) -> torch.Tensor:  # of one expert
        return _multiply(tensors[name].flatten(1), e8m0(tensors[scale]), MX_BLOCK).t().contiguous()

    return files.weight((shape[0], 2 * shape[2] * shape[3], shape[1]), "mxfp4", [name, scale], dequantize)


def _multiply(packed: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    """Float32 (rows, columns) from bytes (rows, columns / 2) and scales (rows, columns / size)."""
    import torch

    code = torch.tensor(E2M1)
    result = torch.empty(packed.shape[0], 2 * packed.shape[1], dtype=torch.float32)
    for rows in row_chunks(tuple(result.shape)):
        numbers = code[unpack_nibbles(packed[rows]).int()]
        torch.mul(numbers, scales[rows].repeat_interleave(size, dim=1), out=result[rows])
    return result
