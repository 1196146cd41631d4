"""The distribution of the values of one weight: moments, quantiles, outliers, histogram, distance from a normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.counting import PATTERNS, IntArray
from glmspectra.spectra.fits import fit_distributions
from glmspectra.spectra.moments import Moments
from glmspectra.spectra.spectrum import WHOLE, FloatArray
from glmspectra.spectra.tally import OUTLIER_SIGMAS, QUANTILES, Tally, bin_counts, moments_of, order_ranks, take_tallies

LARGEST = 8

# The common grid: asinh-spaced, ten bins a factor of e. Below LINEAR_BELOW bins are of equal width, above it their
# width is a tenth of the value, so that weights of 1e-2 and differences of 1e-5 are both resolved by the same edges.
LINEAR_BELOW = 1e-6
GRID_STEP = 0.1
GRID_LIMIT = 65504.0  # largest float16
ValueColumn = float | int | str | list[int] | list[float]


@dataclass(frozen=True)
class ValueDistribution:
    """What was found of one part of a weight.

    columns: the value columns of the table. bin_left, bin_right, counts: the histogram; a value on an edge counts in
    the bin farther from zero, values beyond the last edges in the last bins, NaN and Inf nowhere. status: 'ok' or
    'nonfinite'; with NaN or Inf present the columns describe the finite values, except for the shares.
    """

    columns: dict[str, ValueColumn]
    bin_left: FloatArray
    bin_right: FloatArray
    counts: IntArray
    status: str


def common_edges() -> FloatArray:
    """Histogram edges that do not depend on the data, so that all matrices and all runs share them: shape (515,).

    Symmetric about 0, from -65504 to 65504, each representable in bfloat16, which makes counts by upper 16 bits exact.
    """
    top = np.arcsinh(GRID_LIMIT / LINEAR_BELOW)
    positive = LINEAR_BELOW * np.sinh(np.arange(GRID_STEP, top, GRID_STEP))
    rounded = torch.tensor(np.append(positive, GRID_LIMIT), dtype=torch.float32).to(torch.bfloat16).double().numpy()
    positive = np.unique(rounded)
    return np.concatenate([-positive[::-1], [0.0], positive])


def value_distribution(
    weight: torch.Tensor,
    parts: Mapping[str, slice] | None = None,
    *,
    edges: FloatArray | None = None,
) -> dict[str, ValueDistribution]:
    """Distribution of the values of a weight ('whole') and of ranges of its rows.

    weight: 2-D, shape (rows, cols), floating dtype, on any device.
    parts: name -> slice of rows; 'whole' is always measured.
    edges: histogram edges, ascending; default `common_edges()`.

    For float16 and bfloat16 every column is exact (counts of all 65,536 values) up to float64 rounding. For float32
    moments, quantiles, extremes, shares and norms are exact in the same sense; the fits and their distances work on
    bins that are at most 0.8 % wide. Float64 weights are rounded to float32 for the quantiles, fits and histogram.
    Quantiles are numpy's 'lower': a value that occurs. Raises RequestError for a weight that is not 2-D floating,
    or bad edges. `read_values` and `distribution_of` are the two halves of this, the device's and the processor's.
    """
    tallies = read_values(weight, parts, edges=edges)
    return {name: distribution_of(found, edges) for name, found in tallies.items()}


def read_values(
    weight: torch.Tensor, parts: Mapping[str, slice] | None = None, *, edges: FloatArray | None = None
) -> dict[str, Tally]:
    """What `distribution_of` needs of the weight and its parts, read on the weight's device.

    See `value_distribution` for the arguments and errors.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise RequestError(
            f"A value distribution needs a non-empty 2-D floating-point weight; this one is {weight.dtype} of shape "
            f"{tuple(weight.shape)}."
        )
    grid = common_edges() if edges is None else np.asarray(edges, dtype=np.float64)
    if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) > 0):
        raise RequestError("Histogram edges need to be at least two ascending numbers.")
    return take_tallies(weight, {WHOLE: slice(None), **(parts or {})}, grid)


def distribution_of(tally: Tally, edges: FloatArray | None = None) -> ValueDistribution:
    """The distribution that a tally tells, with the edges it was read with; no weight is needed any more."""
    grid = common_edges() if edges is None else np.asarray(edges, dtype=np.float64)
    moments = moments_of(tally)
    columns: dict[str, ValueColumn] = {
        "count": tally.total,
        "mean": moments.mean if moments.count else float("nan"),
        "std": moments.std,
        "skewness": moments.skewness,
        "excess_kurtosis": moments.excess_kurtosis,
    }
    columns |= _order_statistics(tally)
    for name, number in (("zero", tally.zeros), ("nan", tally.nans), ("inf", tally.infs)):
        columns[f"share_{name}"] = number / tally.total
    columns |= _outlier_shares(tally, moments)
    columns |= _fit_columns(tally, moments)
    columns |= _largest_norms(tally)
    histogram = tally.histogram
    if histogram is None:
        present = tally.counts > 0
        histogram = bin_counts(tally.values[present], tally.counts[present], grid)
    status = "ok" if moments.count == tally.total else "nonfinite"
    return ValueDistribution(columns, grid[:-1], grid[1:], histogram, status)


def _order_statistics(tally: Tally) -> dict[str, ValueColumn]:
    total = int(tally.counts.sum())
    names = ["min", *QUANTILES, "max"]
    if total == 0:
        return dict.fromkeys([*names, "abs_max"], float("nan"))
    if tally.wide is not None:
        found = tally.wide.order
    else:
        found = tally.values[np.searchsorted(np.cumsum(tally.counts), order_ranks(total), side="right")]
    columns: dict[str, ValueColumn] = {name: float(value) for name, value in zip(names, found, strict=True)}
    columns["abs_max"] = float(np.abs(found[[0, -1]]).max())
    return columns


def _outlier_shares(tally: Tally, moments: Moments) -> dict[str, ValueColumn]:
    """Shares of the finite values farther than k standard deviations from the mean."""
    names = [f"share_beyond_{k}_sigma" for k in OUTLIER_SIGMAS]
    if moments.count == 0:
        return dict.fromkeys(names, float("nan"))
    if tally.wide is not None:
        beyond = tally.wide.beyond
    else:
        present = tally.counts > 0
        distance, counts = np.abs(tally.values[present] - moments.mean), tally.counts[present]
        beyond = [int(counts[distance > k * moments.std].sum()) for k in OUTLIER_SIGMAS]
    return {name: number / moments.count for name, number in zip(names, beyond, strict=True)}


def _float32_bins(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends of the float32 values that share each prefix, the finite ones; in value order."""
    negative = np.arange(PATTERNS) < PATTERNS // 2
    lower, upper = values.copy(), values.copy()
    lower[1:][negative[1:]] = values[:-1][negative[1:]]
    upper[:-1][~negative[:-1]] = values[1:][~negative[:-1]]
    largest = float(np.finfo(np.float32).max)
    return np.clip(lower, -largest, largest), np.clip(upper, -largest, largest)


def _fit_columns(tally: Tally, moments: Moments) -> dict[str, ValueColumn]:
    present = tally.counts > 0
    weights = tally.counts[present].astype(np.float64)
    if tally.exact:
        values = tally.values[present]
        first = np.flatnonzero(np.diff(values, prepend=-np.inf))  # -0 and +0 are two patterns and one value
        distinct = values[first]
        fit = fit_distributions(distinct, distinct, np.add.reduceat(weights, first), moments) if first.size else None
    else:
        lower, upper = _float32_bins(tally.values)
        fit = fit_distributions(lower[present], upper[present], weights, moments)
    names = ("normal_ks", "laplace_ks", "student_t_ks", "student_t_df", "normal_wasserstein")
    if fit is None:
        return {"best_fit": "", **dict.fromkeys(names, float("nan"))}
    return {"best_fit": fit.best, **{name: float(getattr(fit, name)) for name in names}}


def _largest_norms(tally: Tally) -> dict[str, ValueColumn]:
    """The rows and columns of largest 2-norm, largest first, and the median norms; NaN and Inf count as 0."""
    columns: dict[str, ValueColumn] = {}
    for side, squares in (("row", tally.row_squares), ("col", tally.column_squares)):
        norms = np.sqrt(squares)
        # Stable order: ties go to the lower index, whatever the device.
        largest = np.argsort(-norms, kind="stable")[:LARGEST]
        columns[f"largest_{side}s"] = largest.tolist()
        columns[f"largest_{side}_norms"] = norms[largest].tolist()
        columns[f"{side}_norm_median"] = float(np.median(norms))
    return columns
