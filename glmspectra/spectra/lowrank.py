"""Spectra of a product scale * left @ right from its factors.

Also how its directions lie in a weight or beside another product.

Shapes throughout: left (rows, r), right (r, cols); LoRA's B and A. The product, rows x cols, is never made:
thin QR of left and of right^T leaves a core of r x r whose singular values are those of the product, and
Q_left U, Q_right V are its singular vectors. Everything is done in float64. Eigenvalues of the small Gram
product left^T left right right^T would be cheaper, but square the condition and lose all values below about 1e-8 of the
largest.
"""

from dataclasses import dataclass

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.spectrum import SingularVectors, Spectrum, frobenius_of


def check_factors(left: torch.Tensor, right: torch.Tensor) -> None:
    """Raises RequestError when left (rows, r) and right (r, cols) cannot be multiplied or hold no numbers."""
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise RequestError(
            f"factors of shapes {tuple(left.shape)} and {tuple(right.shape)} do not multiply: "
            "(rows, r) and (r, cols) are needed."
        )
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise RequestError(
            "a factor holds NaN or infinity: the adapter's training diverged, take an earlier checkpoint."
        )


def factor_spectrum(left: torch.Tensor, right: torch.Tensor, scale: float = 1.0, vectors: bool = False) -> Spectrum:
    """Exact singular values of scale * left @ right in O((rows + cols) r^2 + r^3), of method 'factors'.

    There are min(r, rows, cols) of them; the product's others are exactly 0. left (rows, r), right (r, cols), any float
    type; vectors: whether the singular vectors are wanted too. Raises RequestError when they do not multiply or are not
    finite.

    Example: a product of rank 1 held in factors of rank 2.

    >>> left = torch.tensor([[3.0, 3.0], [4.0, 4.0]])
    >>> factor_spectrum(left, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).sigma.round(12).tolist()
    [10.0, 0.0]
    """
    check_factors(left, right)
    rows, rank = left.shape
    cols = right.shape[1]
    if rank == 0:
        empty = np.zeros(0)
        nothing = SingularVectors(np.zeros((rows, 0)), np.zeros((cols, 0)), empty)
        return Spectrum(empty, empty, rows, cols, "factors", 0.0, vectors=nothing if vectors else None)
    mode = "reduced" if vectors else "r"
    q_left, r_left = torch.linalg.qr(left.double(), mode=mode)
    q_right, r_right = torch.linalg.qr(right.double().T, mode=mode)
    core = scale * (r_left @ r_right.T)
    u, sigma, vh = torch.linalg.svd(core, full_matrices=False)
    values = sigma.numpy()
    # Householder QR and the SVD are backward stable: errors are a small multiple of eps times the factors'
    # norms.
    scale_of_error = abs(scale) * float(torch.linalg.matrix_norm(r_left) * torch.linalg.matrix_norm(r_right))
    bound = np.full(values.shape, 4 * max(rank, 1) * np.finfo(np.float64).eps * scale_of_error)
    kept = SingularVectors((q_left @ u).numpy(), (q_right @ vh.T).numpy(), bound) if vectors else None
    return Spectrum(values, bound, rows, cols, "factors", frobenius_of(values), vectors=kept)


def factor_noise_floor(left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> float:
    """Largest singular value that rounding the factors to their stored type can have put into the product.

    A stored entry x carries an error of at most ulp/2 <= eps/2 |x|, spread evenly: standard deviation eps |x|
    / sqrt(12). Such noise E_left (rows, r) has spectral norm about std (sqrt(rows) + sqrt(r)) and enters as
    E_left @ right, likewise on the other side. Directions of the product below this floor cannot be distinguished from
    rounding: a planted delta of rank 3 in factors of rank 16 has thirteen of them.
    """
    if left.numel() == 0 or right.numel() == 0:
        return 0.0
    rows, rank = left.shape
    cols = right.shape[1]

    def spread(factor: torch.Tensor) -> float:
        eps = torch.finfo(factor.dtype).eps if factor.dtype.is_floating_point else 0.0
        return float(eps / np.sqrt(12) * float(factor.double().square().mean().sqrt()))

    def spectral_norm(gram: torch.Tensor) -> float:
        return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())  # the largest one suffers nothing by squaring

    wide_left, wide_right = left.double(), right.double()
    noise = spread(left) * (np.sqrt(rows) + np.sqrt(rank)) * spectral_norm(wide_right @ wide_right.T)
    noise += spread(right) * (np.sqrt(cols) + np.sqrt(rank)) * spectral_norm(wide_left.T @ wide_left)
    return float(abs(scale) * noise)


def numerical_rank(sigma: np.ndarray, floor: float) -> int:
    """How many of sigma (descending) stand above the floor and above float64's rounding of the largest."""
    if sigma.size == 0 or sigma[0] == 0:
        return 0
    return int(np.sum(sigma > max(floor, sigma[0] * sigma.size * 8 * np.finfo(np.float64).eps)))


def subspace_similarity(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Grassmann similarity of the leading directions of two orthonormal bases.

    Hu et al. 2021, LoRA, section 7.2, eq. 4.

    phi(i, j) = || first[:, :i]^T second[:, :j] ||_F^2 / min(i, j), from 0 (orthogonal) to 1 (one holds the
    other). first (n, a), second (n, b), orthonormal columns, best first; returns (a, b) with phi(i + 1, j +
    1) at [i, j].
    """
    overlap = (first.double().T @ second.double()).square()
    sums = overlap.cumsum(0).cumsum(1).numpy()
    i = np.arange(1, sums.shape[0] + 1)[:, None]
    j = np.arange(1, sums.shape[1] + 1)[None, :]
    return np.clip(sums / np.minimum(i, j), 0.0, 1.0)


def amplification_factor(delta: Spectrum, weight: torch.Tensor, directions: int | None = None) -> float:
    """How much delta-W amplifies its own directions over what W holds there.

    Hu et al. 2021, section 7.3, table 7.

    ||Delta||_F / || U^T W V ||_F with U, V the `directions` leading singular vectors of delta-W (all of them
    when None) and Delta cut to the same directions. weight (rows, cols). Infinity where W holds nothing in
    these directions, NaN where delta-W is 0.
    """
    left, right = _vectors(delta)
    known = left.shape[1]
    k = known if directions is None else min(directions, known)
    norm = float(np.sqrt(np.sum(delta.sigma[:k] ** 2)))
    if k == 0 or norm == 0:
        return float("nan")
    u, v = left[:, :k], right[:, :k]
    inside = float(torch.linalg.matrix_norm(project(weight, u).double() @ v))
    return norm / inside if inside > 0 else float("inf")


def _vectors(spectrum: Spectrum) -> tuple[torch.Tensor, torch.Tensor]:
    if spectrum.vectors is None:
        raise RequestError("singular vectors are needed here: factor_spectrum(..., vectors=True).")
    return torch.from_numpy(spectrum.vectors.left), torch.from_numpy(spectrum.vectors.right)


def project(weight: torch.Tensor, basis: torch.Tensor, chunk: int = 2048) -> torch.Tensor:
    """basis^T @ weight, (k, cols) float64, reading weight (rows, cols) of any float type `chunk` rows at a time."""
    result = torch.zeros(basis.shape[1], weight.shape[1], dtype=torch.float64)
    for start in range(0, weight.shape[0], chunk):
        rows = slice(start, start + chunk)
        result += basis[rows].double().T @ weight[rows].double()
    return result


@dataclass(frozen=True)
class AdapterSimilarity:
    """Two products beside each other.

    Cosine of the matrices, and similarity of the leading directions on both sides.
    """

    cosine: float
    left: float
    right: float
    directions: int


def adapter_similarity(first: Spectrum, second: Spectrum, directions: int | None = None) -> AdapterSimilarity:
    """Cosine <D1, D2> / (|D1| |D2|) and subspace similarity phi(k, k) on both sides, from factors alone.

    k: `directions`, at most the smaller number of non-zero directions. Needs vectors in both. NaN where one
    of them is 0.
    """
    first_left, first_right = _vectors(first)
    second_left, second_right = _vectors(second)
    if (first.rows, first.cols) != (second.rows, second.cols):
        raise RequestError(
            f"deltas of shapes {(first.rows, first.cols)} and {(second.rows, second.cols)} belong to different weights."
        )
    k = min(int(np.sum(first.sigma > 0)), int(np.sum(second.sigma > 0)))
    k = k if directions is None else min(k, directions)
    if k == 0:
        return AdapterSimilarity(float("nan"), float("nan"), float("nan"), 0)
    across_left = first_left.T @ second_left
    across_right = first_right.T @ second_right
    sigma_first, sigma_second = torch.from_numpy(first.sigma), torch.from_numpy(second.sigma)
    inner = float((sigma_first[:, None] * across_left * across_right * sigma_second[None, :]).sum())
    cosine = inner / (first.frobenius * second.frobenius)
    return AdapterSimilarity(
        cosine=float(np.clip(cosine, -1.0, 1.0)),
        left=float(across_left[:k, :k].square().sum().clamp_max(k) / k),
        right=float(across_right[:k, :k].square().sum().clamp_max(k) / k),
        directions=k,
    )
