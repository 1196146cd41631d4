"""LoRA on convolutions: A (rank, in, kernel ...) and B (out, rank, 1 ...) multiply to the matrix (out, in x kernel)."""

from collections.abc import Mapping
from math import prod

import torch

from glmspectra.checkpoint.adapter.layout import BaseLayout
from glmspectra.errors import CheckpointError


def as_factors(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """B (out, rank) and A (rank, in), kernels flattened; None where they do not multiply to a matrix."""
    if kernel_of({"lora_B": left, "lora_A": right}) is not None:
        left, right = left.flatten(1), right.flatten(1)
    return (left, right) if left.ndim == right.ndim == 2 and right.shape[0] == left.shape[1] else None


def kernel_of(parts: Mapping[str, torch.Tensor]) -> tuple[int, ...] | None:
    """Inputs and kernel, where the factors are those of a convolution; else None."""
    left, right = parts.get("lora_B"), parts.get("lora_A")
    if left is None or right is None or not 2 < left.ndim == right.ndim or prod(left.shape[2:]) != 1:
        return None
    return tuple(right.shape[1:])


def as_matrix(base: BaseLayout, source: str, kernel: tuple[int, ...], peft_method: str, where: str) -> BaseLayout:
    """The base with the convolution's weight as the matrix that its factors multiply to.

    Raises:
        CheckpointError: The layer of the base is another one, or the method is none that PEFT has for convolutions.
    """
    shape = tuple(base.shapes[source])
    if shape[1:] != kernel or peft_method not in ("lora", "rslora", "dora"):
        grouped = len(shape) == len(kernel) + 1 and shape[2:] == kernel[1:] and shape[1] < kernel[0]
        why = "is one in groups, which PEFT does not merge" if grouped else f"has a weight of shape {list(shape)}"
        raise CheckpointError(
            f"{where} has {peft_method} factors of a convolution over {list(kernel)}, and the layer of the base {why}."
        )
    return base.with_shape(source, (shape[0], prod(kernel)))
