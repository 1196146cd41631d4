"""From the singular values of one matrix to the columns of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from glmspectra.spectra.heavytail import NO_FIT, fit_power_law, hill_alpha
from glmspectra.spectra.marchenko_pastur import (
    noise_edge,
    noise_level,
    optimal_hard_threshold,
)
from glmspectra.spectra.spectrum import FloatArray, Spectrum
from glmspectra.spectra.stacked_noise import NoiseBlock, scaled_to_bulk, stacked_noise_edge

BoolArray = NDArray[np.bool_]
ENERGY_PERCENTS = (50, 80, 90, 95, 99)
TOP = 12

IN_UNITS_OF_SIGMA = (
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "mp_sigma",
    "mp_edge",
    "gavish_donoho_threshold",
)
SPECTRUM_COLUMNS = (
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "condition_number",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    *(f"energy_rank_{percent}" for percent in ENERGY_PERCENTS),
    f"top{TOP}_share_of_singular_value_sum",
    f"top{TOP}_energy_share",
    "mp_sigma",
    "mp_edge",
    "mp_spikes",
    "gavish_donoho_threshold",
    "gavish_donoho_rank",
    "alpha",
    "alpha_xmin",
    "alpha_ks",
    "alpha_tail",
    "alpha_weighted",
    "log_norm",
    "log_spectral_norm",
    "hill_alpha",
)


def summarize_spectrum(
    spectrum: Spectrum, parts: Sequence[Spectrum] = (), blocks: Sequence[NoiseBlock] = ()
) -> dict[str, float | int]:
    """Every spectrum column of the table, in the unit of the weights; NaN where it is not known.

    parts: spectra of consecutive row ranges that make up this one (q, k and v; gate and up). With them the
        Marchenko-Pastur columns of the whole are those of stacked noise, of the level that each part's own median
        tells, see `stacked_noise_edge`.
    blocks: what `entry_scales` says of a fused matrix whose parts were not measured. The ratios of the levels are then
        those of the entries' scales, and the bulk's median gives the rest. Where a part has the scale 0 (most entries
        equal) the levels cannot be estimated, and the Marchenko-Pastur columns are NaN.
    With neither, one noise level is assumed.

    A spectrum of the k largest values ('topk') knows the norms that need no more (frobenius, spectral), stable rank,
    energy ranks that are reached within k, and the energy share; everything else needs all values and is NaN. A
    spectrum with status 'nonfinite' is NaN throughout.

    A value at or below its own error bound may be 0: it is no spike, no rank and no part of the tail, and a matrix
    whose smallest value is one has an infinite condition number.

    - frobenius_norm sqrt(sum sigma^2); spectral_norm sigma_1; nuclear_norm sum sigma.
    - condition_number sigma_1 / sigma_min; inf when sigma_min is 0 or cannot be distinguished from it.
    - stable_rank ||W||_F^2 / sigma_1^2 (Rudelson & Vershynin, J. ACM 54(4), 2007).
    - effective_rank exp of the entropy of sigma / sum sigma (Roy & Vetterli, EUSIPCO 2007, eq. 3).
    - participation_ratio (sum sigma^2)^2 / sum sigma^4.
    - energy_rank_P the least k whose values hold P % of sum sigma^2.
    - top12_share_of_singular_value_sum, top12_energy_share: of the 12 largest in sum sigma and in sum sigma^2; of all
      when there are fewer.
    - mp_sigma, mp_edge, mp_spikes: noise level (by the median), edge (finite-size, 99 %) and number of values above.
      mp_sigma of a whole with parts is the root mean square level over its rows.
    - gavish_donoho_threshold, gavish_donoho_rank: optimal hard threshold for unknown noise, values above it.
    - alpha, alpha_xmin, alpha_ks, alpha_tail: see `fit_power_law`, on eigenvalues sigma^2; alpha_xmin in that unit.
    - alpha_weighted alpha * log10(sigma_1^2); log_norm log10 ||W||_F^2; log_spectral_norm log10 sigma_1^2 (Martin, Peng
      & Mahoney, Nature Communications 12, 2021).
    - hill_alpha: see there.
    """
    row: dict[str, float | int] = dict.fromkeys(SPECTRUM_COLUMNS, float("nan"))
    if spectrum.status != "ok" or spectrum.sigma.size == 0:
        return row
    if exponent := _exponent(spectrum):
        near = [_times(part, -exponent) for part in parts]
        return _of_larger(summarize_spectrum(_times(spectrum, -exponent), near, blocks), exponent)
    row |= _known_from_leading(spectrum)
    if spectrum.complete:
        row |= _rank_measures(spectrum)
        row |= _noise_columns(spectrum, parts, blocks)
        row |= _tail_columns(spectrum.sigma[_known(spectrum)], float(row["log_spectral_norm"]))
    return row


def _exponent(spectrum: Spectrum) -> int:
    """The power of two that brings sigma_1 near 1, where its 4th power would leave the range of float64; else 0."""
    largest = float(spectrum.sigma[0])
    return 0 if largest == 0 or 1e-70 < largest < 1e70 else int(np.frexp(largest)[1])


def _times(spectrum: Spectrum, exponent: int) -> Spectrum:
    """The spectrum of the matrix times 2^exponent."""
    sigma, bound = (np.ldexp(values, exponent) for values in (spectrum.sigma, spectrum.error_bound))
    return replace(spectrum, sigma=sigma, error_bound=bound, frobenius=float(np.ldexp(spectrum.frobenius, exponent)))


def _of_larger(row: dict[str, float | int], exponent: int) -> dict[str, float | int]:
    """The row of a matrix that is 2^exponent times as large."""
    moved = 2 * exponent * float(np.log10(2))
    with np.errstate(over="ignore"):
        row |= {name: float(np.ldexp(row[name], exponent)) for name in IN_UNITS_OF_SIGMA}
        row["alpha_xmin"] = float(np.ldexp(row["alpha_xmin"], 2 * exponent))  # sigma^2: 0 or inf beyond float64
    row |= {name: row[name] + moved for name in ("log_norm", "log_spectral_norm")}
    row["alpha_weighted"] += row["alpha"] * moved
    return row


def summarize_spectra(
    spectra: Mapping[str, Spectrum], whole: str = "whole", blocks: Sequence[NoiseBlock] = ()
) -> dict[str, dict[str, float | int]]:
    """`summarize_spectrum` for all that `spectra_of` returned, the whole with the coarsest parts that tile its rows.

    blocks: for the whole, where no parts tile it.
    """
    rows = {name: summarize_spectrum(spectrum) for name, spectrum in spectra.items() if name != whole}
    if whole in spectra:
        others = [spectrum for name, spectrum in spectra.items() if name != whole]
        rows[whole] = summarize_spectrum(spectra[whole], tiling(spectra[whole], others), blocks)
    return {name: rows[name] for name in spectra}


def tiling(whole: Spectrum, candidates: Sequence[Spectrum]) -> list[Spectrum]:
    """The fewest of `candidates`, in order, whose rows fill the rows of `whole` exactly; empty when they do not."""
    chosen: list[Spectrum] = []
    row, end = whole.row_start, whole.row_start + whole.rows
    while row < end:
        fitting = [c for c in candidates if c.row_start == row and row + c.rows <= end and c.rows < whole.rows]
        if not fitting:
            return []
        chosen.append(max(fitting, key=lambda c: c.rows))
        row += chosen[-1].rows
    return chosen


def _log10(value: float) -> float:
    return float(np.log10(value)) if value > 0 else float("-inf")


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


def _known_from_leading(spectrum: Spectrum) -> dict[str, float | int]:
    energy = spectrum.frobenius**2
    largest = float(spectrum.sigma[0])
    running = np.cumsum(spectrum.sigma**2)
    if spectrum.complete:
        energy = float(running[-1])  # so that the shares of all values are 1 to the last bit
    row: dict[str, float | int] = {
        "frobenius_norm": float(np.sqrt(energy)),
        "spectral_norm": largest,
        "stable_rank": _ratio(energy, largest**2),
        "log_norm": _log10(energy),
        "log_spectral_norm": _log10(largest**2),
    }
    if spectrum.sigma.size >= min(TOP, spectrum.order):
        row[f"top{TOP}_energy_share"] = _ratio(float(running[:TOP][-1]), energy)
    for percent in ENERGY_PERCENTS:
        held = energy_rank(spectrum.sigma, percent / 100, energy)
        if held:
            row[f"energy_rank_{percent}"] = held
    return row


def _known(spectrum: Spectrum) -> BoolArray:
    """Which singular values are above their own error bound."""
    return spectrum.sigma > spectrum.error_bound


def effective_rank(sigma: FloatArray) -> float:
    """Exponential of the entropy of sigma / sum(sigma) (Roy & Vetterli 2007, eq. 3); 0 for a zero matrix."""
    positive = sigma[sigma > 0]
    if not positive.size:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def energy_rank(sigma: FloatArray, share: float, energy: float | None = None) -> int | None:
    """The fewest leading directions that hold `share` of the energy, the sum of sigma^2; 0 for a zero matrix.

    Args:
        sigma: Singular values, largest first; all of them unless `energy` is given.
        share: Of the energy, 0 to 1; met to 1e-12, so that rounding asks for no further direction.
        energy: Of the whole matrix, where only its largest values are known.

    Returns:
        None where the values that are known hold less.
    """
    running = np.cumsum(sigma**2)
    wanted = share * (running[-1] if energy is None and running.size else energy or 0.0) * (1 - 1e-12)
    if not running.size or running[-1] == 0:
        return 0
    return int(np.searchsorted(running, wanted)) + 1 if running[-1] >= wanted else None


def _rank_measures(spectrum: Spectrum) -> dict[str, float | int]:
    sigma, least_known = spectrum.sigma, bool(_known(spectrum)[-1])
    total = float(sigma.sum())
    squared = sigma**2
    return {
        "nuclear_norm": total,
        "condition_number": float(sigma[0] / sigma[-1]) if least_known else float("inf"),
        "effective_rank": effective_rank(sigma) if total > 0 else float("nan"),
        "participation_ratio": _ratio(float(squared.sum() ** 2), float(np.sum(squared**2))),
        f"top{TOP}_share_of_singular_value_sum": _ratio(float(sigma[:TOP].sum()), total),
    }


def _noise_columns(
    spectrum: Spectrum, parts: Sequence[Spectrum], blocks: Sequence[NoiseBlock]
) -> dict[str, float | int]:
    sigma, rows, cols = spectrum.sigma, spectrum.rows, spectrum.cols
    if len(parts) > 1 and all(part.complete for part in parts):
        blocks = [NoiseBlock(part.rows, noise_level(part.sigma, part.rows, part.cols)) for part in parts]
        level, edge = _stacked(blocks, cols)
    elif len(blocks) > 1 and sigma[0] > 0:
        estimated = all(block.level > 0 for block in blocks)
        level, edge = _stacked(scaled_to_bulk(blocks, sigma, cols), cols) if estimated else (float("nan"), float("nan"))
    else:
        level = noise_level(sigma, rows, cols)
        edge = noise_edge(level, rows, cols)
    threshold, known = optimal_hard_threshold(sigma, rows, cols), _known(spectrum)
    return {
        "mp_sigma": level,
        "mp_edge": edge,
        "mp_spikes": int((known & (sigma > edge)).sum()) if np.isfinite(edge) else float("nan"),
        "gavish_donoho_threshold": threshold,
        "gavish_donoho_rank": int((known & (sigma > threshold)).sum()),
    }


def _stacked(blocks: Sequence[NoiseBlock], cols: int) -> tuple[float, float]:
    """Root mean square level over the rows, and the edge."""
    levels, counts = [block.level for block in blocks], [block.rows for block in blocks]
    return float(np.sqrt(np.average(np.square(levels), weights=counts))), stacked_noise_edge(levels, counts, cols)


def _tail_columns(sigma: FloatArray, log_spectral_norm: float) -> dict[str, float | int]:
    eigenvalues = sigma**2
    fit = fit_power_law(eigenvalues)
    return {
        "alpha": fit.alpha,
        "alpha_xmin": fit.xmin,
        "alpha_ks": fit.distance,
        "alpha_tail": fit.tail,
        "alpha_weighted": fit.alpha * log_spectral_norm if fit is not NO_FIT else float("nan"),
        "hill_alpha": hill_alpha(eigenvalues),
    }
