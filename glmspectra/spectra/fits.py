"""How close a distribution of values is to normal, Laplace and Student-t, from values and their counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from glmspectra.spectra.moments import Moments
from glmspectra.spectra.spectrum import FloatArray

FAMILIES = ("normal", "laplace", "student_t")
# Degrees of freedom are searched in this range; at the upper end Student-t and normal differ by less than 1e-3 in CDF.
DEGREES_RANGE = (0.3, 300.0)
GROUP_LINEAR_BELOW = 0.05
GROUP_STEP = 0.02


@dataclass(frozen=True)
class DistributionFit:
    """Maximum-likelihood fits and distances.

    best: the family with the smallest Akaike criterion. *_ks: Kolmogorov-Smirnov distances, 0 to 1. student_t_df:
    degrees
    of freedom of the Student-t fit. normal_wasserstein: 1-Wasserstein distance from the fitted normal, in standard
    deviations of the values.
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
    deviation, Student-t by a quasi-Newton search over location, scale and degrees of freedom (Lange, Little & Taylor,
    Robust statistical modeling using the t distribution, J. Amer. Stat. Assoc. 84, 1989, sec. 5). Distances compare the
    distribution functions at both ends of every interval.
    """
    if moments.count == 0 or not moments.std > 0 or lower.size < 2:
        return None
    total = float(counts.sum())
    weight = counts / total
    cumulative = np.cumsum(weight)
    cumulative[-1] = 1.0

    # Everything is free of scale: work in standard deviations from the mean.
    low, high = ((end - moments.mean) / moments.std for end in (lower, upper))
    z = (low + high) / 2
    median = float(z[np.searchsorted(cumulative, 0.5)])
    spread = float(np.dot(weight, np.abs(z - median)))
    degrees, location, scale = _fit_student_t(z, weight, median)

    def laplace_cdf(x: FloatArray) -> FloatArray:
        tail = 0.5 * np.exp(-np.abs(x - median) / spread)
        return np.where(x < median, tail, 1 - tail)

    def student_t_cdf(x: FloatArray) -> FloatArray:
        return special.stdtr(degrees, (x - location) / scale)

    log_likelihood = {
        # On the same points as the others, whose spread differs from the values' by the width of an interval.
        "normal": -0.5 * np.log(2 * np.pi * np.dot(weight, (z - np.dot(weight, z)) ** 2)) - 0.5,
        "laplace": -np.log(2 * spread) - 1,
        "student_t": float(np.dot(weight, _student_log_density(z, degrees, location, scale))),
    }
    parameters = {"normal": 2, "laplace": 2, "student_t": 3}
    best = min(FAMILIES, key=lambda family: 2 * parameters[family] - 2 * total * log_likelihood[family])
    return DistributionFit(
        best=best,
        normal_ks=_ks(special.ndtr, low, high, cumulative),
        laplace_ks=_ks(laplace_cdf, low, high, cumulative),
        student_t_ks=_ks(student_t_cdf, low, high, cumulative),
        student_t_df=degrees,
        normal_wasserstein=_wasserstein_to_standard_normal(low, high, cumulative),
    )


def _ks(cdf: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray, cumulative: FloatArray) -> float:
    """sup |F_n - F| over the ends of all intervals; over all x when the intervals are single values."""
    before = np.concatenate([[0.0], cumulative[:-1]])
    return float(max(np.abs(cumulative - cdf(high)).max(), np.abs(before - cdf(low)).max()))


def _student_log_density(z: FloatArray, degrees: float, location: float, scale: float) -> FloatArray:
    constant = (
        special.gammaln((degrees + 1) / 2)
        - special.gammaln(degrees / 2)
        - 0.5 * np.log(degrees * np.pi)
        - np.log(scale)
    )
    return constant - (degrees + 1) / 2 * np.log1p(((z - location) / scale) ** 2 / degrees)


def _fit_student_t(z: FloatArray, weight: FloatArray, median: float) -> tuple[float, float, float]:
    """Degrees of freedom, location and scale of largest likelihood for values z of given weights (sum 1)."""
    # Grouping to bins at most 2 % wide (0.1 % of a deviation at the centre) leaves about a thousand points.
    group = np.floor(np.arcsinh(z / GROUP_LINEAR_BELOW) / GROUP_STEP)
    _, member = np.unique(group, return_inverse=True)
    mass = np.bincount(member, weights=weight)
    points = np.bincount(member, weights=weight * z) / mass

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        location, log_scale, log_degrees = parameters
        d, scale = np.exp(log_degrees), np.exp(log_scale)
        centred = (points - location) / scale
        squared = centred * centred
        log_term = float(np.dot(mass, np.log1p(squared / d)))
        latent = float(np.dot(mass, squared / (d + squared)))
        constant = special.gammaln((d + 1) / 2) - special.gammaln(d / 2) - 0.5 * np.log(d * np.pi) - log_scale
        by_degrees = (
            0.5 * (special.digamma(d / 2) - special.digamma((d + 1) / 2) + 1 / d + log_term)
            - (d + 1) / (2 * d) * latent
        )
        gradient = [
            -(d + 1) / scale * float(np.dot(mass, centred / (d + squared))),
            1 - (d + 1) * latent,
            d * by_degrees,
        ]
        return (d + 1) / 2 * log_term - constant, np.array(gradient)

    spread = float(np.dot(mass, np.abs(points - median)))
    found = optimize.minimize(
        loss,
        x0=[median, np.log(max(spread, 1e-6)), np.log(5.0)],
        jac=True,
        method="L-BFGS-B",
        bounds=[(points[0], points[-1]), (-20.0, 5.0), tuple(np.log(DEGREES_RANGE))],
        options={"ftol": 1e-13, "gtol": 1e-7, "maxiter": 500},
    )
    location, log_scale, log_degrees = found.x
    return float(np.exp(log_degrees)), float(location), float(np.exp(log_scale))


def _wasserstein_to_standard_normal(low: FloatArray, high: FloatArray, cumulative: FloatArray) -> float:
    """Integral of |F_n - Phi| over the line.

    Exact between intervals, where F_n is a constant c and the integral of Phi is x Phi(x) + phi(x); within an interval
    by the trapezoid rule, which is nothing when the intervals are single values.
    """

    def integral(x: FloatArray) -> FloatArray:
        return x * special.ndtr(x) + np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)

    left, right, level = high[:-1], low[1:], cumulative[:-1]
    crossing = np.clip(special.ndtri(level), left, right)
    before_crossing = level * (crossing - left) - (integral(crossing) - integral(left))
    after_crossing = (integral(right) - integral(crossing)) - level * (right - crossing)
    between = float(np.abs(before_crossing).sum() + np.abs(after_crossing).sum())

    before = np.concatenate([[0.0], cumulative[:-1]])
    heights = np.abs(before - special.ndtr(low)) + np.abs(cumulative - special.ndtr(high))
    within = float(np.dot(heights, high - low) / 2)
    # Below the first value F_n is 0, above the last it is 1; by symmetry the second integral is that of the first.
    outside = float(integral(low[:1]).item() + integral(-high[-1:]).item())
    return between + within + outside
