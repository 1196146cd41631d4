"""Numbers from one matrix: value distribution, singular values with an error bound, bulk edge, heavy tail."""

from glmspectra.spectra.batched_eigenvalues import batch_limit
from glmspectra.spectra.measure import SpectraBatch, singular_values, spectra_of
from glmspectra.spectra.spectrum import SingularVectors, Spectrum
from glmspectra.spectra.stacked_noise import NoiseBlock, entry_scales
from glmspectra.spectra.summary import SPECTRUM_COLUMNS, summarize_spectra, summarize_spectrum
from glmspectra.spectra.transfer import to_device
from glmspectra.spectra.values import (
    ValueDistribution,
    common_edges,
    distribution_of,
    read_values,
    value_distribution,
)

__all__ = [
    "SPECTRUM_COLUMNS",
    "NoiseBlock",
    "SingularVectors",
    "SpectraBatch",
    "Spectrum",
    "ValueDistribution",
    "batch_limit",
    "common_edges",
    "distribution_of",
    "entry_scales",
    "read_values",
    "singular_values",
    "spectra_of",
    "summarize_spectra",
    "summarize_spectrum",
    "to_device",
    "value_distribution",
]
