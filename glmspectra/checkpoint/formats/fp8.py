"""Eight-bit floating point with scales: of a tensor, a row, a column or a block, under any of the names in use.

`X.weight_scale` (compressed-tensors, ModelOpt, FBGEMM), `X.weight_scale_inv` (DeepSeek; a factor in spite of its name),
`X.scale` (DeepSeek-V4), `X.scale_weight` (ComfyUI), and `X_scale`, `X_scale_inv` of a weight whose name does not end in
`weight` (experts of three dimensions). All are multiplied. A scale in uint8 or float8_e8m0fnu is a power of two; in
uint8 with a block of 32 of a row that is MXFP8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.bits import e8m0, spread
from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.checkpoint.formats.settings import CompressedTensors, Fp8

if TYPE_CHECKING:
    import torch

MX_BLOCK = (1, 32)
USUAL_BLOCK = (128, 128)
WIDE = ("float32", "bfloat16", "float16", "float64")


def recognize(name: str, files: Files) -> Logical | None:
    """A weight in float8, with its scale or with the fault that it has none."""
    entry = files.stored[name]
    if not entry.dtype.startswith("float8_e") or entry.dtype == "float8_e8m0fnu" or len(entry.shape) < 2:
        return None
    if _belongs_to_another(name, files):
        return None
    module, _, word = name.rpartition(".")
    dot = module + "." if module else ""
    names = [name + "_scale_inv", name + "_scale", f"{name}.scale"]
    names += [f"{dot}scale", f"{dot}scale_weight"] if word == "weight" else []
    found = [scale for scale in names if scale in files.stored]
    if len(found) != 1:
        what = f"has several scales ({', '.join(found)})" if found else "has no scale in the files"
        fault = f"it is stored in {entry.dtype} and {what}: what its numbers mean cannot be known"
        return files.weight(entry.shape, "fp8", [name], fault=fault)
    return _scaled(name, found[0], files)


def _belongs_to_another(name: str, files: Files) -> bool:
    """Whether a float8 tensor is itself a scale (of NVFP4)."""
    return name.endswith(("_scale", ".scale", "_scale_inv"))


def _scaled(name: str, scale: str, files: Files) -> Logical:
    entry, scale_entry = files.stored[name], files.stored[scale]
    exponents = scale_entry.dtype in ("uint8", "float8_e8m0fnu")
    block = _block(entry.shape, scale_entry.shape, scale_entry.dtype, files)
    quantization = "mxfp8" if block == MX_BLOCK and exponents else "fp8"
    if block is None or not (exponents or scale_entry.dtype in WIDE):
        fault = unlike("float8 with a scale of a tensor, a row, a column or a block", files, name, scale)
        return files.weight(entry.shape, quantization, [name, scale], fault=fault)

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        weight = tensors[name]
        factors = e8m0(tensors[scale]) if exponents else tensors[scale].float()
        factors = spread(as_blocks(factors), tuple(weight.shape), block)
        result = torch.empty(weight.shape, dtype=torch.float32)
        for rows in row_chunks(tuple(weight.shape)):
            torch.mul(weight[rows].float(), factors[rows] if factors.shape[0] > 1 else factors, out=result[rows])
        return result

    return files.weight(entry.shape, quantization, [name, scale], dequantize)


def _block(shape: tuple[int, ...], scale: tuple[int, ...], dtype: str, files: Files) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None when the shapes do not fit."""
    if len(shape) == 3 and scale[:1] == shape[:1]:
        shape, scale = shape[1:], scale[1:]  # a stack: each expert has its own
    elif len(shape) == 3 and scale not in ((), (1,)):
        return None
    shape = shape[-2:]
    stated = files.settings.blocks if isinstance(files.settings, Fp8 | CompressedTensors) else []
    for block in [*stated, *([MX_BLOCK] if dtype == "uint8" else []), USUAL_BLOCK]:
        if fits(shape, scale, block):
            return block
    return None


def fits(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether scales of this shape are one a tensor, a row, a column or a block of a (rows, columns) weight."""
    if scale in ((), (1,), (1, 1)) or scale == (shape[0],):
        return True
    if len(scale) != 2:
        return False
    return all(n in (1, size, -(-size // b)) for n, size, b in zip(scale, shape, block, strict=True))


def as_blocks(scales: torch.Tensor) -> torch.Tensor:
    """Scales as (rows or blocks of rows, columns or blocks of columns); one dimension is one a row."""
    return scales if scales.dim() == 2 else scales.reshape(-1, 1)
