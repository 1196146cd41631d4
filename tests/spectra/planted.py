"""Matrices whose singular values are known because they were put there."""

import numpy as np


def orthonormal(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Random orthonormal columns, shape (rows, cols), cols <= rows."""
    q, r = np.linalg.qr(rng.standard_normal((rows, cols)))
    return q * np.sign(np.diag(r))


def planted(rows: int, cols: int, sigma, seed: int = 0) -> np.ndarray:
    """A float64 matrix (rows, cols) with singular values `sigma`, to about 1e-16 of the largest."""
    rng = np.random.default_rng(seed)
    sigma = np.asarray(sigma, dtype=np.float64)
    k = sigma.size
    return (orthonormal(rows, k, rng) * sigma) @ orthonormal(cols, k, rng).T


def reference(weight: np.ndarray) -> np.ndarray:
    """Singular values by LAPACK's float64 SVD of the matrix itself."""
    return np.linalg.svd(np.asarray(weight, dtype=np.float64), compute_uv=False)
