"""Merged spectra and intruder counts: against two full SVDs, and on constructed cases."""

import numpy as np
import pytest
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra import spectra_of
from glmspectra.spectra.intruders import gram_of_weight, merged_spectrum, merged_spectrum_dense


def weight_of(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight with singular values 20, 19, ... and its singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    k = min(rows, cols)
    u = torch.linalg.qr(torch.randn(rows, k, dtype=torch.float64, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(cols, k, dtype=torch.float64, generator=generator))[0]
    sigma = torch.linspace(20, 1, k, dtype=torch.float64)
    return (u * sigma) @ v.T, u, sigma, v


def two_full_svds(weight: torch.Tensor, merged: torch.Tensor, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    u, sigma, _ = torch.linalg.svd(merged, full_matrices=False)
    u0 = torch.linalg.svd(weight, full_matrices=False)[0]
    return sigma.numpy(), (u.T @ u0).abs().max(dim=1).values[:k].numpy()


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64)])
def test_gram_products_give_what_two_full_svds_give(shape):
    weight, *_ = weight_of(*shape)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape[0], 4, dtype=torch.float64, generator=generator)
    right = torch.randn(4, shape[1], dtype=torch.float64, generator=generator)
    sigma, cosine = two_full_svds(weight, weight + 0.5 * left @ right)
    found = merged_spectrum(gram_of_weight(weight), weight, left, right, 0.5)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9)
    assert (np.abs(found.sigma - sigma) <= found.error_bound).all()
    np.testing.assert_allclose(found.best_cosine, cosine, atol=1e-9)
    dense = merged_spectrum_dense(gram_of_weight(weight), weight, weight + 0.5 * left @ right)
    np.testing.assert_allclose(dense.best_cosine, cosine, atol=1e-9)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_planted_intruders_are_counted(shape):
    """Two strong directions orthogonal to all of W's left ones (where room is), or spread evenly over all of
    them.
    """
    weight, u, _, v = weight_of(*shape)
    base = gram_of_weight(weight)
    rows = shape[0]
    if rows > u.shape[1]:
        outside = torch.linalg.qr(torch.cat([u, torch.eye(rows, dtype=torch.float64)], 1))[0][:, u.shape[1] :][:, :2]
    else:
        # No room outside: Walsh-like combinations with |cosine| 1/8 with every direction of W.
        signs = torch.ones(u.shape[1], 2, dtype=torch.float64)
        signs[::2, 1] = -1
        outside = u @ signs / u.shape[1] ** 0.5
    left, right = 300 * outside, v[:, :2].T
    found = merged_spectrum(base, weight, left, right)
    assert found.intruders() == 2
    assert list(np.flatnonzero(found.best_cosine < 0.5)) == [0, 1], "the planted ones are the strongest of W + D"


def test_amplifying_the_weights_own_directions_makes_no_intruder():
    weight, u, _, v = weight_of(96, 64)
    found = merged_spectrum(gram_of_weight(weight), weight, 50 * u[:, 3:5], v[:, 3:5].T)
    assert found.intruders() == 0
    np.testing.assert_allclose(found.best_cosine, 1.0, atol=1e-9)
    assert found.sigma[0] == pytest.approx(50 + float(torch.linspace(20, 1, 64)[3]), rel=1e-6)


def test_no_change_changes_nothing_and_weyl_holds():
    weight, *_ = weight_of(96, 64)
    base = gram_of_weight(weight)
    same = merged_spectrum(base, weight, torch.zeros(96, 2), torch.zeros(2, 64))
    np.testing.assert_allclose(same.sigma, base.sigma, rtol=1e-12)
    assert same.intruders() == 0
    left, right = torch.randn(96, 3), torch.randn(3, 64)
    largest = float(torch.linalg.matrix_norm(left @ right, ord=2))
    moved = merged_spectrum(base, weight, left, right)
    assert np.max(np.abs(moved.sigma - base.sigma)) <= largest * (1 + 1e-6)


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(RequestError, match="NaN or infinity"):
        gram_of_weight(torch.full((4, 3), float("nan")))


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_the_error_bound_is_that_of_the_sweep(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    base, swept = gram_of_weight(weight), spectra_of(weight)["whole"]
    np.testing.assert_allclose(base.error_bound, swept.error_bound, rtol=0.05)  # itself rounded


def test_a_change_that_cancels_the_weight_is_bounded_by_what_cancelled():
    """W + D is tiny beside W: rounding is in proportion to W, and the bound says so."""
    weight, u, sigma, v = weight_of(96, 64)
    left, right = -(u * sigma), v.T * (1 - 1e-7)
    found = merged_spectrum(gram_of_weight(weight), weight, left, right)
    due = torch.linalg.svdvals(weight + left @ right).numpy()
    assert (np.abs(found.sigma - due) <= found.error_bound).all()
    assert found.error_bound[0] > due[0], "nothing is left to tell"
