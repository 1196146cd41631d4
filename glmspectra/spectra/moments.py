"""Moments of a stream of chunks, added up without cancellation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from glmspectra.spectra.spectrum import FloatArray


@dataclass(frozen=True)
class Moments:
    """count, mean and sums of 2nd to 4th powers of (x - mean), float64."""

    count: int = 0
    mean: float = 0.0
    second: float = 0.0
    third: float = 0.0
    fourth: float = 0.0

    def merged(self, other: Moments) -> Moments:
        """Moments of both samples together (Pebay, Sandia report SAND2008-6212, eqs. 2.1 and 3.1)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        a, b = self.count, other.count
        n = a + b
        d = other.mean - self.mean
        dn = d / n
        second = self.second + other.second + a * b * d * dn
        third = self.third + other.third + a * b * (a - b) * d * dn**2 + 3 * dn * (a * other.second - b * self.second)
        fourth = (
            self.fourth
            + other.fourth
            + a * b * (a * a - a * b + b * b) * d * dn**3
            + 6 * dn**2 * (a * a * other.second + b * b * self.second)
            + 4 * dn * (a * other.third - b * self.third)
        )
        return Moments(n, self.mean + b * dn, second, third, fourth)

    @property
    def std(self) -> float:
        """Population standard deviation (divided by count)."""
        return float(np.sqrt(self.second / self.count)) if self.count else float("nan")

    @property
    def skewness(self) -> float:
        """Third standardised moment; NaN for a constant."""
        return self._standardised(self.third, 3)

    @property
    def excess_kurtosis(self) -> float:
        """Fourth standardised moment less 3; NaN for a constant."""
        return self._standardised(self.fourth, 4) - 3

    def _standardised(self, power_sum: float, power: int) -> float:
        return power_sum / self.count / self.std**power if self.second > 0 else float("nan")


def weighted_sum(weights: FloatArray, values: FloatArray) -> float:
    """Sum of weights[i] * values[i], both (n,), n up to 65,536.

    Not by BLAS: waking its threads takes longer than the sum, and milliseconds where the processor is shared.
    """
    return float(np.einsum("i,i->", weights, values))


def moments_of_counts(values: FloatArray, counts: npt.NDArray[np.int64]) -> Moments:
    """Moments of finite values that occur `counts` times each."""
    count = int(counts.sum())
    if count == 0:
        return Moments()
    weights = counts.astype(np.float64)
    mean = weighted_sum(weights, values) / count
    centered = values - mean
    squared = centered * centered
    return Moments(
        count,
        mean,
        weighted_sum(weights, squared),
        weighted_sum(weights, squared * centered),
        weighted_sum(weights, squared * squared),
    )


def moments_of_chunk(chunk: torch.Tensor) -> Moments:
    """Moments of a 1-D tensor of finite values, computed in float64."""
    if chunk.numel() == 0:
        return Moments()
    wide = chunk.double()
    mean = wide.mean()
    centered = wide - mean
    squared = centered * centered
    sums = torch.stack([mean, squared.sum(), (squared * centered).sum(), (squared * squared).sum()]).tolist()
    return Moments(chunk.numel(), *sums)
