import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from glmspectra.spectra import spectra_of, summarize_spectrum
from glmspectra.spectra.marchenko_pastur import (
    bulk_median,
    noise_edge,
    noise_level,
    optimal_hard_threshold,
    zero_between,
)
from tests.spectra.planted import orthonormal

# Shapes in the proportions of ChatGLM2's matrices and their parts, from square to 27392 x 4096.
PROPORTIONS = {
    "dense 4096 x 4096": (96, 96),
    "query_key_value 4608 x 4096": (108, 96),
    "k or v 256 x 4096": (8, 128),
    "4h_to_h 4096 x 13696": (64, 214),
    "gate or up 13696 x 4096": (214, 64),
    "h_to_4h 27392 x 4096": (428, 64),
}


def batch_of_noise(rows: int, cols: int, count: int, seed: int) -> np.ndarray:
    """Singular values, descending, of `count` Gaussian matrices stored in float16: shape (count, min(rows, cols))."""
    noise = torch.randn(count, rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.02
    long = noise.half().double() if rows >= cols else noise.half().double().mT
    return torch.linalg.eigvalsh(long.mT @ long).flip(-1).clamp(min=0).sqrt().numpy()


@pytest.mark.parametrize("shape", PROPORTIONS.values(), ids=PROPORTIONS.keys())
def test_pure_noise_has_at_most_one_spike(shape):
    spikes = []
    for sigma in batch_of_noise(*shape, count=200, seed=3):
        level = noise_level(sigma, *shape)
        assert level == pytest.approx(0.02, rel=0.1)
        spikes.append(int((sigma > noise_edge(level, *shape)).sum()))
    assert np.mean(np.array(spikes) <= 1) >= 0.95
    # The edge is the 99 % point of the largest value; allow for the noise level being estimated.
    assert np.mean(np.array(spikes) == 0) >= 0.95


@pytest.mark.parametrize("shape", PROPORTIONS.values(), ids=PROPORTIONS.keys())
def test_the_edge_is_not_simply_too_high(shape):
    """Negative control of the calibration: the bulk reaches up to within a few per cent of the edge."""
    largest = np.median([sigma[0] / noise_edge(0.02, *shape) for sigma in batch_of_noise(*shape, count=20, seed=4)])
    assert 0.9 < largest < 1


@pytest.mark.parametrize("shape", [(100, 100), (300, 100), (100, 300)])
def test_spikes_above_the_phase_transition_are_counted_where_theory_puts_them(shape):
    """Baik, Ben Arous & Peche: a planted theta > (rows * cols)^(1/4) is seen at
    sqrt((theta^2 + rows)(theta^2 + cols)) / theta."""
    rows, cols = shape
    rng = np.random.default_rng(5)
    critical = (rows * cols) ** 0.25
    theta = critical * np.array([6.0, 4.0, 2.5])
    signal = (orthonormal(rows, 3, rng) * theta) @ orthonormal(cols, 3, rng).T
    spectrum = spectra_of(torch.from_numpy(signal + rng.standard_normal(shape)))["whole"]
    row = summarize_spectrum(spectrum)
    assert row["mp_spikes"] == 3
    expected = np.sqrt((theta**2 + rows) * (theta**2 + cols)) / theta
    np.testing.assert_allclose(spectrum.sigma[:3], expected, rtol=0.08)
    assert row["mp_sigma"] == pytest.approx(1, rel=0.1)
    assert row["gavish_donoho_rank"] == 3


def test_a_planted_value_below_the_transition_is_not_seen():
    rng = np.random.default_rng(6)
    signal = (orthonormal(150, 1, rng) * 0.5 * 150**0.5) @ orthonormal(150, 1, rng).T
    row = summarize_spectrum(spectra_of(torch.from_numpy(signal + rng.standard_normal((150, 150))))["whole"])
    assert row["mp_spikes"] == 0


@pytest.mark.parametrize("aspect", [0.01, 0.15, 0.5, 1.0])
def test_the_bulk_median_is_the_median_of_the_bulk(aspect):
    short = 300
    long = round(short / aspect)
    noise = np.random.default_rng(7).standard_normal((long, short))
    eigenvalues = np.linalg.eigvalsh(noise.T @ noise) / long
    assert np.median(eigenvalues) == pytest.approx(bulk_median(short / long), rel=0.02)


@pytest.mark.parametrize("aspect", [1e-6, 0.01, 1 / 3, 0.9, 1.0])
def test_half_of_the_law_lies_below_the_bulk_median(aspect):
    """The density of Marchenko and Pastur, integrated by scipy; in the root of x, where it is bounded."""
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2

    def density(root):
        x = root**2
        return 2 * np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * aspect * root)

    middle = np.sqrt(bulk_median(aspect))
    below = integrate.quad(density, np.sqrt(low), middle, epsabs=1e-12, epsrel=1e-12, limit=500)[0]
    assert below == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize(("function", "ends"), [(lambda x: x**3 - 2, (0, 2)), (lambda x: 1 / x**2 - 4, (-9, -1e-12))])
def test_a_zero_is_that_of_brentq_to_the_last_bit(function, ends):
    assert zero_between(function, *ends) == pytest.approx(optimize.brentq(function, *ends, xtol=1e-15), rel=4e-16)


def test_the_square_case_has_the_published_constants():
    """Gavish & Donoho: 4/sqrt(3) for known noise, about 2.858 times the median for unknown."""
    threshold = optimal_hard_threshold(np.array([1.0]), 10, 10)
    assert threshold == pytest.approx(2.858, abs=5e-4)
    assert threshold * np.sqrt(bulk_median(1.0)) == pytest.approx(4 / np.sqrt(3), rel=1e-9)


def test_an_aspect_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"aspect is 1\.5"):
        bulk_median(1.5)


def test_a_zero_is_looked_for_only_between_values_of_both_signs():
    assert zero_between(lambda x: x - 0.25, 0.0, 1.0) == 0.25
    for function in (lambda x: x + 1, lambda x: -x - 1, lambda x: float("nan")):
        with pytest.raises(ValueError, match="does not pass 0"):
            zero_between(function, 0.0, 1.0)
