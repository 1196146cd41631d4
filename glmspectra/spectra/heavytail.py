"""Power-law tail of the eigenvalues lambda = sigma^2: exponent, where the tail starts, and how well it fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glmspectra.spectra.spectrum import FloatArray

# Eigenvalues at or below this are left out of the fit, as weightwatcher does (its EVALS_THRESH).
SMALLEST_EIGENVALUE = 1e-5
# Share of the largest eigenvalues in the Hill estimate, as in the layer-quality studies that use it.
HILL_SHARE = 0.5


@dataclass(frozen=True)
class PowerLaw:
    """p(lambda) ~ lambda^-alpha for lambda >= xmin; `distance` is the Kolmogorov-Smirnov distance over the tail."""

    alpha: float
    xmin: float
    distance: float
    tail: int


NO_FIT = PowerLaw(float("nan"), float("nan"), float("nan"), 0)


def fit_power_law(eigenvalues: FloatArray) -> PowerLaw:
    """Fit a continuous power law with the xmin that makes the Kolmogorov-Smirnov distance smallest.

    eigenvalues: shape (n,), any order, unit of W squared. alpha = 1 + k / sum ln(x_i / xmin) over the k values of the
    tail (Clauset, Shalizi & Newman, Power-law distributions in empirical data, SIAM Review 51(4), 2009, eq. 3.1), every
    value but the largest being tried as xmin (sec. 3.3). The empirical distribution is taken as i/k at the i-th value,
    counted from 0, and a fit needs alpha > 1, so that the result is that of the packages `powerlaw` and
    `weightwatcher`.
    With fewer than 2 values above 1e-5 there is no fit: NaN, tail 0.
    """
    data = np.sort(eigenvalues[eigenvalues > SMALLEST_EIGENVALUE])
    count = data.size
    if count < 2:
        return NO_FIT
    logs = np.log(data)
    sizes = count - np.arange(count - 1.0)
    above = np.cumsum(logs[::-1])[::-1][:-1] - sizes * logs[:-1]
    with np.errstate(divide="ignore"):
        alphas = 1 + sizes / above
    usable = np.isfinite(alphas) & (alphas > 1)
    if not usable.any():
        return NO_FIT
    distances = np.ones(count - 1)
    steps = np.arange(count, dtype=np.float64)
    for i in np.flatnonzero(usable):
        tail = np.exp((1 - alphas[i]) * (logs[i:] - logs[i]))
        distances[i] = np.abs(1 - tail - steps[: count - i] / (count - i)).max()
    best = int(np.argmin(np.where(usable, distances, np.inf)))
    return PowerLaw(float(alphas[best]), float(data[best]), float(distances[best]), int(sizes[best]))


def hill_alpha(eigenvalues: FloatArray, share: float = HILL_SHARE) -> float:
    """Hill estimate of the exponent from the largest `share` of the eigenvalues (shape (n,), any order).

    1 + k / sum_{i<=k} ln(lambda_i / lambda_{k+1}), k = floor(share * n) (Hill, Annals of Statistics 3(5), 1975; on
    layers: Zhou et al., Temperature balancing, NeurIPS 2023, with share 1/2). No choice of xmin, so it is steadier than
    the fit and biased where the tail is not a power law. NaN where it is not defined.
    """
    data = np.sort(eigenvalues[eigenvalues > 0])[::-1]
    k = int(share * data.size)
    if k < 1 or data.size < 2:
        return float("nan")
    total = float(np.log(data[:k]).sum() - k * np.log(data[k]))
    return 1 + k / total if total > 0 else float("nan")
