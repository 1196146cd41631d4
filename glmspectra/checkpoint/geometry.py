"""Which matrix, or matrices, a tensor of two or more dimensions is: a weight, a stack of experts, or a convolution."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

EXPERTS = re.compile(r"(^|[._])(experts?|exps|moe|block_sparse_moe)([._]|$)")
CONVOLUTION = re.compile(r"(^|[._])(\w*conv\w*|patch_embed\w*|patch_embedding|patchify)([._]|$)")
# Families whose expert tensors are (experts, inputs, outputs): gate and up are no row ranges there.
INPUTS_FIRST = ("gpt_oss", "llama4", "llama4_text", "dbrx")


@dataclass(frozen=True)
class Geometry:
    """Matrices of a tensor.

    Attributes:
        rows, columns: of each of them; (out, in x kernel) of a convolution.
        experts: how many there are; 0 where the tensor is one matrix.
    """

    rows: int
    columns: int
    experts: int = 0


def geometry_of(name: str, shape: tuple[int, ...]) -> Geometry | None:
    """The matrices of a tensor, from its name and shape.

    None where it has fewer than two dimensions, or where more than two cannot be known to be experts or a convolution.
    """
    if len(shape) == 2:
        return Geometry(*shape)
    if len(shape) == 3 and EXPERTS.search(name):
        return Geometry(shape[1], shape[2], shape[0])
    if (len(shape) >= 3 and CONVOLUTION.search(name)) or (len(shape) in (4, 5) and name.endswith(".weight")):
        return Geometry(shape[0], prod(shape[1:]))
    return None


def outputs_first(config: Mapping[str, Any], columns: int) -> bool:
    """Whether an expert's gate_up matrix with so many columns is (outputs, inputs), as the configuration tells."""
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    return config.get("model_type") not in INPUTS_FIRST and config.get("hidden_size") == columns
