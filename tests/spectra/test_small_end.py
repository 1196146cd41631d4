import numpy as np
import pytest
import torch

from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.measure import spectra_of
from glmspectra.spectra.refine import small_end_bound, triangular_factor
from tests.spectra.planted import planted, reference

BULK = np.linspace(1, 0.1, 90)


@pytest.mark.parametrize("small", [[1e-6], [1e-6] * 5, [3e-6, 1e-7, 1e-9], [1e-13], [0.0] * 4, [1e-6, 0.0, 0.0]])
@pytest.mark.parametrize("shape", [(96, 0), (300, 0), (0, 300)])
def test_few_small_values_are_refined_to_a_backward_stable_error(small, shape):
    sigma = np.r_[BULK, small]
    rows, cols = (side or sigma.size for side in shape)
    rows = max(rows, sigma.size)
    weight = planted(rows, cols, sigma)
    spectrum = spectra_of(torch.from_numpy(weight))["whole"]
    truth = reference(weight)
    assert spectrum.method == "gram+refined"
    assert np.all(np.abs(spectrum.sigma - truth) <= spectrum.error_bound)
    assert np.max(np.abs(spectrum.sigma - truth)) < 2e-14


def test_without_refinement_the_gram_road_would_fail():
    """Negative control for the test above: the same case with any bound accepted."""
    sigma = np.r_[BULK, [1e-9]]
    weight = torch.from_numpy(planted(91, 91, sigma))
    unrefined = np.sqrt(np.maximum(np.linalg.eigvalsh((weight.T @ weight).numpy()), 0))[0]
    assert abs(unrefined - 1e-9) > 5e-10
    refined = spectra_of(weight)["whole"].sigma[-1]
    assert abs(refined - 1e-9) < 1e-13


def test_many_small_values_send_the_whole_matrix_to_a_stable_factorization():
    sigma = np.r_[np.linspace(1, 0.1, 40), np.logspace(-7, -9, 50)]
    weight = planted(90, 90, sigma)
    spectrum = spectra_of(torch.from_numpy(weight))["whole"]
    assert spectrum.method == "svd"
    assert np.all(np.abs(spectrum.sigma - reference(weight)) <= spectrum.error_bound)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (33, 33)])
def test_the_triangular_factor_is_that_of_the_whole_whatever_the_blocks(shape, monkeypatch):
    from glmspectra.spectra import blocks

    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 20 * 6)
    factor = triangular_factor(LongView(weight))
    long = weight if shape[0] >= shape[1] else weight.T
    torch.testing.assert_close(factor.T @ factor, long.T @ long, rtol=1e-12, atol=1e-12)


def test_residual_bounds_cover_random_perturbed_subspaces():
    """small_end_bound against the truth, for subspaces that are wrong by a known angle."""
    rng = np.random.default_rng(5)
    checked = 0
    for angle in (1e-8, 1e-5, 1e-3, 1e-2, 1e-1):
        for _ in range(20):
            sigma = np.sort(np.r_[rng.uniform(0.2, 1, 30), rng.uniform(1e-4, 2e-2, 3)])[::-1]
            weight = np.diag(sigma) @ np.linalg.qr(rng.standard_normal((33, 33)))[0]
            right = np.linalg.svd(weight)[2].T[:, -3:]
            basis = np.linalg.qr(right + angle * rng.standard_normal(right.shape) / 6)[0]
            left, ritz, rotation = np.linalg.svd(weight @ basis, full_matrices=False)
            residual = np.linalg.norm(weight.T @ left - basis @ rotation.T * ritz, axis=0)
            bound = small_end_bound(ritz, residual, sigma[29], sigma[0], 1e-15)
            if bound is None:
                continue
            checked += 1
            assert np.all(np.abs(ritz - sigma[-3:]) <= bound)
    assert checked > 50


def test_residuals_too_large_to_order_the_values_give_no_bound():
    assert small_end_bound(np.array([0.3]), np.array([0.2]), 0.4, 1.0, 1e-15) is None
    assert small_end_bound(np.array([0.1]), np.array([0.01]), 0.4, 1.0, 1e-15) is not None
