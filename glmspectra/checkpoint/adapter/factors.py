"""What an adapter does to one base weight.

That is two factors, and for DoRA, KaSA and LoftQ the rule that needs the weight itself.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from glmspectra.checkpoint.formats.round_trip import loftq_base
from glmspectra.errors import CheckpointError, RequestError


class BaseRule(Protocol):
    """How a method replaces the published weight (rows, cols) before it adds its factors."""

    @property
    def method(self) -> str: ...

    def apply(self, weight: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class LoftQ:
    """A quantized copy (Li et al. 2023): bits 4 (NF4) or 8, rank of the residual, iterations of algorithm 1."""

    bits: int
    rank: int
    iterations: int
    method: str = "LoftQ"

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The dequantized copy, float32."""
        return loftq_base(weight, self.bits, self.rank, self.iterations)


@dataclass(frozen=True)
class Truncation:
    """The weight without its `dropped` smallest singular values (KaSA, arXiv 2412.06071)."""

    dropped: int
    method: str = "KaSA"

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The truncated weight, float32; raises CheckpointError where nothing would be left."""
        kept = min(weight.shape) - self.dropped
        if kept <= 0:
            raise CheckpointError(f"KaSA of rank {self.dropped} leaves nothing of a weight of {tuple(weight.shape)}.")
        u, sigma, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        truncated: torch.Tensor = (u[:, :kept] * sigma[:kept]) @ vh[:kept]
        return truncated


@dataclass(frozen=True)
class Factors:
    """The change of one base weight of shape (rows, cols): scale * left @ right, as stored (out_features, in_features).

    left (rows, k), right (k, cols), CPU. k is allotted_rank, twice that where the start of training is taken
    off (PiSSA, OLoRA: left = [B, -B0], right = [A; A0]).
    magnitude: (rows,), DoRA's m; the change then has full rank and needs the weight.
    rule: set where the method replaces the base's weight; the change from the published one then needs it too.
    transposed: the layer stores its weight as (in_features, out_features) (Conv1D, embeddings), where DoRA's norm runs
    over the rows.
    """

    name: str
    left: torch.Tensor
    right: torch.Tensor
    scale: float
    allotted_rank: int
    magnitude: torch.Tensor | None = None
    rule: BaseRule | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def needs_base(self) -> bool:
        """Whether the change cannot be computed without the base weight."""
        return self.magnitude is not None or self.rule is not None

    @property
    def is_zero(self) -> bool:
        """Whether the product is exactly zero: a factor is, or the start that is taken off is the same product."""
        half = self.left.shape[1] // 2
        same = self.left.shape[1] == 2 * half and torch.equal(self.left[:, :half], -self.left[:, half:])
        same = same and torch.equal(self.right[:half], self.right[half:])
        return same or self.scale == 0 or not (self.left.any() and self.right.any())

    def product(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The product scale * left @ right, (rows, cols): the dense matrix, for merging and for checks."""
        return (self.scale * (self.left.to(dtype) @ self.right.to(dtype))).to(dtype)

    def merged(self, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight that base and adapter make together, (rows, cols) in dtype.

        weight: the published base weight (rows, cols); quantized ones dequantized. DoRA (Liu et al. 2024, eq.
        5): m (W + D) / ||W + D||, the norm over each output's row. LoftQ and KaSA: Q + D with Q made again from W.
        Raises CheckpointError when the shapes differ.
        """
        if tuple(weight.shape) != self.shape:
            raise CheckpointError(
                f"{self.name}: the adapter changes a weight of shape {self.shape}, the base holds "
                f"{tuple(weight.shape)}; was it trained on this base?"
            )
        merged = weight.to(dtype)
        if self.rule is not None:
            merged = self.rule.apply(merged).to(dtype)
        merged = merged + self.product(dtype)
        if self.magnitude is not None:
            over = 0 if self.transposed else 1
            norm = torch.linalg.vector_norm(merged, dim=over, keepdim=True)
            magnitude = self.magnitude.to(dtype).reshape((1, -1) if self.transposed else (-1, 1))
            merged = merged * (magnitude / norm)
        return merged

    def delta(self, weight: torch.Tensor | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Dense change of the published base weight, (rows, cols) in dtype; `weight` is needed where `needs_base`.

        Raises RequestError where it is needed and absent.
        """
        if not self.needs_base:
            return self.product(dtype)
        if weight is None:
            what = self.rule.method if self.rule is not None else "DoRA"
            raise RequestError(
                f"{self.name}: the change that {what} makes depends on the base weight: name the base too."
            )
        return self.merged(weight, dtype) - weight.to(dtype)

    def less(self, start: "Factors") -> "Factors":
        """Factors of this change without those of its start: [left, -left_0] and [right; right_0].

        left (rows, r) -> (rows, r + r_0), right (r, cols) -> (r + r_0, cols); the start's scale is brought to this one.

        Raises:
            CheckpointError: The start is of another shape.
        """
        if start.shape != self.shape:
            raise CheckpointError(
                f"{self.name}: the initial adapter changes a weight of shape {start.shape}, this one of {self.shape}; "
                "they are of different runs."
            )
        left = start.left if start.scale == self.scale else start.left * (start.scale / self.scale)
        return replace(
            self,
            left=torch.cat([self.left, -left.to(self.left.dtype)], dim=1),
            right=torch.cat([self.right, start.right.to(self.right.dtype)], dim=0),
        )

    def turned(self) -> "Factors":
        """The factors of the transposed product."""
        return replace(self, left=self.right.T, right=self.left.T)

    def forward(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The product inputs @ (base and adapter together)^T, (n, rows) float32.

        As the layer computes it, by the factors: the merged weight is not made. inputs (n, cols), weight (rows,
        cols). DoRA's norms come from the factors' Gram matrices:
        ||W + s L R||^2 = ||W||^2 + 2 s <W R^T, L> + s^2 <L R R^T, L>, row by row (or column by column).
        """
        base = weight.float() if self.rule is None else self.rule.apply(weight.float())
        left, right = self.left.float(), self.right.float()
        result = inputs @ base.T + self.scale * ((inputs @ right.T) @ left.T)
        if self.magnitude is None:
            return result
        wide, tall = (base.T, (right.T, left.T)) if self.transposed else (base, (left, right))
        across = ((wide.double() @ tall[1].double().T) * tall[0].double()).sum(1)
        square = ((tall[0].double() @ (tall[1].double() @ tall[1].double().T)) * tall[0].double()).sum(1)
        norm = (wide.double().square().sum(1) + 2 * self.scale * across + self.scale**2 * square).clamp_min(0).sqrt()
        factor = (self.magnitude.double() / norm).float()
        if not self.transposed:
            return result * factor
        scaled = inputs * factor
        return scaled @ base.T + self.scale * ((scaled @ right.T) @ left.T)
