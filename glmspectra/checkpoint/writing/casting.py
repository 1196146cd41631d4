"""A tensor in another type of floating-point numbers, or the reason why it does not fit."""

import math

import torch

from glmspectra.device import dtype_name
from glmspectra.errors import CheckpointError


def cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The tensor of this name in `dtype`.

    Raises:
        CheckpointError: A finite number would become infinite, or all numbers that are not 0 would become 0.
    """
    converted = tensor.to(dtype)
    if tensor.dtype == dtype or not tensor.is_floating_point() or tensor.numel() == 0:
        return converted
    low, high = (float(end) for end in torch.aminmax(converted))  # without a copy; NaN where one is
    target, largest = dtype_name(dtype), float(torch.finfo(dtype).max)
    sound = math.isfinite(low) and math.isfinite(high)
    if not sound and bool((torch.isinf(converted) & torch.isfinite(tensor)).any()):
        most = float(tensor[torch.isfinite(tensor)].abs().max())
        raise CheckpointError(
            f"{name}: holds {most:.3g}, and {target} ends at {largest:.3g}: it would be written as infinity; "
            "take bfloat16 or float32, or leave --dtype out."
        )
    if low == high == 0 and bool(tensor.any()):
        most = float(tensor.abs().max())
        raise CheckpointError(
            f"{name}: its largest number is {most:.3g}, which {target} rounds to 0: nothing of it would be left; "
            "take bfloat16 or float32, or leave --dtype out."
        )
    return converted
