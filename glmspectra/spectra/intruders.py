"""Merged spectrum and intruder dimensions of W + delta-W from Gram matrices: W is read once, W + delta-W is never made.

With n the smaller side of W, everything follows from n x n products. Written for rows >= cols (else of W^T):

    G  = W^T W = V Sigma^2 V^T
    G' = (W + D)^T (W + D) = G + (W^T L) R + R^T (L^T W) + R^T (L^T L) R     for D = L R of rank r
    U'^T U = Sigma'^-1 V'^T (W + D)^T W V Sigma^-1,    (W + D)^T W = G + R^T (L^T W)

so G' is a rank-2r update of the stored G. Values and their error bounds are those of every Gram matrix here
(`gram.py`, `bounds.py`).
"""

from dataclasses import dataclass

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import backward_error, sigma_from_eigenvalues
from glmspectra.spectra.gram import diagonal_is_finite, full_gram
from glmspectra.spectra.transfer import to_device

INTRUDER_DIRECTIONS = 10  # k of the paper's main figures
INTRUDER_EPSILON = 0.5  # its main threshold; lower finds fewer intruders, higher finds more and more false ones


@dataclass(frozen=True)
class GramOfWeight:
    """The n x n Gram matrix of a weight, its eigenvectors and singular values; `transposed` when rows < cols.

    gram (n, n) float64; sigma (n,) float64 descending; vectors (n, n): right singular vectors of W, or left
    ones when transposed. error_bound (n,).
    """

    gram: torch.Tensor
    sigma: np.ndarray
    vectors: torch.Tensor
    error_bound: np.ndarray
    rows: int
    cols: int

    @property
    def transposed(self) -> bool:
        return self.rows < self.cols


def gram_of_weight(weight: torch.Tensor, device: str | torch.device = "cpu") -> GramOfWeight:
    """Gram matrix over the smaller side, summed in float64 by blocks, and its eigenvectors.

    weight (rows, cols), any float type. Raises RequestError when it is not a finite matrix.
    """
    if weight.ndim != 2:
        raise RequestError(f"a matrix is needed, not a tensor of shape {tuple(weight.shape)}.")
    view = LongView(to_device(weight, torch.device(device)))
    gram = full_gram(view)
    if not diagonal_is_finite(gram):
        raise RequestError("the weight holds NaN or infinity: it has no spectrum.")
    sigma, vectors, bound = _eigen(gram, backward_error(view.long, view.short))
    return GramOfWeight(gram, sigma, vectors, bound, *weight.shape)


def _eigen(gram: torch.Tensor, relative_error: float) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Singular values, descending, eigenvectors in their order, and error bounds, from a full Gram matrix."""
    values, vectors = torch.linalg.eigh(gram)
    sigma, bound = sigma_from_eigenvalues(values.cpu().numpy(), relative_error)
    return sigma, vectors.flip(1), bound


@dataclass(frozen=True)
class MergedSpectrum:
    """Spectrum of W + delta-W, and the similarity of its leading left singular vectors to those of W.

    sigma, error_bound: (n,) float64 descending. best_cosine: (k,), for each of the k leading left singular
    vectors of W + delta-W the largest |cosine| with any left singular vector of W.
    """

    sigma: np.ndarray
    error_bound: np.ndarray
    best_cosine: np.ndarray

    def intruders(self, epsilon: float = INTRUDER_EPSILON) -> int:
        """How many of the k leading directions are unlike every direction of W.

        Shuttleworth et al. 2024 (arXiv 2410.21228), definition 1 of an intruder dimension:
        max_i |cos(u'_j, u_i)| < epsilon.
        """
        return int(np.sum(self.best_cosine < epsilon))


def merged_spectrum(
    base: GramOfWeight,
    weight: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    scale: float = 1.0,
    directions: int = INTRUDER_DIRECTIONS,
) -> MergedSpectrum:
    """Spectrum of W + scale * left @ right and its intruders from the stored Gram matrix and one product of W.

    weight (rows, cols) is read once more, for left^T W only; left (rows, r), right (r, cols).
    """
    device = base.gram.device
    left, right = scale * left.to(device, torch.float64), right.to(device, torch.float64)
    if base.transposed:
        left, right = right.T, left.T
    view = LongView(to_device(weight, device))
    update = right.T @ view.transposed_times(left).T  # D^T W
    inner = left.T @ left
    gram = base.gram + update + update.T + right.T @ inner @ right
    # Each term is rounded in proportion to its own size, bounded by (sigma_1 + ||D||)^2, and not to the size of their
    # sum, in which they may cancel.
    frobenius = float((inner * (right @ right.T)).sum().clamp_min(0).sqrt())
    terms = (float(base.sigma[0]) + frobenius) ** 2
    largest = max(float(torch.linalg.matrix_norm(gram, ord=torch.inf)), np.finfo(np.float64).tiny)
    error = backward_error(view.long, view.short) * max(1.0, terms / largest)
    sigma, vectors, bound = _eigen((gram + gram.T) / 2, error)
    k = min(directions, len(sigma))
    if base.transposed:
        # Eigenvectors of W W^T are the left singular vectors themselves.
        cosine = vectors[:, :k].T @ base.vectors
    else:
        cosine = _left_cosines(base, base.gram + update, sigma, vectors, k)
    best = cosine.abs().max(dim=1).values.clamp_max(1.0).cpu().numpy() if k else np.zeros(0)
    return MergedSpectrum(sigma, bound, best)


def _left_cosines(
    base: GramOfWeight, merged_by_base: torch.Tensor, sigma: np.ndarray, vectors: torch.Tensor, k: int
) -> torch.Tensor:
    """(k, n): cosines U'^T U = Sigma'^-1 V'^T (W + D)^T W V Sigma^-1.

    Columns whose sigma drowns in rounding have no left vector to speak of; they are left out of the division.
    """
    usable = base.sigma > np.sqrt(np.finfo(np.float64).eps) * max(base.sigma[0], 1e-300)
    inverse = torch.zeros(len(base.sigma), dtype=torch.float64, device=base.gram.device)
    inverse[torch.from_numpy(usable)] = torch.from_numpy(1.0 / base.sigma[usable]).to(base.gram.device)
    head = torch.from_numpy(np.maximum(sigma[:k], 1e-300)).to(base.gram.device)
    return (vectors[:, :k].T @ merged_by_base @ base.vectors) * inverse[None, :] / head[:, None]


def merged_spectrum_dense(
    base: GramOfWeight, weight: torch.Tensor, merged: torch.Tensor, directions: int = INTRUDER_DIRECTIONS
) -> MergedSpectrum:
    """The same for a second full weight `merged` (rows, cols), where delta-W has full rank: one more n x n product."""
    other = gram_of_weight(merged, device=base.gram.device)
    k = min(directions, len(other.sigma))
    if base.transposed:
        cosine = other.vectors[:, :k].T @ base.vectors
    else:
        blocks = zip(LongView(merged).blocks(), LongView(weight).blocks(), strict=True)
        product = torch.zeros_like(base.gram)
        for (_, _, of_merged), (_, _, of_weight) in blocks:
            product += of_merged.to(base.gram.device).T @ of_weight.to(base.gram.device)
        cosine = _left_cosines(base, product, other.sigma, other.vectors, k)
    best = cosine.abs().max(dim=1).values.clamp_max(1.0).cpu().numpy() if k else np.zeros(0)
    return MergedSpectrum(other.sigma, other.error_bound, best)
