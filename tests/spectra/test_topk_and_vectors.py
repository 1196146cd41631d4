import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glmspectra.spectra import spectra_of, summarize_spectrum
from glmspectra.spectra.blocks import LongView
from glmspectra.spectra.krylov import krylov_basis, rayleigh_ritz, start_block
from tests.spectra.planted import planted, reference

SPIKES = np.array([40.0, 25.0, 18.0, 12.0, 9.0, 7.0])


def spiked(rows: int, cols: int, seed: int = 0, edge: float = 1.0) -> np.ndarray:
    """Six planted values over a noise bulk that ends at `edge`."""
    noise = edge * np.random.default_rng(seed).standard_normal((rows, cols)) / (np.sqrt(rows) + np.sqrt(cols))
    return planted(rows, cols, SPIKES, seed) + noise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(200, 80), (80, 200), (120, 120)])
def test_topk_finds_the_largest_values_within_its_bounds(shape, dtype):
    weight = torch.from_numpy(spiked(*shape)).to(dtype)
    found = spectra_of(weight, method="topk", k=6)["whole"]
    truth = reference(weight.double().numpy())
    assert found.method == "topk"
    assert not found.complete
    assert np.all(np.abs(found.sigma - truth[:6]) <= found.error_bound)
    assert np.all(found.error_bound <= 1.01e-4 * found.sigma)
    assert found.frobenius**2 == pytest.approx(np.sum(truth**2), rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(30, 90), cols=st.integers(30, 90))
@settings(max_examples=20, deadline=None)
def test_topk_of_planted_spectra(seed, rows, cols):
    weight = torch.from_numpy(spiked(rows, cols, seed))
    found = spectra_of(weight, method="topk", k=4)["whole"]
    assert np.all(np.abs(found.sigma - reference(weight.numpy())[:4]) <= found.error_bound)


def test_more_values_asked_for_than_there_are():
    weight = torch.randn(30, 9, generator=torch.Generator().manual_seed(1))
    found = spectra_of(weight, method="topk", k=50)["whole"]
    np.testing.assert_allclose(found.sigma, reference(weight.double().numpy()), rtol=1e-9)


def test_energy_shares_of_topk_are_exact():
    weight = torch.from_numpy(spiked(150, 90, edge=3)).float()
    full = summarize_spectrum(spectra_of(weight)["whole"])
    top = summarize_spectrum(spectra_of(weight, method="topk", k=14)["whole"])
    for column in ("frobenius_norm", "spectral_norm", "stable_rank", "top12_energy_share", "log_norm"):
        assert top[column] == pytest.approx(full[column], rel=1e-7), column
    assert top["energy_rank_90"] == full["energy_rank_90"] <= 14
    for column in ("nuclear_norm", "effective_rank", "mp_edge", "alpha", "condition_number"):
        assert np.isnan(top[column]), column
    assert full["energy_rank_99"] > 14
    assert np.isnan(top["energy_rank_99"])


def test_where_topk_fails_copies_beyond_the_block_are_missed():
    """More copies of a value than the block has columns: the residuals are tiny and the order is wrong all the same."""
    sigma = np.r_[np.full(12, 5.0), np.linspace(1, 0.5, 50)]
    view = LongView(torch.from_numpy(planted(100, 62, sigma)))
    block = start_block(62, 8, torch.device("cpu"), torch.float64)
    found, _, _, residual = rayleigh_ritz(view, krylov_basis(view.gram_times, block, 4))
    assert np.all(np.abs(found[:8] - 5.0) < 1e-9)
    assert found[8] < 1.1  # four copies of 5 are missing
    assert residual[:8].max() < 1e-6
    # The method as shipped takes k + 10 columns, so k = 12 is safe here.
    shipped = spectra_of(torch.from_numpy(planted(100, 62, sigma)), method="topk", k=12)["whole"]
    np.testing.assert_allclose(shipped.sigma, 5.0, rtol=1e-9)


def test_where_topk_fails_a_flat_bulk_says_so_in_its_bounds():
    """Inside a continuum nothing separates the k-th value from the next: the bound is honest, and wider than asked."""
    from glmspectra.spectra import krylov

    weight = torch.randn(600, 600, generator=torch.Generator().manual_seed(2))
    truth = reference(weight.double().numpy())
    sigma, residual, _, _ = krylov.leading_triplets(LongView(weight), 20, 1e-13)
    assert np.all(np.abs(sigma - truth[:20]) <= residual + 1e-12 * truth[0])
    values, bound = krylov.topk_values(LongView(weight), 20, 1e-4)
    assert np.all(np.abs(values - truth[:20]) <= bound)
    random_basis = torch.linalg.qr(start_block(600, 30, torch.device("cpu"), torch.float64)).Q
    one_pass = krylov.rayleigh_ritz(LongView(weight), random_basis)
    # Negative control: a single random projection is far off, and says so.
    assert one_pass[3][:20].min() > 0.1 * truth[0]


@pytest.mark.parametrize("shape", [(120, 50), (50, 120)])
@pytest.mark.parametrize("method", ["exact", "topk"])
def test_vectors_are_singular_vectors(shape, method):
    weight = torch.from_numpy(spiked(*shape)).float()
    parts = {"low": slice(0, 30), "high": slice(30, shape[0])}
    for name, spectrum in spectra_of(weight, parts, method=method, k=6, vectors=4).items():
        part = weight[spectrum.row_start : spectrum.row_start + spectrum.rows].double().numpy()
        left, right = spectrum.vectors.left, spectrum.vectors.right
        assert left.shape == (part.shape[0], 4)
        assert right.shape == (part.shape[1], 4)
        np.testing.assert_allclose(left.T @ left, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(right.T @ right, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(part @ right, left * spectrum.sigma[:4], atol=2e-5 * spectrum.sigma[0])
        u, _, vt = np.linalg.svd(part)
        assert np.all(np.abs(np.sum(left * u[:, :4], axis=0)) > 1 - 1e-9), name
        assert np.all(np.abs(np.sum(right * vt[:4].T, axis=0)) > 1 - 1e-9), name


def test_no_vectors_unless_asked():
    assert spectra_of(torch.eye(5))["whole"].vectors is None
