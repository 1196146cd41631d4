"""What an adapter does to one base weight: two factors, and for DoRA and LoftQ the rule that needs the weight
itself.
"""

from dataclasses import dataclass

import torch

from glmspectra.checkpoint.formats.round_trip import loftq_base
from glmspectra.errors import CheckpointError, RequestError


@dataclass(frozen=True)
class LoftQ:
    """How LoftQ made its base: bits 4 (NF4) or 8, rank of the residual, iterations of its algorithm 1."""

    bits: int
    rank: int
    iterations: int


@dataclass(frozen=True)
class Factors:
    """The change of one base weight of shape (rows, cols): scale * left @ right, as stored (out_features,
    in_features).

    left (rows, k), right (k, cols), CPU. k is allotted_rank, twice that where the start of training is taken
    off (PiSSA, OLoRA: left = [B, -B0], right = [A; A0]).
    magnitude: (rows,), DoRA's m; the change then has full rank and needs the weight.
    loftq: set where the base was replaced by LoftQ's; the change from the published weight then needs the
    weight too.
    transposed: the layer stores its weight as (in_features, out_features) (fan_in_fan_out, embeddings).
    """

    name: str
    left: torch.Tensor
    right: torch.Tensor
    scale: float
    allotted_rank: int
    magnitude: torch.Tensor | None = None
    loftq: LoftQ | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def needs_base(self) -> bool:
        """Whether the change cannot be told without the base weight."""
        return self.magnitude is not None or self.loftq is not None

    def product(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """scale * left @ right, (rows, cols): the dense form, for merging and for checks."""
        return (self.scale * (self.left.to(dtype) @ self.right.to(dtype))).to(dtype)

    def merged(self, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that base and adapter make together, (rows, cols) in dtype.

        weight: the published base weight (rows, cols); quantised ones dequantised. DoRA (Liu et al. 2024, eq.
        5): m (W + D) / ||W + D||, the norm over each output's row. LoftQ (Li et al. 2023): Q + D with Q made
        again from W. Raises CheckpointError when the shapes differ.
        """
        if tuple(weight.shape) != self.shape:
            raise CheckpointError(
                f"{self.name}: the adapter changes a weight of shape {self.shape}, the base holds "
                f"{tuple(weight.shape)}; was it trained on this base?"
            )
        merged = weight.to(dtype)
        if self.loftq is not None:
            merged = loftq_base(merged, self.loftq.bits, self.loftq.rank, self.loftq.iterations).to(dtype)
        merged = merged + self.product(dtype)
        if self.magnitude is not None:
            over = 0 if self.transposed else 1
            norm = torch.linalg.vector_norm(merged, dim=over, keepdim=True)
            magnitude = self.magnitude.to(dtype).reshape((1, -1) if self.transposed else (-1, 1))
            merged = merged * (magnitude / norm)
        return merged

    def delta(self, weight: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Dense change of the published base weight, (rows, cols) in dtype; `weight` is needed for DoRA and
        LoftQ only.

        Raises RequestError where it is needed and absent.
        """
        if not self.needs_base:
            return self.product(dtype)
        if weight is None:
            what = "DoRA" if self.magnitude is not None else "LoftQ"
            raise RequestError(
                f"{self.name}: the change that {what} makes depends on the base weight: name the base too."
            )
        return self.merged(weight, dtype) - weight.to(dtype)
