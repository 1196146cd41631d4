"""Block Krylov subspaces: the k largest singular values with residual bounds, and singular vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import backward_error
from glmspectra.spectra.spectrum import FloatArray

# Columns of the block beyond k, as in Halko, Martinsson & Tropp, SIAM Review 53(2), 2011, sec. 4.2 (5 to 10).
OVERSAMPLING = 10
# Products with the Gram matrix in one Krylov space before it is condensed to its best vectors and continued.
STEPS = 4
# Values: beyond this the exact method is as fast. Vectors, which no other method here gives, are worth more.
MAX_RESTARTS = 8
MAX_RESTARTS_FOR_VECTORS = 30


def start_block(rows: int, cols: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A Gaussian block, the same on every device: values must not depend on where they are computed."""
    generator = torch.Generator().manual_seed(0x5EED)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def krylov_basis(apply: Callable[[torch.Tensor], torch.Tensor], block: torch.Tensor, steps: int) -> torch.Tensor:
    """Orthonormal basis of span{X, M X, ..., M^steps X}: shape (n, p), p <= n; `block` is X, `apply` is M."""
    basis = torch.linalg.qr(block).Q
    newest = basis
    for _ in range(steps):
        room = basis.shape[0] - basis.shape[1]
        if room <= 0:
            break
        newest = apply(newest)[:, :room]
        for _ in range(2):  # once is not enough (Parlett): the second pass brings orthogonality to rounding
            newest = newest - basis @ (basis.T @ newest)
            newest = torch.linalg.qr(newest).Q
        basis = torch.cat([basis, newest], dim=1)
    found: torch.Tensor = basis
    return found


def thin_svd(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, p), S (p,), V^T (p, p) of a float64 (m, p) block, m >= p, by QR and LAPACK's SVD of the small factor.

    The small factor goes through the CPU: CUDA's default driver is a Jacobi method that stops at a looser tolerance.
    """
    q, r = torch.linalg.qr(tall)
    left, values, rotation = (factor.to(tall.device) for factor in torch.linalg.svd(r.cpu()))
    return q @ left, values, rotation


def rayleigh_ritz(view: LongView, basis: torch.Tensor) -> tuple[FloatArray, torch.Tensor, torch.Tensor, FloatArray]:
    """Singular triplets of A restricted to `basis` (short, p), orthonormal, float64; two passes over the weight.

    Returns (values descending (p,), left (long, p), right (short, p), residual (p,)) with A v_i = s_i u_i and
    residual_i = ||A^T u_i - s_i v_i||: a singular value of A lies within residual_i of s_i.
    """
    left, values, rotation = thin_svd(view.times(basis))
    right = basis @ rotation.T
    residual = torch.linalg.vector_norm(view.transposed_times(left) - right * values, dim=0)
    return values.cpu().numpy(), left, right, residual.cpu().numpy()


def leading_triplets(
    view: LongView, k: int, rtol: float, *, max_restarts: int = MAX_RESTARTS_FOR_VECTORS
) -> tuple[FloatArray, FloatArray, torch.Tensor, torch.Tensor]:
    """The k largest singular values of A with their residuals, and the vectors: left (long, k), right (short, k).

    Block Krylov iteration with thick restarts (Musco & Musco, Randomized block Krylov methods, NeurIPS 2015). The
    subspace is built in float32 as long as that helps (for float64 weights never); values and residuals are always
    float64, from W itself. Stops when every residual is at most rtol * sigma_i, rtol down to about 1e-12, or after
    `max_restarts`: inside a flat bulk convergence is slow, and the residuals say so. Raise max_restarts first.
    """
    k = min(k, view.short)
    width = min(view.short, k + OVERSAMPLING)
    working = torch.float64 if view.weight.dtype == torch.float64 else torch.float32
    block = start_block(view.short, width, view.device, torch.float64)
    best = np.inf
    for _ in range(max_restarts):
        basis = krylov_basis(view.gram_times, block.to(working), STEPS)
        basis = torch.linalg.qr(basis.to(torch.float64)).Q
        values, left, right, residual = rayleigh_ritz(view, basis)
        worst = float(np.max(residual[:k] - rtol * values[:k]))
        if worst <= 0 or basis.shape[1] == view.short:
            break
        if working == torch.float32 and worst > best / 4:
            working = torch.float64  # float32 has given what it can
        best = min(best, worst)
        block = right[:, :width]
    return values[:k], residual[:k], left[:, :k], right[:, :k]


def topk_values(view: LongView, k: int, rtol: float) -> tuple[FloatArray, FloatArray]:
    """The k largest singular values, descending, and a bound for each.

    The bound is the residual plus rounding. It says that a singular value lies that close to each returned one, and a
    returned value never exceeds the true one of its rank by more than rounding; that none was missed between them
    rests on the random start, as in every such method: with fewer block columns than a value has copies, some
    copies are missed (the block here has k + 10).
    """
    values, residual, _, _ = leading_triplets(view, k, rtol, max_restarts=MAX_RESTARTS)
    scale = values[0] if values.size else 0.0
    return values, residual + backward_error(view.long, view.short) * scale
