import numpy as np
import pytest
import torch

from glmspectra.spectra import eigenvalues
from glmspectra.spectra.eigenvalues import reduce_to_band, symmetric_eigenvalues


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    matrix = np.random.default_rng(seed).standard_normal((n, n))
    return matrix + matrix.T


def lower_only(matrix: np.ndarray) -> torch.Tensor:
    """The lower triangle, with NaN where nothing may look."""
    return torch.from_numpy(np.tril(matrix) + np.triu(np.full_like(matrix, np.nan), 1))


def eigenvalues_of_band(band: np.ndarray) -> np.ndarray:
    width, n = band.shape
    dense = np.zeros((n, n))
    for offset in range(min(width, n)):
        dense += np.diag(band[offset, : n - offset], -offset)
    return np.linalg.eigvalsh(dense)


@pytest.mark.parametrize("n", [1, 5, 17, 64, 65, 129, 300])
@pytest.mark.parametrize("bandwidth", [1, 4, 64])
def test_the_band_has_the_same_eigenvalues(n, bandwidth, monkeypatch):
    monkeypatch.setattr(eigenvalues, "STRIP", 50)
    matrix = symmetric(n)
    band = reduce_to_band(lower_only(matrix), bandwidth)
    assert band.shape == (bandwidth + 1, n)
    truth = np.linalg.eigvalsh(matrix)
    assert np.max(np.abs(eigenvalues_of_band(band) - truth)) < 1e-14 * n * np.abs(truth).max()


def test_zero_rows_need_no_reflection():
    matrix = symmetric(120)
    matrix[:, 3] = matrix[3] = 0
    matrix[70:] = matrix[:, 70:] = 0
    band = reduce_to_band(lower_only(matrix), 8)
    np.testing.assert_allclose(eigenvalues_of_band(band), np.linalg.eigvalsh(matrix), atol=1e-12)


@pytest.mark.parametrize("switch", [10, 10_000])
def test_one_and_two_stages_agree(switch, monkeypatch):
    monkeypatch.setattr(eigenvalues, "TWO_STAGE_FROM", switch)
    matrix = symmetric(200)
    found = symmetric_eigenvalues(lower_only(matrix))
    truth = np.linalg.eigvalsh(matrix)
    assert np.max(np.abs(found - truth)) < 1e-13 * np.abs(truth).max()


@pytest.mark.slow
def test_two_stages_at_the_size_where_they_are_used():
    weight = torch.randn(3100, 3072, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = weight.T @ weight
    truth = np.linalg.eigvalsh(gram.numpy())
    found = symmetric_eigenvalues(gram)
    # Twice the backward error that bounds.py allows each: the model holds at the real size too.
    from glmspectra.spectra.bounds import backward_error

    assert np.max(np.abs(found - truth)) < backward_error(3100, 3072) * truth[-1]
