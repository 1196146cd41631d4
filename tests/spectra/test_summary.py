import numpy as np
import pytest
import torch

from glmspectra.spectra import SPECTRUM_COLUMNS, spectra_of, summarize_spectra, summarize_spectrum
from glmspectra.spectra.summary import tiling
from tests.spectra.planted import planted


def summary_of(sigma, rows=40, cols=30):
    return summarize_spectrum(spectra_of(torch.from_numpy(planted(rows, cols, sigma)))["whole"])


def test_known_answers():
    sigma = np.array([8.0, 4.0, 2.0, 1.0])
    row = summary_of(sigma, rows=9, cols=4)
    share = sigma / 15
    expected = {
        "frobenius_norm": np.sqrt(85),
        "spectral_norm": 8,
        "nuclear_norm": 15,
        "condition_number": 8,
        "stable_rank": 85 / 64,
        "effective_rank": np.exp(-np.sum(share * np.log(share))),
        "participation_ratio": 85**2 / (8**4 + 4**4 + 2**4 + 1),
        "energy_rank_50": 1,
        "energy_rank_80": 2,
        "energy_rank_90": 2,
        "energy_rank_95": 3,
        "energy_rank_99": 4,
        "top12_share_of_singular_value_sum": 1,
        "top12_energy_share": 1,
        "log_norm": np.log10(85),
        "log_spectral_norm": np.log10(64),
        "alpha_weighted": row["alpha"] * np.log10(64),
    }
    for column, value in expected.items():
        assert row[column] == pytest.approx(value, rel=1e-10), column


def test_the_top_twelve_share_is_of_the_sum_of_singular_values():
    sigma = np.r_[np.full(12, 10.0), np.full(18, 1.0)]
    row = summary_of(sigma)
    assert row["top12_share_of_singular_value_sum"] == pytest.approx(120 / 138)
    assert row["top12_energy_share"] == pytest.approx(1200 / 1218)


def test_equal_values_have_every_rank_full():
    row = summary_of(np.full(30, 3.0))
    for column in ("stable_rank", "effective_rank", "participation_ratio"):
        assert row[column] == pytest.approx(30), column
    assert row["energy_rank_50"] == 15
    assert row["condition_number"] == pytest.approx(1)


def test_the_columns_are_those_of_the_table_whatever_the_spectrum():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    spoilt = weight.clone()
    spoilt[0, 0] = float("nan")
    for spectrum in (
        spectra_of(weight)["whole"],
        spectra_of(weight, method="topk", k=3)["whole"],
        spectra_of(spoilt)["whole"],
        spectra_of(torch.zeros(4, 4))["whole"],
        spectra_of(torch.ones(1, 1))["whole"],
    ):
        assert tuple(summarize_spectrum(spectrum)) == SPECTRUM_COLUMNS


def test_a_nonfinite_matrix_is_nan_throughout():
    row = summarize_spectrum(spectra_of(torch.full((3, 3), float("inf")))["whole"])
    assert all(np.isnan(value) for value in row.values())


def test_zeros_have_norms_but_no_ranks():
    row = summarize_spectrum(spectra_of(torch.zeros(6, 4))["whole"])
    assert row["frobenius_norm"] == row["spectral_norm"] == row["mp_edge"] == row["mp_spikes"] == 0
    assert row["condition_number"] == float("inf")
    assert row["log_norm"] == -float("inf")
    for column in ("stable_rank", "effective_rank", "participation_ratio", "energy_rank_90", "alpha"):
        assert np.isnan(row[column]), column


def test_the_columns_scale_as_their_units_say():
    weight = torch.randn(60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, ten = (summarize_spectrum(spectra_of(weight * factor)["whole"]) for factor in (1, 10))
    for column in ("frobenius_norm", "spectral_norm", "nuclear_norm", "mp_sigma", "mp_edge", "gavish_donoho_threshold"):
        assert ten[column] == pytest.approx(10 * one[column], rel=1e-9), column
    for column in (
        "stable_rank",
        "effective_rank",
        "energy_rank_90",
        "mp_spikes",
        "gavish_donoho_rank",
        "alpha",
        "alpha_ks",
        "hill_alpha",
        "condition_number",
    ):
        assert ten[column] == pytest.approx(one[column], rel=1e-9), column
    assert ten["alpha_xmin"] == pytest.approx(100 * one["alpha_xmin"], rel=1e-9)


@pytest.mark.parametrize("exponent", [-700, -400, 400, 700])
def test_a_matrix_whose_squares_leave_float64_has_every_column_of_one_near_1(exponent):
    weight = torch.from_numpy(planted(40, 30, np.linspace(1.0, 3.0, 30)))
    parts = {"upper": slice(0, 20), "lower": slice(20, 40)}
    near = summarize_spectra(spectra_of(weight, parts))["whole"]
    far = summarize_spectra(spectra_of(torch.ldexp(weight, torch.tensor(exponent)), parts))["whole"]
    leading = summarize_spectrum(spectra_of(torch.ldexp(weight, torch.tensor(exponent)), method="topk", k=3)["whole"])
    for column in ("frobenius_norm", "spectral_norm", "nuclear_norm", "mp_sigma", "mp_edge", "gavish_donoho_threshold"):
        assert far[column] == pytest.approx(np.ldexp(near[column], exponent), rel=1e-12, abs=0), column
    for column in ("log_norm", "log_spectral_norm"):
        assert far[column] == pytest.approx(near[column] + 2 * exponent * np.log10(2), rel=1e-12), column
    for column in ("condition_number", "stable_rank", "effective_rank", "participation_ratio", "alpha", "mp_spikes"):
        assert far[column] == pytest.approx(near[column], rel=1e-9), column
    assert leading["stable_rank"] == pytest.approx(near["stable_rank"], rel=1e-9)


def test_the_coarsest_parts_that_tile_the_whole_are_used():
    weight = torch.randn(40, 10, generator=torch.Generator().manual_seed(2))
    parts = {"a.head_0": slice(0, 10), "a.head_1": slice(10, 20), "a": slice(0, 20), "b": slice(20, 40)}
    spectra = spectra_of(weight, parts)
    others = [spectra[name] for name in parts]
    assert tiling(spectra["whole"], others) == [spectra["a"], spectra["b"]]
    assert tiling(spectra["whole"], others[:3]) == []
    rows = summarize_spectra(spectra)
    assert list(rows) == ["whole", *parts]
    expected = summarize_spectrum(spectra["whole"], [spectra["a"], spectra["b"]])
    assert rows["whole"] == expected
    assert rows["a"] == summarize_spectrum(spectra["a"])


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_value_below_its_own_error_bound_is_no_spike_and_no_rank(scale):
    """A matrix of ones has one singular value; the others come out as some 1e-31 within a bound of 1e-14."""
    spectrum = spectra_of(torch.full((8, 8), scale, dtype=torch.float64))["whole"]
    assert (spectrum.sigma[1:] <= spectrum.error_bound[1:]).all()
    row = summarize_spectrum(spectrum)
    assert (row["mp_spikes"], row["gavish_donoho_rank"]) == (1, 1)
    assert row["condition_number"] == np.inf
    assert row["spectral_norm"] == pytest.approx(8 * scale, rel=1e-12)
    full = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)) * scale
    assert summarize_spectrum(spectra_of(full)["whole"])["condition_number"] == pytest.approx(8, rel=1e-9)
