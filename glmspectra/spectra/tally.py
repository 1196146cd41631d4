"""What the distribution of a weight's values is computed from, read off the weight on the device where it lies.

Reading is the device's work, and little of it comes back: for a 16-bit type 65,536 counts and the norms of rows and
columns. What follows from them (`values.distribution_of`) is small work for a processor, which can do it while the
device reads the next weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from glmspectra.spectra.counting import (
    IntArray,
    count_patterns,
    count_prefixes,
    pattern_values,
    row_chunks,
    select_ranks,
)
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


@dataclass(frozen=True)
class Tally:
    """Of one range of rows, all on the CPU.

    total: number of values. exact: whether `values` are the values themselves (16-bit types), not the float32 values'
    upper 16 bits. values, counts: the 65,536 patterns in value order and how often each occurs, NaN and Inf with 0.
    zeros, nans, infs: how many. wide: what counts of upper bits cannot tell, for the other types only.
    row_squares, column_squares: squared 2-norms, NaN and Inf taken as 0. histogram: counts on the edges where they do
    not follow from `counts`.
    """

    total: int
    exact: bool
    values: FloatArray
    counts: IntArray
    zeros: int
    nans: int
    infs: int
    row_squares: FloatArray
    column_squares: FloatArray
    wide: WideFacts | None = None
    histogram: IntArray | None = None


@dataclass(frozen=True)
class WideFacts:
    """What is read of a float32 weight (or a float64 one rounded to it).

    Attributes:
        moments: of the values.
        order: the values at the ranks of `order_ranks`.
        beyond: how many lie beyond 3 to 6 standard deviations (OUTLIER_SIGMAS) from the mean.
    """

    moments: Moments
    order: FloatArray
    beyond: list[int]


def within_float32(weight: torch.Tensor) -> torch.Tensor:
    """The weight; in float32, where what is beyond it is infinite, when a finite number of a float64 weight is.

    Such a number counts as infinite in all that is measured, not in some columns only.
    """
    if weight.dtype != torch.float64:
        return weight
    narrow = weight.float()
    return narrow if bool((torch.isinf(narrow) & torch.isfinite(weight)).any()) else weight


def take_tallies(weight: torch.Tensor, ranges: Mapping[str, slice], edges: FloatArray) -> dict[str, Tally]:
    """Read what the distributions of ranges of rows of `weight` need: name -> Tally.

    weight: shape (rows, cols), floating dtype, on any device. ranges: name -> slice of rows, step 1. edges: of the
    histogram. The weight is counted once for all ranges; of other than 16-bit types some things are read range by
    range.
    """
    half = weight.dtype in (torch.float16, torch.bfloat16)
    rows = weight.shape[0]
    bounds = {name: part.indices(rows)[:2] for name, part in ranges.items()}
    cuts = sorted({row for pair in bounds.values() for row in pair})
    pieces = list(pairwise(cuts))
    # Float64 is rounded to float32 for all but the moments and the norms.
    weight = within_float32(weight)
    narrow = weight if half or weight.dtype == torch.float32 else weight.float()
    count = count_patterns if half else count_prefixes
    counted = [count(narrow[start:stop]) for start, stop in pieces]
    squares = [squared_norms(weight[start:stop]) for start, stop in pieces]
    values = pattern_values(weight.dtype if half else torch.bfloat16)
    found = {}
    for name, (start, stop) in bounds.items():
        inside = [i for i, piece in enumerate(pieces) if start <= piece[0] and piece[1] <= stop]
        counts = np.sum([counted[i] for i in inside], axis=0)
        row_squares = np.concatenate([squares[i][0] for i in inside])
        column_squares = np.sum([squares[i][1] for i in inside], axis=0)
        part = narrow[start:stop]
        special = _special_values(counts, values) if half else _special_float32(part, counts, values)
        counts = np.where(np.isfinite(values), counts, 0)
        wide = None if half else _wide_facts(weight[start:stop], part, counts)
        histogram = None if half or _held_by_bfloat16(edges) else _histogram(part, edges)
        found[name] = Tally(part.numel(), half, values, counts, *special, row_squares, column_squares, wide, histogram)
    return found


def order_ranks(total: int) -> IntArray:
    """0-based ranks of the minimum, the QUANTILES (numpy's 'lower') and the maximum among `total` sorted values."""
    inner = (int(np.floor(q * (total - 1))) for q in QUANTILES.values())
    return np.array([0, *inner, total - 1], dtype=np.int64)


def bin_counts(values: FloatArray, counts: IntArray, edges: FloatArray) -> IntArray:
    """Counts per bin; a value on an edge goes to the side away from zero, which is where its prefix lies."""
    bins = np.where(
        values >= 0, np.searchsorted(edges, values, side="right") - 1, np.searchsorted(edges, values, side="left") - 1
    )
    bins = np.clip(bins, 0, edges.size - 2)
    return np.bincount(bins, weights=counts, minlength=edges.size - 1).astype(np.int64)


def squared_norms(weight: torch.Tensor) -> tuple[FloatArray, FloatArray]:
    """Squared 2-norms of rows and of columns in float64, NaN and Inf taken as 0: shapes (rows,) and (cols,)."""
    columns = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    rows = []
    buffer: torch.Tensor | None = None
    for chunk in row_chunks(weight):
        if buffer is None:
            buffer = torch.empty(chunk.shape, dtype=torch.float64, device=weight.device)
        wide = buffer[: chunk.shape[0]].copy_(chunk)
        of_rows, of_columns = _sums_of_squares(wide)
        if not bool(torch.isfinite(of_rows).all()):
            of_rows, of_columns = _sums_of_squares(wide.copy_(chunk).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))
        rows.append(of_rows)
        columns += of_columns
    return torch.cat(rows).cpu().numpy(), columns.cpu().numpy()


def _sums_of_squares(wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Along rows and along columns, float64; `wide` may be overwritten."""
    if wide.is_cuda:
        squares = wide.square_()
        return squares.sum(1), squares.sum(0)
    array = wide.numpy()  # one pass each, and no threads to wake for so little
    sums = np.einsum("ij,ij->i", array, array), np.einsum("ij,ij->j", array, array)
    return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])


def _special_values(counts: IntArray, values: FloatArray) -> tuple[int, int, int]:
    zeros, nans, infs = (int(counts[mask].sum()) for mask in (values == 0, np.isnan(values), np.isinf(values)))
    return zeros, nans, infs


def _special_float32(part: torch.Tensor, counts: IntArray, values: FloatArray) -> tuple[int, int, int]:
    """The prefix of Inf also begins some NaNs, that of 0 some denormals: they are counted in the weight."""
    zeros = nans = infs = 0
    suspicious = not np.isfinite(values[counts > 0]).all()
    for chunk in row_chunks(part):
        zeros += int(chunk.numel() - torch.count_nonzero(chunk))
        if suspicious:
            nans += int(torch.isnan(chunk).sum())
            infs += int(torch.isinf(chunk).sum())
    return zeros, nans, infs


def _wide_facts(part: torch.Tensor, narrow: torch.Tensor, counts: IntArray) -> WideFacts:
    moments = Moments()
    for chunk in row_chunks(part):
        flat = chunk.flatten()
        finite = torch.isfinite(flat)
        moments = moments.merged(moments_of_chunk(flat if bool(finite.all()) else flat[finite]))
    total = int(counts.sum())
    order = select_ranks(narrow, counts, order_ranks(total)) if total else np.empty(0)
    return WideFacts(moments, order, _beyond(part, moments))


def _beyond(part: torch.Tensor, moments: Moments) -> list[int]:
    beyond = [0] * len(OUTLIER_SIGMAS)
    if moments.count == 0:
        return beyond
    limits = [k * moments.std for k in OUTLIER_SIGMAS]
    for chunk in row_chunks(part):
        distances = (chunk.double() - moments.mean).abs_()
        candidates = distances[(distances > limits[0]) & torch.isfinite(distances)]
        for i, limit in enumerate(limits):
            beyond[i] += int((candidates > limit).sum())
    return beyond


def moments_of(tally: Tally) -> Moments:
    """Moments of the finite values."""
    if tally.wide is not None:
        return tally.wide.moments
    present = tally.counts > 0
    return moments_of_counts(tally.values[present], tally.counts[present])


def _held_by_bfloat16(edges: FloatArray) -> bool:
    """Whether counts of upper bits are exact counts between these edges."""
    return bool(np.all(torch.tensor(edges).to(torch.bfloat16).double().numpy() == edges))


def _histogram(part: torch.Tensor, edges: FloatArray) -> IntArray:
    total = np.zeros(edges.size - 1, dtype=np.int64)
    for chunk in row_chunks(part):
        flat = chunk.double().flatten()
        finite = flat[torch.isfinite(flat)].cpu().numpy()
        total += bin_counts(finite, np.ones(finite.size, dtype=np.int64), edges)
    return total
