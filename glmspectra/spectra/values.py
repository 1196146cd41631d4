"""The distribution of the values of one weight: moments, quantiles, outliers, histogram, distance from a normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from glmspectra.errors import RequestError
from glmspectra.spectra.counting import (
    PATTERNS,
    IntArray,
    count_patterns,
    count_prefixes,
    pattern_values,
    row_chunks,
    select_ranks,
)
from glmspectra.spectra.fits import fit_distributions
from glmspectra.spectra.moments import Moments, moments_of_chunk, moments_of_counts
from glmspectra.spectra.spectrum import FloatArray

QUANTILES = {
    "q_0001": 0.0001,
    "q_001": 0.001,
    "q_01": 0.01,
    "q_05": 0.05,
    "q_25": 0.25,
    "q_50": 0.5,
    "q_75": 0.75,
    "q_95": 0.95,
    "q_99": 0.99,
    "q_999": 0.999,
    "q_9999": 0.9999,
}
OUTLIER_SIGMAS = (3, 4, 5, 6)
LARGEST = 8

# The common grid: asinh-spaced, ten bins a factor of e. Below LINEAR_BELOW bins are of equal width, above it their
# width
# is a tenth of the value, so that weights of 1e-2 and differences of 1e-5 are both resolved by the same edges.
LINEAR_BELOW = 1e-6
GRID_STEP = 0.1
GRID_LIMIT = 65504.0  # largest float16
ValueColumn = float | int | str | list[int] | list[float]


@dataclass(frozen=True)
class ValueDistribution:
    """What was found of one part of a weight.

    columns: the value columns of the table. bin_left, bin_right, counts: the histogram; a value on an edge counts in
    the
    bin farther from zero, values beyond the last edges in the last bins, NaN and Inf nowhere. status: 'ok' or
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
    bins
    that are at most 0.8 % wide. Float64 weights are rounded to float32 for the quantiles, fits and histogram. Quantiles
    are of the 'lower' kind: a value that occurs. Raises RequestError for a weight that is not 2-D floating, or bad
    edges.
    """
    if weight.ndim != 2 or not weight.is_floating_point() or weight.numel() == 0:
        raise RequestError(
            f"A value distribution needs a non-empty 2-D floating-point weight; this one is {weight.dtype} of shape "
            f"{tuple(weight.shape)}."
        )
    grid = common_edges() if edges is None else np.asarray(edges, dtype=np.float64)
    if grid.ndim != 1 or grid.size < 2 or not np.all(np.diff(grid) > 0):
        raise RequestError("Histogram edges need to be at least two ascending numbers.")
    ranges = {"whole": slice(None), **(parts or {})}
    return {name: _distribution_of(weight[rows], grid) for name, rows in ranges.items()}


def _distribution_of(weight: torch.Tensor, edges: FloatArray) -> ValueDistribution:
    half = weight.dtype in (torch.float16, torch.bfloat16)
    narrow = weight if half else weight.to(torch.float32)
    if half:
        counts = count_patterns(narrow)
        values = pattern_values(narrow.dtype)
    else:
        counts = count_prefixes(narrow)
        values = pattern_values(torch.bfloat16)
    shares, finite = _shares_of_special_values(narrow, counts, values, half)
    counts = np.where(np.isfinite(values), counts, 0)

    moments = moments_of_counts(values[finite], counts[finite]) if half else _streamed_moments(weight)
    columns: dict[str, ValueColumn] = {
        "count": weight.numel(),
        "mean": moments.mean if moments.count else float("nan"),
        "std": moments.std,
        "skewness": moments.skewness,
        "excess_kurtosis": moments.excess_kurtosis,
    }
    columns |= _order_statistics(narrow, counts, values, half)
    columns |= shares
    columns |= _outlier_shares(weight, counts, values, moments, half)
    columns |= _fit_columns(counts, values, moments, half)
    columns |= _largest_norms(weight)
    status = "ok" if moments.count == weight.numel() else "nonfinite"
    return ValueDistribution(columns, edges[:-1], edges[1:], _histogram(narrow, counts, values, edges, half), status)


def _shares_of_special_values(
    weight: torch.Tensor, counts: IntArray, values: FloatArray, half: bool
) -> tuple[dict[str, ValueColumn], np.ndarray]:
    """Shares of zeros, NaN and Inf, and a mask of patterns that are finite and occur."""
    total = weight.numel()
    finite = np.isfinite(values) & (counts > 0)
    if half:
        zeros, nans, infs = (int(counts[mask].sum()) for mask in (values == 0, np.isnan(values), np.isinf(values)))
    else:  # the prefix of Inf also begins some NaNs, the prefix of 0 some denormals
        zeros = nans = infs = 0
        suspicious = not np.isfinite(values[counts > 0]).all()
        for chunk in row_chunks(weight):
            zeros += int(chunk.numel() - torch.count_nonzero(chunk))
            if suspicious:
                nans += int(torch.isnan(chunk).sum())
                infs += int(torch.isinf(chunk).sum())
    return {"share_zero": zeros / total, "share_nan": nans / total, "share_inf": infs / total}, finite


def _streamed_moments(weight: torch.Tensor) -> Moments:
    moments = Moments()
    for chunk in row_chunks(weight):
        flat = chunk.flatten()
        finite = torch.isfinite(flat)
        moments = moments.merged(moments_of_chunk(flat if bool(finite.all()) else flat[finite]))
    return moments


def _order_statistics(weight: torch.Tensor, counts: IntArray, values: FloatArray, half: bool) -> dict[str, ValueColumn]:
    total = int(counts.sum())
    names = ["min", *QUANTILES, "max"]
    if total == 0:
        return dict.fromkeys([*names, "abs_max"], float("nan"))
    ranks = np.array([0, *(int(np.floor(q * (total - 1))) for q in QUANTILES.values()), total - 1], dtype=np.int64)
    if half:
        found = values[np.searchsorted(np.cumsum(counts), ranks, side="right")]
    else:
        found = select_ranks(weight, counts, ranks)
    columns: dict[str, ValueColumn] = {name: float(value) for name, value in zip(names, found, strict=True)}
    columns["abs_max"] = float(np.abs(found[[0, -1]]).max())
    return columns


def _outlier_shares(
    weight: torch.Tensor, counts: IntArray, values: FloatArray, moments: Moments, half: bool
) -> dict[str, ValueColumn]:
    """Shares of the finite values farther than k standard deviations from the mean."""
    names = [f"share_beyond_{k}_sigma" for k in OUTLIER_SIGMAS]
    if moments.count == 0:
        return dict.fromkeys(names, float("nan"))
    limits = [k * moments.std for k in OUTLIER_SIGMAS]
    if half:
        distance = np.abs(np.where(counts > 0, values, moments.mean) - moments.mean)
        beyond = [int(counts[distance > limit].sum()) for limit in limits]
    else:
        beyond = [0] * len(limits)
        for chunk in row_chunks(weight):
            distances = (chunk.double() - moments.mean).abs_()
            candidates = distances[(distances > limits[0]) & torch.isfinite(distances)]
            for i, limit in enumerate(limits):
                beyond[i] += int((candidates > limit).sum())
    return {name: number / moments.count for name, number in zip(names, beyond, strict=True)}


def _float32_bins(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends of the float32 values that share each prefix, the finite ones; in value order."""
    negative = np.arange(PATTERNS) < PATTERNS // 2
    lower, upper = values.copy(), values.copy()
    lower[1:][negative[1:]] = values[:-1][negative[1:]]
    upper[:-1][~negative[:-1]] = values[1:][~negative[:-1]]
    largest = float(np.finfo(np.float32).max)
    return np.clip(lower, -largest, largest), np.clip(upper, -largest, largest)


def _fit_columns(counts: IntArray, values: FloatArray, moments: Moments, half: bool) -> dict[str, ValueColumn]:
    present = counts > 0
    weights = counts[present].astype(np.float64)
    fit = None
    if half:
        # +0 and -0 are two patterns and one value.
        distinct, inverse = np.unique(values[present], return_inverse=True)
        fit = fit_distributions(distinct, distinct, np.bincount(inverse, weights=weights).astype(np.float64), moments)
    else:
        lower, upper = _float32_bins(values)
        fit = fit_distributions(lower[present], upper[present], weights, moments)
    names = ("normal_ks", "laplace_ks", "student_t_ks", "student_t_df", "normal_wasserstein")
    if fit is None:
        return {"best_fit": "", **dict.fromkeys(names, float("nan"))}
    return {"best_fit": fit.best, **{name: float(getattr(fit, name)) for name in names}}


def _largest_norms(weight: torch.Tensor) -> dict[str, ValueColumn]:
    """The rows and columns of largest 2-norm, largest first, and the median norms; NaN and Inf count as 0."""
    cols = weight.shape[1]
    column_squares = torch.zeros(cols, dtype=torch.float64, device=weight.device)
    row_norms = []
    for chunk in row_chunks(weight):
        wide = chunk.double()
        wide = torch.nan_to_num(wide, nan=0.0, posinf=0.0, neginf=0.0).square_()
        column_squares += wide.sum(0)
        row_norms.append(wide.sum(1))
    columns: dict[str, ValueColumn] = {}
    for side, squares in (("row", torch.cat(row_norms)), ("col", column_squares)):
        norms = squares.sqrt().cpu().numpy()
        # Stable order: ties go to the lower index, whatever the device.
        largest = np.argsort(-norms, kind="stable")[:LARGEST]
        columns[f"largest_{side}s"] = largest.tolist()
        columns[f"largest_{side}_norms"] = norms[largest].tolist()
        columns[f"{side}_norm_median"] = float(np.median(norms))
    return columns


def _histogram(weight: torch.Tensor, counts: IntArray, values: FloatArray, edges: FloatArray, half: bool) -> IntArray:
    aligned = half or bool(np.all(torch.from_numpy(edges).to(torch.bfloat16).double().numpy() == edges))
    if aligned:
        present = counts > 0
        return _bin_counts(values[present], counts[present], edges)
    total = np.zeros(edges.size - 1, dtype=np.int64)
    for chunk in row_chunks(weight):
        flat = chunk.double().flatten()
        finite = flat[torch.isfinite(flat)].cpu().numpy()
        total += _bin_counts(finite, np.ones(finite.size, dtype=np.int64), edges)
    return total


def _bin_counts(values: FloatArray, counts: IntArray, edges: FloatArray) -> IntArray:
    """Counts per bin; a value on an edge goes to the side away from zero, which is where its prefix lies."""
    place = np.where(
        values >= 0, np.searchsorted(edges, values, side="right") - 1, np.searchsorted(edges, values, side="left") - 1
    )
    place = np.clip(place, 0, edges.size - 2)
    return np.bincount(place, weights=counts, minlength=edges.size - 1).astype(np.int64)
