"""The error bounds against matrices that are hard in one way each."""

import numpy as np
import pytest
import torch

from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.bounds import accepted, backward_error, sigma_from_eigenvalues
from glmspectra.spectra.eigenvalues import symmetric_eigenvalues
from glmspectra.spectra.gram import gram_matrices
from glmspectra.spectra.measure import spectra_of
from tests.spectra.planted import planted, reference


def hard_matrices(rows: int, cols: int, rng: np.random.Generator):
    order = min(rows, cols)
    noise = rng.standard_normal((rows, cols))
    yield "gaussian", noise
    yield "one sign", rng.random((rows, cols))
    yield "nearly constant", 1 + 1e-3 * noise
    yield "graded rows", noise * np.logspace(0, -8, rows)[:, None]
    yield "graded columns", noise * np.logspace(0, -8, cols)
    yield "heavy tails", np.clip(rng.standard_cauchy((rows, cols)), -1e4, 1e4)
    yield "sparse", noise * (rng.random((rows, cols)) < 0.02)
    yield "vandermonde", np.vander(np.linspace(-1, 1, rows), cols)
    yield "eight decades", planted(rows, cols, np.logspace(0, -8, order))
    yield "one spike", planted(rows, cols, np.r_[1.0, np.full(order - 1, 1e-4)])
    yield "two clusters", planted(rows, cols, np.repeat([1.0, 1e-3], [order // 2, order - order // 2]))
    yield "rank deficient", planted(rows, cols, np.linspace(1, 0.5, max(1, order // 3)))


SHAPES = [(20, 20), (150, 150), (900, 40), (40, 900), (5000, 16)]


def gram_road(weight: torch.Tensor):
    ((_, gram),) = gram_matrices(weight, {"whole": (0, weight.shape[0])})
    view = LongView(weight)
    return sigma_from_eigenvalues(symmetric_eigenvalues(gram), backward_error(view.long, view.short))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gram_road_is_within_its_bound(shape, dtype):
    rng = np.random.default_rng(11)
    used = {}
    for name, matrix in hard_matrices(*shape, rng):
        weight = torch.from_numpy(matrix).to(dtype)
        truth = reference(weight.double().numpy())
        sigma, bound = gram_road(weight)
        used[name] = float(np.max(np.abs(sigma - truth) / bound))
    # Recorded when the constants were chosen: at most 0.39 over these distributions and shapes up to 500 x 500.
    assert max(used.values()) < 0.7, used


@pytest.mark.parametrize("shape", SHAPES)
def test_the_final_values_are_within_bounds_that_are_tight_enough(shape):
    for name, matrix in hard_matrices(*shape, np.random.default_rng(12)):
        spectrum = spectra_of(torch.from_numpy(matrix))["whole"]
        truth = reference(matrix)
        assert np.all(np.abs(spectrum.sigma - truth) <= spectrum.error_bound), name
        assert accepted(spectrum.sigma, spectrum.error_bound, 1e-4).all(), name


def test_a_typical_square_matrix_is_not_redone():
    """The bound must be sharp enough for the fast path to carry the common case."""
    rng = np.random.default_rng(13)
    weight = torch.from_numpy(rng.standard_normal((400, 400)).astype(np.float16))
    assert spectra_of(weight)["whole"].method == "gram"


def test_an_ill_conditioned_square_matrix_has_only_its_small_end_refined():
    rng = np.random.default_rng(14)
    square = rng.standard_normal((200, 200))
    square[:, 0] = square[:, 1:].sum(1) + 1e-4 * square[:, 0]
    spectrum = spectra_of(torch.from_numpy(square))["whole"]
    truth = reference(square)
    assert truth[0] / truth[-1] > 3e5
    assert spectrum.method == "gram+refined"
    assert np.all(np.abs(spectrum.sigma - truth) <= spectrum.error_bound)
    assert np.abs(spectrum.sigma[-1] - truth[-1]) < 1e-8 * truth[-1]


def test_bounds_grow_as_the_square_of_the_condition():
    sigma, bound = sigma_from_eigenvalues(np.array([1.0, 1e-4, 1e-8]), 1e-14)
    relative = bound / sigma
    assert relative[1] / relative[0] == pytest.approx(1e4, rel=0.1)
    assert relative[2] / relative[1] == pytest.approx(1e4, rel=0.01)


def test_the_bound_reaches_to_the_farther_end():
    """Eigenvalues 4 and 1, each 0.2 from the true ones at most."""
    sigma, bound = sigma_from_eigenvalues(np.array([1.0, 4.0]), 0.05)
    np.testing.assert_allclose(sigma, [2, 1])
    np.testing.assert_allclose(bound, [2 - np.sqrt(3.8), 1 - np.sqrt(0.8)])


def test_a_zero_or_negative_eigenvalue_keeps_zero_inside_its_bound():
    sigma, bound = sigma_from_eigenvalues(np.array([1.0, 0.0, -3e-15]), 1e-14)
    assert sigma[1:].tolist() == [0.0, 0.0]
    assert bound[1] == pytest.approx(1e-7)
    assert 0 < bound[2] < bound[1]


def test_a_stricter_rtol_is_met_by_refining_more():
    sigma = np.r_[np.linspace(1, 0.1, 119), 3e-5]
    weight = torch.from_numpy(planted(120, 120, sigma))
    loose = spectra_of(weight, rtol=1e-4)["whole"]
    strict = spectra_of(weight, rtol=1e-9)["whole"]
    assert loose.method == "gram"
    assert strict.method != "gram"
    assert not accepted(loose.sigma, loose.error_bound, 1e-9).all()
    assert accepted(strict.sigma, strict.error_bound, 1e-9).all()
    assert np.all(np.abs(strict.sigma - sigma) <= strict.error_bound + 1e-14)
