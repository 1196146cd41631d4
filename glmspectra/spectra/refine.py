"""The small end of a spectrum, where squaring has lost it: from a QR factorization of the weight itself.

W = Q R is backward stable: R has W's singular values within c u sigma_1, not c u sigma_1^2 / sigma_i. The smallest
triplets are the largest of R^-1, so a few block Krylov steps with triangular solves find them; every value is then
bounded by its residual with W, whatever the solves did.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import lapack

from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import ABSOLUTE_FLOOR, UNIT_ROUNDOFF, accepted, backward_error
from glmspectra.spectra.krylov import krylov_basis, rayleigh_ritz, start_block, thin_svd
from glmspectra.spectra.spectrum import FloatArray

# Above this share of failing values one factorization of the whole is cheaper than refining them.
LARGEST_REFINED_SHARE = 1 / 8
# Vectors iterated beyond the failing ones: they set the speed of convergence and find the gap that certifies the count.
SPARE_VECTORS = 8
KRYLOV_STEPS = 3
MAX_RESTARTS = 6
# Values below this share of the absolute tolerance have left vectors made of rounding only.
NEGLIGIBLE = 0.01


def triangular_factor(view: LongView) -> torch.Tensor:
    """R of A = Q R, shape (short, short), float64, A being read block by block.

    Rows are stacked under the factor so far until there are `short` new ones, then factored again; at most 3 short^2
    numbers are held.
    """
    short = view.short
    factor = torch.zeros((0, short), dtype=torch.float64, device=view.device)
    remaining = view.long
    stack, filled = factor, 0
    for _, _, block in view.blocks():
        taken = 0
        while taken < block.shape[0]:
            if filled == stack.shape[0]:
                fresh = min(remaining, short)
                # Columns first, which is the order LAPACK works in: no copy is made.
                stack = torch.empty((short, factor.shape[0] + fresh), dtype=torch.float64, device=view.device).T
                stack[: factor.shape[0]] = factor
                filled, remaining = factor.shape[0], remaining - fresh
                factor = factor[:0]
            count = min(block.shape[0] - taken, stack.shape[0] - filled)
            stack[filled : filled + count] = block[taken : taken + count]
            filled, taken = filled + count, taken + count
            if filled == stack.shape[0]:
                factor = _upper_factor(stack)
                stack, filled = factor[:0], 0
    return factor


def _upper_factor(matrix: torch.Tensor) -> torch.Tensor:
    """R of the QR factorization of `matrix` (m, n), which may be overwritten: shape (min(m, n), n)."""
    if matrix.is_cuda:
        found: torch.Tensor = torch.linalg.qr(matrix, mode="r").R
        return found
    factored, _, _, info = lapack.dgeqrf(matrix.numpy(), overwrite_a=1)
    if info != 0:
        raise ValueError(f"dgeqrf refused its argument {-info}")
    return torch.from_numpy(np.triu(factored[: min(matrix.shape)]))


def refine_small_end(
    view: LongView, factor: torch.Tensor, sigma: FloatArray, bound: FloatArray, rtol: float
) -> tuple[FloatArray, FloatArray] | None:
    """Replace the values of `sigma` that are not accepted by ones with a residual bound.

    `factor`: R of `triangular_factor`. `sigma`, `bound`: descending, of the Gram method. Returns new (sigma, bound) or
    None when the refined values could not be bounded well enough or their order not be known.
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
        found: torch.Tensor = torch.linalg.solve_triangular(factor, half, upper=True)
        return found

    block = start_block(order, width, factor.device, torch.float64)
    for _ in range(MAX_RESTARTS):
        basis = krylov_basis(inverse_gram, block, KRYLOV_STEPS)
        # Ritz vectors of the basis with R, smallest first, before the full pass over W.
        _, _, rotation = thin_svd(factor @ basis)
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
    """Put the Ritz values of `block` in place of the smallest of `sigma` if they can be bounded well enough.

    Some more than the failing values may be replaced: the bounds improve with the distance to the first one kept.
    """
    ritz, _, _, residual = rayleigh_ritz(view, block)
    order = sigma.size
    rounding = backward_error(view.long, view.short) * float(sigma[0])
    for count in range(failing, ritz.size + 1):
        kept = order - count - 1
        floor = float(sigma[kept] - bound[kept]) if kept >= 0 else np.inf
        radius = small_end_bound(ritz[-count:], residual[-count:], floor, float(sigma[0]), rounding)
        if radius is None:
            continue
        refined, refined_bound = sigma.copy(), bound.copy()
        refined[order - count :] = ritz[-count:]
        refined_bound[order - count :] = radius
        if accepted(refined, refined_bound, rtol).all():
            return refined, refined_bound
    return None


def small_end_bound(
    ritz: FloatArray, residual: FloatArray, floor: float, scale: float, rounding: float
) -> FloatArray | None:
    """How far the k smallest singular values of A can be from Ritz values s_1 >= ... >= s_k of orthonormal V.

    ritz, residual: shape (k,), A v_i = s_i u_i and ||A^T u_i - s_i v_i||. floor: a number below all the other singular
    values of A, of which there are order - k. scale: sigma_1. rounding: absolute error of A V and of A^T U. Returns
    None when the residuals are too large to tell these k from the others.

    In the bases (U, U') and (V, V'), A is [[S, E], [0, C]] with ||E|| <= r, the root of the sum of squared residuals.
    By Weyl the values of S and C together lie within r of A's, so if s_1 + r < floor, C's are all above c = floor - r.
    Then three bounds hold, and the least counts:

    - s_i r / c, since A = (I + [[0, E C^-1], [0, 0]]) diag(S, C) is a multiplicative perturbation (Eisenstat & Ipsen,
      SIAM J. Numer. Anal. 32(6), 1995, thm 3.1);
    - (s_1 r)^2 / (c^2 - s_1^2) in s_i^2, from A^T A, whose off-diagonal block is S E (Li & Li, Linear Algebra Appl.
      395, 2005, thm 2);
    - s_i itself, since Ritz values from a subspace are never below the true smallest ones (Cauchy).

    A value so small that its u_i is mostly rounding is set to zero instead, at the cost of its size in every bound.
    """
    negligible = ritz <= NEGLIGIBLE * ABSOLUTE_FLOOR * scale
    dropped = float(np.linalg.norm(ritz[negligible]))
    remaining = float(np.linalg.norm(residual[~negligible] + rounding))
    largest = float(ritz[0])
    floor = floor - dropped
    if np.isinf(floor):
        remaining = 0.0
    if largest + remaining >= floor:
        return None
    others = floor - remaining
    relative = ritz * (remaining / others)
    squared = (largest * remaining) ** 2 / (others**2 - largest**2) if np.isfinite(others) else 0.0
    quadratic = np.divide(squared, ritz, out=np.full_like(ritz, np.inf), where=ritz > 0)
    return np.minimum(np.minimum(relative, quadratic) + dropped, ritz) + rounding
