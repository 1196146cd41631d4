"""Planted spikes of a spiked covariance model, on both sides of the Baik-Ben Arous-Peche threshold."""

import numpy as np
import torch

from glmspectra.spectra import singular_values, summarize_spectrum

ROWS, COLS = 900, 300


def spikes_of(strength: float, count: int = 4, seed: int = 0) -> int:
    """mp_spikes of rows with covariance I + strength * (projection on `count` directions)."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(ROWS, COLS))
    samples[:, :count] *= np.sqrt(1 + strength)
    turned = samples @ np.linalg.qr(rng.normal(size=(COLS, COLS)))[0]
    return int(summarize_spectrum(singular_values(torch.from_numpy(turned)))["mp_spikes"])


def test_spikes_show_above_the_threshold_and_not_below():
    """Baik, Ben Arous & Peche 2005: a population spike 1 + l leaves the bulk where l > sqrt(cols / rows)."""
    threshold = np.sqrt(COLS / ROWS)
    assert spikes_of(2.0 * threshold) == 4
    assert spikes_of(0.5 * threshold) == 0
    assert spikes_of(0.0) == 0
