"""The Student-t distribution of largest likelihood for weighted points: location, scale and degrees of freedom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from glmspectra.spectra.spectrum import FloatArray

# Degrees of freedom are searched in this range; at the upper end Student-t and normal differ by less than 1e-3 in CDF.
DEGREES_RANGE = (0.3, 300.0)
START_DEGREES = 5.0
# Stop where a full step would gain less than this in log-likelihood a point; a step is at most this long.
GAIN = 1e-13
LONGEST_STEP = 1.0
MAX_STEPS = 100


@dataclass(frozen=True)
class StudentT:
    """degrees of freedom, location and scale, the last two in the unit of the points."""

    degrees: float
    location: float
    scale: float


def student_log_density(x: FloatArray, fit: StudentT) -> FloatArray:
    """Log density at x, any shape."""
    body: FloatArray = (fit.degrees + 1) / 2 * np.log1p(((x - fit.location) / fit.scale) ** 2 / fit.degrees)
    density: FloatArray = _constant(fit.degrees) - np.log(fit.scale) - body
    return density


def fit_student_t(points: FloatArray, mass: FloatArray) -> StudentT:
    """Maximum likelihood over all three parameters for points (n,) of mass (n,), sum 1; n >= 2, not all equal.

    Newton's method with exact second derivatives in location / scale, log scale and log degrees of freedom (the
    derivatives: Lange, Little & Taylor, Robust statistical modeling using the t distribution, J. Amer. Stat. Assoc.
    84, 1989, app. B), made safe by taking the absolute values of the curvatures, limiting the step and halving it until
    the likelihood grows. The degrees of freedom stay in DEGREES_RANGE.
    """
    bounds = np.log(DEGREES_RANGE)
    order = np.argsort(points)
    location = float(points[order][np.searchsorted(np.cumsum(mass[order]), 0.5 * mass.sum())])
    scale = float(np.dot(mass, np.abs(points - location))) or float(np.ptp(points))
    smallest = 1e-9 * scale  # all mass on one point but for a few: the likelihood has no maximum
    log_degrees = float(np.log(START_DEGREES))
    loss, gradient, curvature = _derivatives(points, mass, location, scale, log_degrees)
    for _ in range(MAX_STEPS):
        at_bound = (log_degrees <= bounds[0] and gradient[2] > 0) or (log_degrees >= bounds[1] and gradient[2] < 0)
        free = 2 if at_bound else 3
        values, vectors = np.linalg.eigh(curvature[:free, :free])
        along = vectors.T @ gradient[:free]
        strength = np.maximum(np.abs(values), 1e-12)
        step = np.zeros(3)
        step[:free] = -vectors @ (along / strength)
        if float(np.sum(along**2 / strength)) < 2 * GAIN:
            break
        step *= min(1.0, LONGEST_STEP / float(np.abs(step).max()))
        for _ in range(40):
            trial = (
                location + scale * step[0],
                max(scale * float(np.exp(step[1])), smallest),
                float(np.clip(log_degrees + step[2], *bounds)),
            )
            reached = _derivatives(points, mass, *trial)
            if reached[0] < loss:
                break
            step /= 2
        else:
            break  # rounding leaves nothing to gain
        location, scale, log_degrees = trial
        loss, gradient, curvature = reached
    return StudentT(float(np.exp(log_degrees)), location, scale)


def _constant(degrees: float) -> float:
    return float(special.gammaln((degrees + 1) / 2) - special.gammaln(degrees / 2) - 0.5 * np.log(degrees * np.pi))


def _derivatives(
    points: FloatArray, mass: FloatArray, location: float, scale: float, log_degrees: float
) -> tuple[float, FloatArray, FloatArray]:
    """Negative log-likelihood a point, its gradient (3,) and Hessian (3, 3).

    In (location / scale at fixed scale, log scale, log degrees), so that every parameter is free of the unit.
    """
    d = float(np.exp(log_degrees))
    u = (points - location) / scale
    square = u * u
    w = 1 / (d + square)
    uw = u * w
    share = square * w
    powers = np.stack([np.log1p(square / d), uw, share, w * w, uw * w, uw * uw, share * uw, share * share])
    log_term, uw1, u2w1, w2, uw2, u2w2, u3w2, u4w2 = (powers @ mass).tolist()

    by_location = -(d + 1) * uw1
    by_scale = 1 - (d + 1) * u2w1
    by_degrees = 0.5 * (special.digamma(d / 2) - special.digamma((d + 1) / 2) + 1 / d + log_term - (d + 1) / d * u2w1)
    # Second derivatives of (d + 1) / 2 log(1 + u^2 / d) in u and d, by the chain rule through u.
    twice_location = (d + 1) * (d * w2 - u2w2)
    location_scale = 2 * d * (d + 1) * uw2
    twice_scale = 2 * d * (d + 1) * u2w2
    location_degrees = -(u3w2 - uw2)
    scale_degrees = -(u4w2 - u2w2)
    twice_degrees = (
        -u2w1 / d
        + (d + 1) / 2 * (2 * d * u2w2 + u4w2) / d**2
        + 0.25 * (special.polygamma(1, d / 2) - special.polygamma(1, (d + 1) / 2))
        - 0.5 / d**2
    )
    gradient = np.array([by_location, by_scale, d * by_degrees])
    curvature = np.array(
        [
            [twice_location, location_scale, d * location_degrees],
            [location_scale, twice_scale, d * scale_degrees],
            [d * location_degrees, d * scale_degrees, d * d * twice_degrees + d * by_degrees],
        ]
    )
    loss = (d + 1) / 2 * log_term - _constant(d) + float(np.log(scale))
    return loss, gradient, curvature
