"""How far a computed singular value can be from the true one.

The Gram method computes eigenvalues lambda of W^T W. Forming the product and reducing it by orthogonal maps is
backward stable: the computed eigenvalues are exact for a matrix within eta = c u lambda_1 in 2-norm (u = 2^-53), so by
Weyl |lambda_i - sigma_i^2| <= eta and the relative error of sigma_i grows as (sigma_1 / sigma_i)^2.

The constant: the worst-case c of the textbooks is of order n * sqrt(n) (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., thm 19.5 and sec. 3.5), which no computation comes near and which would send most square matrices
to a slower method. Rounding errors behave as independent ones, and c then grows as the square root of the number of
operations on an entry (Higham & Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput.
41(5), 2019, thm 3.1). We take that root with a safety factor; tests/spectra/test_bounds.py holds it against matrices of
known spectrum, ill-conditioned, graded, clustered and of one sign, where the largest share of the bound ever used is
recorded.
"""

from __future__ import annotations

import numpy as np

from glmspectra.spectra.spectrum import FloatArray

UNIT_ROUNDOFF = 2.0**-53
# Safety over the square-root law for the eigensolver and for the sums of the Gram matrix.
EIGENSOLVER_FACTOR = 8.0
SUMMATION_FACTOR = 2.0
# Values below this share of the largest count as found when their absolute error is below it.
ABSOLUTE_FLOOR = 1e-10


def backward_error(long: int, short: int) -> float:
    """Backward error of a computed spectrum, relative to its largest value.

    Of the eigenvalues of a Gram matrix (short, short), each entry a sum of `long` terms, it is eta / lambda_1; of the
    singular values from an orthogonal factorization of W (long, short) itself, without squaring, eta / sigma_1.
    """
    return float(UNIT_ROUNDOFF * (8.0 + EIGENSOLVER_FACTOR * np.sqrt(short) + SUMMATION_FACTOR * np.sqrt(long)))


def sigma_from_eigenvalues(eigenvalues: FloatArray, relative_error: float) -> tuple[FloatArray, FloatArray]:
    """Singular values, descending, and their error bounds, from eigenvalues of a Gram matrix (ascending or not).

    `relative_error`: eta / lambda_1 as of `backward_error`. With |lambda - sigma^2| <= eta the true value lies
    between sqrt(max(lambda - eta, 0)) and sqrt(lambda + eta); the farther end is the bound.
    """
    ordered = np.sort(eigenvalues)[::-1]
    clipped = np.maximum(ordered, 0.0)
    eta = relative_error * clipped[0] if clipped.size else 0.0
    sigma = np.sqrt(clipped)
    low = np.sqrt(np.maximum(ordered - eta, 0.0))
    high = np.sqrt(np.maximum(ordered + eta, 0.0))
    bound = np.maximum(sigma - low, high - sigma) + 4 * UNIT_ROUNDOFF * sigma
    return sigma, bound


def accepted(sigma: FloatArray, bound: FloatArray, rtol: float) -> np.ndarray:
    """Which values are good enough: bound <= max(rtol * sigma_i, 1e-10 * sigma_1)."""
    if sigma.size == 0:
        return np.zeros(0, dtype=bool)
    found: np.ndarray = bound <= np.maximum(rtol * sigma, ABSOLUTE_FLOOR * sigma[0])
    return found
