"""optimum-quanto: `X.weight._data` and `X.weight._scale`; four and two bits have `X.weight._shift` too.

Eight bits (qint8, qfloat8): W = scale * q, one scale a row, a column or a tensor. Four and two bits (qint4, qint2) lie
in groups whose size is known only by the module's code, and are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.bits import spread
from glmspectra.checkpoint.formats.fp8 import as_blocks, fits
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike

if TYPE_CHECKING:
    import torch

EIGHT_BITS = ("int8", "float8_e4m3fn", "float8_e5m2")


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a `_data` with its `_scale`."""
    weight = next((name.removesuffix(end) for end in ("._data._data", "._data") if name.endswith(end)), name)
    scale, shift = weight + "._scale", weight + "._shift"
    if weight == name or scale not in files.stored:
        return None
    parts = [name, scale] + ([shift] if shift in files.stored else [])
    entry = files.stored[name]
    if shift in files.stored or entry.dtype not in EIGHT_BITS:
        fault = (
            "optimum-quanto's four and two bits do not say their groups in the file; take the eight-bit or original one"
        )
        return files.weight(entry.shape, "quanto", parts, fault=fault)
    label = f"quanto:{entry.dtype}"
    floating = files.stored[scale].dtype.startswith(("float", "bfloat"))
    if not floating or len(entry.shape) != 2 or not fits(entry.shape, files.stored[scale].shape, (1, entry.shape[-1])):
        return files.weight(entry.shape, label, parts, fault=unlike("optimum-quanto", files, *parts))

    def dequantize(tensors: Tensors) -> torch.Tensor:
        scales = spread(as_blocks(tensors[scale].float()), entry.shape, (1, 1))
        return tensors[name].float().mul_(scales)

    return files.weight(entry.shape, label, parts, dequantize)
