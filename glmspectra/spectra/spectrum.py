"""The singular values of one matrix (or of a range of its rows), each with a bound of its error."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

WHOLE = "whole"  # the part of a matrix that is all of it
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SingularVectors:
    """The leading singular triplets W v_i = sigma_i u_i that were asked for with `vectors=K`.

    left: (rows, K) float64, orthonormal columns u_i.
    right: (cols, K) float64, orthonormal columns v_i.
    residual: (K,) float64, ||W^T u_i - sigma_i v_i||, in the unit of W: how far each pair is from being exact.
    """

    left: FloatArray
    right: FloatArray
    residual: FloatArray


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a weight of shape (rows, cols).

    sigma: float64, descending. All min(rows, cols) of them for method 'exact', the k largest for 'topk', none when
        the weight holds NaN or Inf.
    error_bound: float64, same length; |sigma_i - true sigma_i| <= error_bound_i.
    rows, cols: shape of the part that was measured.
    method: how the values were computed: 'gram', 'gram+refined' (some of the small end by inverse iteration), 'svd'
        (all by a backward-stable factorization), 'topk', or 'factors' (of a product, from its factors: the values that
        are not exactly 0).
    frobenius: ||W||_F, exact up to rounding in float64 whatever the method.
    row_start: first row of the part in the whole matrix.
    status: 'ok' or 'nonfinite'.
    vectors: leading singular vectors, when asked for.
    """

    sigma: FloatArray
    error_bound: FloatArray
    rows: int
    cols: int
    method: str
    frobenius: float
    row_start: int = 0
    status: str = "ok"
    vectors: SingularVectors | None = field(default=None, repr=False)

    @property
    def order(self) -> int:
        """How many singular values the matrix has: min(rows, cols)."""
        return min(self.rows, self.cols)

    @property
    def complete(self) -> bool:
        """Whether every singular value is here."""
        return self.status == "ok" and self.sigma.size == self.order


def frobenius_of(sigma: FloatArray) -> float:
    """The root of the sum of squares of sigma (n,), descending; no square of it leaves the range of float64."""
    if not sigma.size or sigma[0] == 0:
        return 0.0
    return float(sigma[0] * np.sqrt(np.sum((sigma / sigma[0]) ** 2)))


def nonfinite_spectrum(rows: int, cols: int, row_start: int, method: str) -> Spectrum:
    """What stands for a weight that holds NaN or Inf: no values, NaN for the norm."""
    empty = np.empty(0)
    return Spectrum(empty, empty, rows, cols, method, float("nan"), row_start, status="nonfinite")
