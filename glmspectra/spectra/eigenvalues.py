"""Eigenvalues, without eigenvectors, of a symmetric float64 matrix.

LAPACK's dsytrd reduces to tridiagonal form in one stage, half of whose operations are products of the
trailing matrix with one vector: at order 4096 it streams 128 MiB from memory for every column, and no faster processor
helps. On the CPU we go in two stages (Bischof, Lang & Sun, A framework for symmetric band reduction, ACM TOMS 26(4),
2000): to a band by products of matrices with matrices, which run from cache, then from the band to tridiagonal form and
its eigenvalues by LAPACK's dsbevd. Both stages are orthogonal transformations, as stable as the one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eig_banded

from glmspectra.spectra.spectrum import FloatArray

# Half bandwidth: wider makes the first stage's products more efficient and the second stage longer. Processor
# seconds of both stages at order 4096, one core of an EPYC 9004: 32: 5.0 + 0.8, 64: 3.4 + 0.9, 96: 2.8 + 1.3,
# 128: 3.2 + 3.1; the second stage runs on one core only, which is why 64.
BANDWIDTH = 64
# Rows of the trailing matrix that are updated together: a strip of 256 x 4096 float64 is 8 MiB, and stays in cache.
STRIP = 256
# Below this order the matrix fits a cache of 64 MiB, and one stage is as fast (0.6 s either way at 2048).
TWO_STAGE_FROM = 3000


def symmetric_eigenvalues(matrix: torch.Tensor) -> FloatArray:
    """All eigenvalues, ascending, of a symmetric (n, n) float64 matrix, which is overwritten.

    On the CPU only the lower triangle is read.
    """
    if matrix.is_cuda:
        found: FloatArray = torch.linalg.eigvalsh(matrix).cpu().numpy()
        return found
    if matrix.shape[0] < TWO_STAGE_FROM:
        return np.linalg.eigvalsh(matrix.numpy(), UPLO="L")
    band = reduce_to_band(matrix, BANDWIDTH)
    values: FloatArray = eig_banded(band, lower=True, eigvals_only=True, overwrite_a_band=True, check_finite=False)
    return values


def reduce_to_band(matrix: torch.Tensor, bandwidth: int) -> FloatArray:
    """Reduce a symmetric (n, n) CPU float64 matrix to a band with the same eigenvalues: shape (bandwidth + 1, n).

    Only the lower triangle of `matrix` is read; it is overwritten. Row d of the result is the d-th subdiagonal, padded
    with zeros at the end (LAPACK's lower band storage).

    Column block after column block, the part below the band is made upper triangular by Householder reflections Q =
    I - V T V^T, and the trailing matrix B becomes Q^T B Q = B - V Z^T - Z V^T with Y = B V T and
    Z = Y - V (T^T V^T Y) / 2 (Bischof, Lang & Sun, sec. 3).
    """
    n = matrix.shape[0]
    array = matrix.numpy()
    for column in range(0, n - bandwidth, bandwidth):
        first = column + bandwidth
        below = matrix[first:, column:first]
        vectors, scaled, triangle = _block_reflection(below)
        below.copy_(triangle)
        trailing = matrix[first:, first:]
        product = _symmetric_times(trailing, scaled)
        update = product - vectors @ (scaled.T @ product) / 2
        left = torch.cat([vectors, update], dim=1)
        right = torch.cat([update, vectors], dim=1)
        for start in range(0, n - first, STRIP):
            stop = min(start + STRIP, n - first)
            trailing[start:stop, :stop].addmm_(left[start:stop], right[:stop].T, alpha=-1)
    band = np.zeros((bandwidth + 1, n))
    for offset in range(min(bandwidth + 1, n)):
        band[offset, : n - offset] = array.diagonal(-offset)
    return band


def _block_reflection(panel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """QR of a panel (k, b) in compact form: V and V T, both (k, min(k, b)), Q = I - V T V^T; and R, shape (k, b)."""
    factored, tau = torch.geqrf(panel)
    reflections = tau.numel()
    vectors = factored[:, :reflections].tril(-1)
    vectors.diagonal().fill_(1.0)
    idle = tau == 0  # nothing to annihilate: the reflection is the identity
    vectors[:, idle] = 0.0
    # inv(T) = diag(1 / tau) + the strict upper triangle of V^T V (Puglisi, SIAM J. Sci. Stat. Comput. 13(3), 1992).
    inverse = (vectors.T @ vectors).triu(1)
    inverse.diagonal().copy_(torch.where(idle, 1.0, tau).reciprocal())
    scaled = torch.linalg.solve_triangular(inverse, vectors, upper=True, left=False)
    return vectors.contiguous(), scaled.contiguous(), factored.triu()


def _symmetric_times(matrix: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """B @ block for a symmetric B (k, k) of which only the lower triangle counts; each strip of B is read once."""
    product = torch.zeros_like(block)
    for start in range(0, matrix.shape[0], STRIP):
        stop = min(start + STRIP, matrix.shape[0])
        strip = matrix[start:stop]
        lower = strip[:, start:stop].tril()
        product[start:stop].addmm_(lower + lower.tril(-1).T, block[start:stop])
        product[start:stop].addmm_(strip[:, :start], block[:start])
        product[:start].addmm_(strip[:, :start].T, block[start:stop])
    return product
