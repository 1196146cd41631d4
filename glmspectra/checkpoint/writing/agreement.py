"""Whether a written tensor is base and adapter together, checked on random inputs and without making it again.

Rounding a weight w to a type of relative spacing eps changes it by less than eps |w| / 2, evenly spread. The output of
an input x then has a standard deviation of at most eps sqrt(sum x_j^2 w_j^2) / sqrt(12), from which both bounds below
follow. So a change that was left out, scaled or put into the wrong rows shows wherever it is larger than rounding,
however small it is beside the weight.
"""

from dataclasses import dataclass

import torch

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.formats.chatglm_int import row_chunks

INPUTS = 4  # random inputs of each changed layer
MEAN, ONE = 1.5 / 12**0.5, 8 / 12**0.5  # of eps: the root mean square of all outputs, and any one of them
FLOAT32_MEAN, FLOAT32_ONE = 2e-5, 1e-4  # what float32 sums, norms and decompositions are apart, of the same size


@dataclass(frozen=True)
class Agreement:
    """How far a written tensor is from base and adapter.

    Attributes:
        error: Root mean square of the difference on random inputs, relative to that of the outputs.
        holds: Whether it lies within what rounding does.
    """

    error: float
    holds: bool


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are one to the bit."""
    alike = first.dtype == second.dtype and first.shape == second.shape
    return alike and torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def agreement(change: TensorChange, found: torch.Tensor, stored: torch.Tensor, generator: torch.Generator) -> Agreement:
    """Compare `found`, as it was written, with what `change` makes of the base's tensor `stored`.

    Factors are multiplied with random inputs as the layer computes them; what has none is the same to the bit.
    """
    if not change.all_factors:
        same = same_bits(found, change.merged(stored).to(found.dtype))
        return Agreement(0.0 if same else 1.0, same)
    before = (stored if change.replaced is None else change.replaced).float()
    stack = before.unsqueeze(0) if change.factors is not None else before
    spacing = torch.finfo(found.dtype)
    error, output, allowed, beyond = 0.0, 0.0, 0.0, False
    for factors, plain, written in zip(change.all_factors, stack, found.reshape(stack.shape), strict=True):
        base, merged = plain.flatten(1), written.flatten(1).float()
        inputs = torch.randn(INPUTS, base.shape[1], generator=generator)
        expected, got = factors.forward(inputs, base), inputs @ merged.T
        if change.rows is not None:
            tokens, rows = change.rows
            expected = expected.index_copy(1, tokens, inputs @ rows.float().T)
        size = _size(inputs, merged, spacing.smallest_normal)
        both = size + _size(inputs, base)
        apart = (got - expected).abs()
        beyond |= not bool((apart <= ONE * spacing.eps * size + FLOAT32_ONE * both).all())
        error += float(apart.double().square().sum())
        output += float(expected.double().square().sum())
        allowed += float((MEAN * spacing.eps * size + FLOAT32_MEAN * both).double().square().sum())
    relative = (error / output) ** 0.5 if output > 0 else float(error > 0)
    return Agreement(relative, not beyond and error <= allowed)


def _size(inputs: torch.Tensor, matrix: torch.Tensor, least: float = 0.0) -> torch.Tensor:
    """The root of sum x_j^2 (w_j^2 + least^2) for each input and row, (inputs, rows); some rows at a time."""
    squares = inputs.square()
    parts = [squares @ matrix[rows].square().T for rows in row_chunks(matrix.shape)]
    return (torch.cat(parts, dim=1) + least**2 * squares.sum(1, keepdim=True)).sqrt()
