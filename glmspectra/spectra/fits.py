"""How close a distribution of values is to normal, Laplace and Student-t, from values and their counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from glmspectra.spectra.moments import Moments, weighted_sum
from glmspectra.spectra.spectrum import FloatArray
from glmspectra.spectra.student_t import fit_student_t, student_log_density

FAMILIES = ("normal", "laplace", "student_t")
GROUP_LINEAR_BELOW = 0.05
GROUP_STEP = 0.02


@dataclass(frozen=True)
class DistributionFit:
    """Maximum-likelihood fits and distances.

    best: the family with the smallest Akaike criterion. *_ks: Kolmogorov-Smirnov distances, 0 to 1. student_t_df:
    degrees of freedom of the Student-t fit. normal_wasserstein: 1-Wasserstein distance from the fitted normal, in
    standard deviations of the values.
    """

    best: str
    normal_ks: float
    laplace_ks: float
    student_t_ks: float
    student_t_df: float
    normal_wasserstein: float


def fit_distributions(
    lower: FloatArray, upper: FloatArray, counts: FloatArray, moments: Moments
) -> DistributionFit | None:
    """Fit the three families to counts[i] > 0 values in each interval [lower[i], upper[i]].

    lower, upper: ascending and disjoint, finite, shape (n,); the same array when the values are known one by one.
    moments: of the values themselves. None for fewer than two distinct values.

    All three by maximum likelihood: the normal from mean and standard deviation, Laplace from median and mean absolute
    deviation, Student-t by Newton's method over location, scale and degrees of freedom (`fit_student_t`) on the values
    grouped to about a thousand points. Distances compare the distribution functions at both ends of every interval.
    """
    if moments.count == 0 or not moments.std > 0 or lower.size < 2:
        return None
    total = float(counts.sum())
    weight = counts / total
    cumulative = np.cumsum(weight)
    cumulative[-1] = 1.0

    # Everything is free of scale: work in standard deviations from the mean.
    low = (lower - moments.mean) / moments.std
    high = low if upper is lower else (upper - moments.mean) / moments.std
    z = (low + high) / 2
    median = float(z[np.searchsorted(cumulative, 0.5)])
    spread = weighted_sum(weight, np.abs(z - median))
    student = fit_student_t(*_grouped(z, weight))

    def laplace_cdf(x: FloatArray) -> FloatArray:
        tail = 0.5 * np.exp(-np.abs(x - median) / spread)
        return np.where(x < median, tail, 1 - tail)

    def student_t_cdf(x: FloatArray) -> FloatArray:
        found: FloatArray = special.stdtr(student.degrees, (x - student.location) / student.scale)
        return found

    log_likelihood = {
        # On the same points as the others, whose spread differs from the values' by the width of an interval.
        "normal": -0.5 * np.log(2 * np.pi * weighted_sum(weight, (z - weighted_sum(weight, z)) ** 2)) - 0.5,
        "laplace": -np.log(2 * spread) - 1,
        "student_t": weighted_sum(weight, student_log_density(z, student)),
    }
    parameters = {"normal": 2, "laplace": 2, "student_t": 3}
    best = min(FAMILIES, key=lambda family: 2 * parameters[family] - 2 * total * log_likelihood[family])
    return DistributionFit(
        best=best,
        normal_ks=_ks(special.ndtr, low, high, cumulative),
        laplace_ks=_ks(laplace_cdf, low, high, cumulative),
        student_t_ks=_ks(student_t_cdf, low, high, cumulative),
        student_t_df=student.degrees,
        normal_wasserstein=_wasserstein_to_standard_normal(low, high, cumulative),
    )


def _ks(cdf: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray, cumulative: FloatArray) -> float:
    """`sup |F_n - F|` over the ends of all intervals; over all x when the intervals are single values."""
    before = np.concatenate([[0.0], cumulative[:-1]])
    at_low = cdf(low)
    at_high = at_low if high is low else cdf(high)
    return float(max(np.abs(cumulative - at_high).max(), np.abs(before - at_low).max()))


def _grouped(z: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """About a thousand points (the means of groups) and their masses, for ascending values z of weights of sum 1.

    Groups are at most 2 % wide, 0.1 % of a standard deviation at the center.
    """
    group = np.floor(np.arcsinh(z / GROUP_LINEAR_BELOW) / GROUP_STEP)
    starts = np.flatnonzero(np.diff(group, prepend=-np.inf))
    mass = np.add.reduceat(weight, starts)
    return np.add.reduceat(weight * z, starts) / mass, mass


def _wasserstein_to_standard_normal(low: FloatArray, high: FloatArray, cumulative: FloatArray) -> float:
    """Integral of |F_n - Phi| over the line.

    Exact between intervals, where F_n is a constant c and the integral of Phi is x Phi(x) + phi(x); within an interval
    by the trapezoid rule, which is nothing when the intervals are single values.
    """

    def integral(x: FloatArray) -> FloatArray:
        found: FloatArray = x * special.ndtr(x) + np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
        return found

    left, right, level = high[:-1], low[1:], cumulative[:-1]
    crossing = np.clip(special.ndtri(level), left, right)
    at_crossing, at_low = integral(crossing), integral(low)
    at_high = at_low if high is low else integral(high)
    before_crossing = level * (crossing - left) - (at_crossing - at_high[:-1])
    after_crossing = (at_low[1:] - at_crossing) - level * (right - crossing)
    between = float(np.abs(before_crossing).sum() + np.abs(after_crossing).sum())

    within = 0.0
    if high is not low:
        before = np.concatenate([[0.0], cumulative[:-1]])
        heights = np.abs(before - special.ndtr(low)) + np.abs(cumulative - special.ndtr(high))
        within = weighted_sum(heights, high - low) / 2
    # Below the first value F_n is 0, above the last it is 1; by symmetry the second integral is that of the first.
    outside = float(integral(low[:1]).item() + integral(-high[-1:]).item())
    return between + within + outside
