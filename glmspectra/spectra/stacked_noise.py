"""What noise alone would give in a matrix of stacked parts of unequal scale: q over k over v, gate over up.

The bulk of such a stack is not the Marchenko-Pastur law of one variance, and taking it for one turns the louder part
into false spikes. W^T W is a sample covariance matrix whose rows have unequal variances. With t_p the variance and
rows_p the height of part p, s(z) = trace (W^T W - z)^-1 solves

    z = -cols / s + sum_p rows_p t_p / (1 + t_p s)

(Silverstein & Choi, J. Multivariate Analysis 54, 1995, here not divided by cols); the density of eigenvalues at x is
Im s(x) / pi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch

from glmspectra.spectra.marchenko_pastur import TRACY_WIDOM_99, zero_between
from glmspectra.spectra.spectrum import FloatArray

# Entries of a part that its scale is read from: it is then known to 0.2 %, within the width of an edge of order 4096.
SAMPLE = 1 << 18
# Points at which the density is computed; the median is good to 1e-4.
GRID = 1500


@dataclass(frozen=True)
class NoiseBlock:
    """One part of a stack: how many rows, and its noise level in any unit that the blocks share."""

    rows: int
    level: float


def entry_scales(weight: torch.Tensor, parts: Sequence[slice]) -> list[NoiseBlock]:
    """The blocks of a fused weight with the scale of the entries of each: their median absolute deviation.

    weight: shape (rows, cols), floating dtype, on any device. parts: consecutive ranges of rows that make it up.
    Robust against outliers, and only the ratios are used: the levels themselves come from the bulk (`scaled_to_bulk`),
    so that heavy tails of the entries do no harm as long as the parts share them. Read from about 260,000 entries a
    part, the same ones on every device.
    """
    blocks = []
    cols = weight.shape[1]
    for rows in parts:
        entries = weight[rows].reshape(-1)
        step = max(1, entries.numel() // SAMPLE)
        while gcd(step, cols) != 1:  # else only some of the columns would be seen
            step += 1
        sample = entries[::step]
        sample = sample if sample.dtype == torch.float64 else sample.float()
        deviation = (sample - sample.median()).abs_().median()
        blocks.append(NoiseBlock(weight[rows].shape[0], float(deviation)))
    return blocks


def scaled_to_bulk(blocks: Sequence[NoiseBlock], sigma: FloatArray, cols: int) -> list[NoiseBlock]:
    """The blocks with their levels multiplied by one factor, so that the median of stacked noise is that of `sigma`.

    sigma: all min(rows, cols) singular values of the stack. The counterpart of `noise_level` (Gavish & Donoho 2014,
    sec. III.E) for unequal levels, which need to be above 0.
    """
    levels = np.array([block.level for block in blocks])
    counts = [block.rows for block in blocks]
    factor = float(np.median(sigma)) / np.sqrt(stacked_bulk_median(levels.tolist(), counts, cols))
    return [NoiseBlock(block.rows, float(block.level * factor)) for block in blocks]


def stacked_bulk_median(noises: Sequence[float], rows: Sequence[int], cols: int) -> float:
    """Median of the min(sum rows, cols) eigenvalues of W^T W (of W W^T where that is smaller) of stacked noise.

    noises: level of each part, above 0; rows: heights. For one level it is level^2 * long * `bulk_median`.
    """
    variances = np.square(np.asarray(noises, dtype=np.float64))
    counts = np.asarray(rows, dtype=np.float64)
    unit = float(np.average(variances, weights=counts))
    top = 1.05 * stacked_noise_edge(noises, rows, cols) ** 2 / unit
    angles = (np.arange(GRID) + 0.5) * (np.pi / GRID)
    # Finer towards both ends: the density has square-root edges, and for a square matrix no bound at 0.
    points = top / 2 * (1 - np.cos(angles))
    mass = _density(points, variances / unit, counts, cols) * np.sin(angles)
    below = np.cumsum(mass) / mass.sum()
    last = int(np.searchsorted(below, 0.5))
    before = below[last - 1] if last else 0.0
    angle = (last + (0.5 - before) / (below[last] - before)) * (np.pi / GRID)
    return unit * float(top / 2 * (1 - np.cos(angle)))


def _density(points: FloatArray, variances: FloatArray, counts: FloatArray, cols: int) -> FloatArray:
    """Im s(x) at each point x > 0, shape (n,): of the roots of the equation as a polynomial the one with Im > 0."""
    product = np.array([1.0])  # of (1 + t_p s), highest power first
    for variance in variances:
        product = np.polymul(product, [variance, 1.0])
    rest = np.zeros(1)
    for skipped, (variance, count) in enumerate(zip(variances, counts, strict=True)):
        others = np.array([count * variance])
        for index, other in enumerate(variances):
            others = np.polymul(others, [other, 1.0]) if index != skipped else others
        rest = np.polyadd(rest, others)
    constant = np.polysub(cols * product, np.polymul(rest, [1.0, 0.0]))  # all that is not multiplied by x
    leading = np.polymul(product, [1.0, 0.0])
    degree = leading.size - 1
    coefficients = points[:, None] * leading + np.concatenate([np.zeros(leading.size - constant.size), constant])
    companion = np.zeros((points.size, degree, degree))
    companion[:, 0, :] = -coefficients[:, 1:] / coefficients[:, :1]
    companion[:, np.arange(1, degree), np.arange(degree - 1)] = 1.0
    found: FloatArray = np.linalg.eigvals(companion).imag.max(axis=1)
    return found


def stacked_noise_edge(noises: Sequence[float], rows: Sequence[int], cols: int) -> float:
    """`noise_edge` for a matrix of stacked parts, part p with rows[p] rows and noise level noises[p].

    The right end of the support is the minimum of z(s) over -1/max(noises^2) < s < 0 (Silverstein & Choi 1995), and the
    Tracy-Widom scale there is (z''(s)/2)^(1/3) (El Karoui, Annals of Probability 35(2), 2007, thm 1).
    """
    variances = np.square(np.asarray(noises, dtype=np.float64))
    counts = np.asarray(rows, dtype=np.float64)
    loudest = variances.max()
    if loudest == 0:
        return 0.0
    variances = variances / loudest
    keep = variances > 0
    variances, counts = variances[keep], counts[keep]

    def slope(s: float) -> float:
        return cols / s**2 - float(np.sum(counts * variances**2 / (1 + variances * s) ** 2))

    # cols / s^2 outweighs the sum near 0, the sum outweighs it near the pole at -1.
    root = zero_between(slope, -1 + 1e-12, -1e-12)
    edge = -cols / root + float(np.sum(counts * variances / (1 + variances * root)))
    curvature = -2 * cols / root**3 + 2 * float(np.sum(counts * variances**3 / (1 + variances * root) ** 3))
    scale = (curvature / 2) ** (1 / 3)
    return float(np.sqrt(loudest * (edge + TRACY_WIDOM_99 * scale)))
