"""The small end of a spectrum, where squaring has lost it: from a QR factorisation of the weight itself.

W = Q R is backward stable: R has W's singular values within c u sigma_1, not c u sigma_1^2 / sigma_i. The smallest
triplets are the largest of R^-1, so a few block Krylov steps with triangular solves find them; every value is then
bounded by its residual with W, whatever the solves did.
"""

from __future__ import annotations

import numpy as np
import torch

from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import UNIT_ROUNDOFF, accepted, backward_stable_error
from glmspectra.spectra.krylov import krylov_basis, rayleigh_ritz, start_block
from glmspectra.spectra.spectrum import FloatArray

# Above this share of failing values one factorisation of the whole is cheaper than refining them.
LARGEST_REFINED_SHARE = 1 / 8
# Vectors iterated beyond the failing ones: they set the speed of convergence and find the gap that certifies the count.
SPARE_VECTORS = 8
KRYLOV_STEPS = 3
MAX_RESTARTS = 6


def triangular_factor(view: LongView) -> torch.Tensor:
    """R of A = Q R, shape (short, short), float64; A is read block by block, so memory is about 3 short^2."""
    factor = torch.zeros((0, view.short), dtype=torch.float64, device=view.device)
    pending: list[torch.Tensor] = []
    height = 0
    for _, stop, block in view.blocks():
        pending.append(block.clone())
        height += block.shape[0]
        if height >= view.short or stop == view.long:
            factor = torch.linalg.qr(torch.cat([factor, *pending]), mode="r").R
            pending, height = [], 0
    return factor


def refine_small_end(
    view: LongView, factor: torch.Tensor, sigma: FloatArray, bound: FloatArray, rtol: float
) -> tuple[FloatArray, FloatArray] | None:
    """Replace the values of `sigma` that are not accepted by ones with a residual bound.

    `factor`: R of `triangular_factor`. `sigma`, `bound`: descending, from the Gram road. Returns new (sigma, bound), or
    None when the refined values could not be bounded well enough or their places in the order not be told.
    """
    failing = int((~accepted(sigma, bound, rtol)).sum())
    order = sigma.size
    width = min(order, failing + SPARE_VECTORS)
    scale = float(sigma[0])
    # A pivot of exactly zero stands for one below rounding; the residual judges what comes of it.
    diagonal = factor.diagonal()
    tiny = UNIT_ROUNDOFF * scale
    factor = factor.clone()
    factor.diagonal().copy_(torch.where(diagonal.abs() < tiny, torch.full_like(diagonal, tiny), diagonal))

    def inverse_gram(block: torch.Tensor) -> torch.Tensor:
        half = torch.linalg.solve_triangular(factor.T, block, upper=False)
        half = torch.linalg.qr(half).Q  # keeps a null space from swamping the other directions
        return torch.linalg.solve_triangular(factor, half, upper=True)

    block = start_block(order, width, factor.device, torch.float64)
    for _ in range(MAX_RESTARTS):
        basis = krylov_basis(inverse_gram, block, KRYLOV_STEPS)
        # Ritz vectors of the basis with R, smallest first, before the full pass over W.
        _, _, rotation = torch.linalg.svd(factor @ basis, full_matrices=False)
        block = basis @ rotation[-width:].T
        result = _certified(view, block, sigma, bound, failing, rtol)
        if result is not None:
            return result
        if basis.shape[1] == order:
            break
    return None


def _certified(
    view: LongView, block: torch.Tensor, sigma: FloatArray, bound: FloatArray, failing: int, rtol: float
) -> tuple[FloatArray, FloatArray] | None:
    ritz, _, _, residual = rayleigh_ritz(view, block)
    order = sigma.size
    rounding = backward_stable_error(view.long, view.short) * sigma[0]
    # Ritz values from a subspace are never below the true smallest ones (Cauchy), so [0, ritz] also holds the true
    # value.
    radius = np.minimum(_clustered(ritz, residual), ritz) + rounding
    # The k smallest Ritz values are the k smallest singular values if the Gram road saw no more than k below them.
    for count in range(failing, ritz.size + 1):
        top = ritz.size - count
        if count < order:
            above = order - count - 1
            if ritz[top] + radius[top] >= sigma[above] - bound[above]:
                continue
        refined, refined_bound = sigma.copy(), bound.copy()
        refined[order - count :] = ritz[top:]
        refined_bound[order - count :] = radius[top:]
        if accepted(refined, refined_bound, rtol).all():
            return refined, refined_bound
        return None
    return None


def _clustered(values: FloatArray, residual: FloatArray) -> FloatArray:
    """Residual bounds for values in order: where intervals overlap, the root of the sum of squares over the cluster.

    Each residual places a singular value within it; k orthonormal vectors place k of them within the 2-norm of all k
    residuals (Parlett, The Symmetric Eigenvalue Problem, thm 11.5.1), of which the Frobenius norm is a bound.
    """
    radius = residual.copy()
    first = 0
    for i in range(1, values.size + 1):
        if i == values.size or values[i] + residual[i] < values[i - 1] - residual[i - 1]:
            radius[first:i] = np.sqrt(np.sum(residual[first:i] ** 2))
            first = i
    return radius
