"""torchao: `X._weight_qdata` beside `X._weight_scale`; which of torchao's classes it was, by the header's metadata.

The header maps a weight's name to its class with its fields (torchao 0.18, prototype/safetensors). Of three classes the
rule is (q - zero) * scale, the scales being those of equal blocks of rows and columns, as torchao's `dequantize_affine`
computes it; the others lie as one GPU's kernels want them, and are refused by their names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from glmspectra.checkpoint.formats.bits import spread
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.errors import CheckpointError
from glmspectra.json_files import parse_json, validate

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"^((?:.*\.)?)_(\w+)_qdata$")
EIGHT_BITS = ("int8", "float8_e4m3fn", "float8_e5m2")
# Class -> the parts that its weight is made of, beside which stands what its inputs are rounded by.
CLASSES = {
    "Int8Tensor": {"qdata", "scale", "zero_point", "act_quant_scale", "act_quant_zero_point"},
    "Float8Tensor": {"qdata", "scale"},
    "IntxUnpackedToInt8Tensor": {"qdata", "scale", "zero_point"},
}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="ignore")  # how a layer computes
    block_size: list[int] = Field(min_length=2, max_length=2)


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: str = Field(alias="_type")
    data: dict[str, Any] = Field(alias="_data")
    names: list[str] = Field(alias="_tensor_data_names")


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a `_qdata`."""
    found = NAME.match(name)
    if found is None:
        return None
    weight, prefix, entry = f"{found[1]}{found[2]}", name.removesuffix("qdata"), files.stored[name]
    try:
        stated = parse_json(files.metadata.get(weight, "null"), "its header", CheckpointError)
        tensor = validate(stated, _Tensor, "its header")
    except CheckpointError as fault:
        reason = f"it is written by torchao, and {str(fault).removesuffix('.')}"
        return files.weight(entry.shape, "torchao", [name], fault=reason)
    known = [word for word in ("scale", "zero_point") if prefix + word in files.stored]
    parts = [name, *(prefix + word for word in known)]
    if not set(tensor.names) <= CLASSES.get(tensor.type, set()):
        return files.weight(entry.shape, "torchao", parts, fault=_not_read(tensor))
    label = f"torchao:{entry.dtype}"
    block = _block(entry.shape, tensor, files, parts)
    if block is None or {"qdata", *known} != set(tensor.names) & {"qdata", "scale", "zero_point"}:
        return files.weight(entry.shape, label, parts, fault=unlike("torchao", files, *parts))
    scale, zero = prefix + "scale", prefix + "zero_point" if "zero_point" in known else None

    def dequantize(tensors: Tensors) -> torch.Tensor:
        result = tensors[name].float()
        if zero is not None:
            result = result - spread(tensors[zero].float(), entry.shape, block)
        return result * spread(tensors[scale].float(), entry.shape, block)

    return files.weight(entry.shape, label, parts, dequantize)


def _not_read(tensor: _Tensor) -> str:
    further = sorted(set(tensor.names) - CLASSES.get(tensor.type, set(tensor.names)))
    what = f"with {further[0]}, which changes its inputs" if further else "whose numbers lie as a kernel wants them"
    return f"it is an {tensor.type[:60]} of torchao {what}; take the model in its original precision"


def _block(shape: tuple[int, ...], tensor: _Tensor, files: Files, parts: list[str]) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None where the parts do not fit."""
    try:
        rows, columns = validate(tensor.data, _Fields, "its header").block_size
    except CheckpointError:
        return None
    qdata, *others = (files.stored[part] for part in parts)
    if len(shape) != 2 or rows < 1 or columns < 1 or shape[0] % rows or shape[1] % columns or not others:
        return None
    blocks = (shape[0] // rows, shape[1] // columns)
    floating = others[0].dtype.startswith(("float", "bfloat")) and others[0].name.endswith("scale")
    fit = qdata.dtype in EIGHT_BITS and floating and all(other.shape == blocks for other in others)
    return (rows, columns) if fit else None
