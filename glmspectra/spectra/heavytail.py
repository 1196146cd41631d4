"""Power-law tail of the eigenvalues lambda = sigma^2: exponent, where the tail starts, and how well it fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glmspectra.spectra.spectrum import FloatArray

# Eigenvalues at or below this are left out of the fit, as weightwatcher does (its EVALS_THRESH).
SMALLEST_EIGENVALUE = 1e-5
# Share of the largest eigenvalues in the Hill estimate, as in the layer-quality studies that use it.
HILL_SHARE = 0.5
# Indices of a tail at which a candidate's distance is looked at first; and what
# rounding can put between two ways of computing it.
PROBES = 64
ROUNDING = 1e-12


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
    `weightwatcher`. Candidates that provably cannot win are not gone through; the result is that of trying them all.
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
    usable = np.flatnonzero(np.isfinite(alphas) & (alphas > 1))
    if usable.size == 0:
        return NO_FIT
    floors = _distance_floors(logs, alphas, sizes, usable)
    steps = np.arange(count, dtype=np.float64)
    least, best = np.inf, -1
    for index in np.argsort(floors, kind="stable"):
        if floors[index] > least + ROUNDING:
            break  # no candidate that is left can come below the best
        i = int(usable[index])
        tail = np.exp((1 - alphas[i]) * (logs[i:] - logs[i]))
        distance = float(np.abs(1 - tail - steps[: count - i] / (count - i)).max())
        if (distance, i) < (least, best):
            least, best = distance, i
    return PowerLaw(float(alphas[best]), float(data[best]), least, int(sizes[best]))


def _distance_floors(
    logs: FloatArray, alphas: FloatArray, sizes: FloatArray, usable: npt.NDArray[np.intp]
) -> FloatArray:
    """What the Kolmogorov-Smirnov distance of each usable candidate is at least: its largest gap at a few indices.

    The distance is a maximum over the whole tail, so a maximum over some of it is a lower bound, and all but a few
    candidates of thousands need not be gone through. Shape (len(usable),).
    """
    floors = np.empty(usable.size)
    share = np.linspace(0, 1, PROBES)
    for start in range(0, usable.size, 512):  # small enough for the cache
        first = usable[start : start + 512, None]
        size = sizes[first]
        offset = np.rint((size - 1) * share).astype(np.intp)
        tail = np.exp((1 - alphas[first]) * (logs[first + offset] - logs[first]))
        floors[start : start + 512] = np.abs(1 - tail - offset / size).max(axis=1)
    return floors


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
