"""What an adapter does to one tensor of a base."""

from dataclasses import dataclass

import torch

from glmspectra.checkpoint.adapter.factors import Factors
from glmspectra.errors import CheckpointError


@dataclass
class TensorChange:
    """The change of one tensor; at least one of the five is set, and they apply in this order.

    Attributes:
        name: In the merged checkpoint.
        source: The base's tensor that it comes from; another one where a tied tensor is not stored itself.
        origin: The adapter, for messages.
        adapter_name: The adapter's name of it, where it has factors.
        replaced: What takes the tensor's place.
        factors: Low-rank change of it, the way round that the base stores it; of a convolution, of its matrix
            (out, in x kernel).
        experts: The same for each matrix of a stack (experts, rows, columns), in their order.
        rows: Numbers of tokens and the rows (tokens, width) that take theirs.
        added: What is added, for a bias.
    """

    name: str
    source: str
    origin: str
    adapter_name: str = ""
    replaced: torch.Tensor | None = None
    factors: Factors | None = None
    experts: tuple[Factors, ...] = ()
    rows: tuple[torch.Tensor, torch.Tensor] | None = None
    added: torch.Tensor | None = None

    @property
    def low_rank(self) -> bool:
        """Whether the change is known from factors alone, without the base's weight."""
        alone = self.replaced is None and self.rows is None and self.added is None
        return alone and self.factors is not None and not self.factors.needs_base

    @property
    def all_factors(self) -> tuple[Factors, ...]:
        """Those of the tensor, or of each matrix of the stack."""
        return self.experts if self.factors is None else (self.factors,)

    @property
    def only_rows(self) -> bool:
        """Whether nothing but single tokens was trained."""
        return self.rows is not None and self.replaced is None and self.factors is None

    def equals(self, other: "TensorChange") -> bool:
        """Whether both do the same to the same weight."""
        mine, theirs = self._tensors(), other._tensors()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {"replaced": self.replaced, "added": self.added}
        found |= {"tokens": self.rows[0], "rows": self.rows[1]} if self.rows is not None else {}
        if self.factors is not None:
            scale = torch.tensor(self.factors.scale, dtype=torch.float64)
            found |= {"left": self.factors.left, "right": self.factors.right, "scale": scale}
            found |= {"magnitude": self.factors.magnitude}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def merged(self, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The tensor that base and adapter make together, in dtype.

        weight: the published base's (dequantized), of any shape where it is replaced.

        Raises:
            CheckpointError: The shapes do not fit.
        """
        result = weight if self.replaced is None else self.replaced
        result = self._with_factors(result, dtype)
        if self.rows is not None:
            result = self._with_rows(result)
        if self.added is not None:
            result = result + self.added.to(dtype)
        return result

    def _with_factors(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self.experts:
            matrices = zip(self.experts, weight, strict=True)
            return torch.stack([factors.merged(matrix, dtype) for factors, matrix in matrices])
        if self.factors is None:
            return weight.to(dtype)
        return self.factors.merged(weight.flatten(1), dtype).reshape(weight.shape)

    def _with_rows(self, result: torch.Tensor) -> torch.Tensor:
        assert self.rows is not None
        tokens, rows = self.rows
        beyond = [token for token in tokens.tolist() if not 0 <= token < result.shape[0]]
        if beyond or rows.shape[1:] != result.shape[1:]:
            token = (beyond or tokens.tolist())[0]
            raise CheckpointError(
                f"{self.origin}: trains token {token} with rows of {list(rows.shape[1:])} numbers, and {self.name} has "
                f"shape {list(result.shape)}."
            )
        return result.index_copy(0, tokens, rows.to(result.dtype))
