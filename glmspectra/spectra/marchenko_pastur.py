"""What random noise alone would give: the Marchenko-Pastur bulk, its edge, and the Gavish-Donoho threshold.

A noise matrix of shape (rows, cols) with independent entries of standard deviation s has singular values that fill
s * [sqrt(long) - sqrt(short), sqrt(long) + sqrt(short)] (Marchenko & Pastur 1967). What stands above the bulk is
structure (Baik, Ben Arous & Peche, Annals of Probability 33(5), 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from glmspectra.spectra.spectrum import FloatArray

# 0.99 quantile of the Tracy-Widom law of order 1 (Bejan, Largest eigenvalues and sample covariance matrices, 2005,
# table 2): one noise matrix in a hundred puts a value above an edge that allows for it.
TRACY_WIDOM_99 = 2.0234


@lru_cache(maxsize=4096)
def bulk_median(aspect: float) -> float:
    """Median of the Marchenko-Pastur law of the *eigenvalues* of noise with unit variance, for `aspect` in (0, 1].

    The law has density sqrt((b - x)(x - a)) / (2 pi aspect x) on [a, b] = [(1 - sqrt aspect)^2, (1 + sqrt aspect)^2];
    eigenvalues are divided by the longer side. Gavish & Donoho 2014 call it mu_beta.
    """
    if not 0 < aspect <= 1:
        raise ValueError(f"aspect is {aspect}; it is shorter side over longer side, in (0, 1]")
    root = math.sqrt(aspect)

    # In x = 1 + aspect - 2 root cos t the mass below t is the integral of 2/pi sin(t)^2 / x, which by
    # sin(t) / x = sum over k > 0 of root^(k - 1) sin(k t) is a sum of sines, and of it this is the closed form.
    def mass_below(angle: float) -> float:
        wave = math.atan2(root * math.sin(angle), 1 - root * math.cos(angle))
        return (angle + math.sin(angle) / root - wave * (1 - aspect) / aspect) / math.pi

    angle = zero_between(lambda t: mass_below(t) - 0.5, 0.0, math.pi)
    return (1 - root) ** 2 + 4 * root * math.sin(angle / 2) ** 2


def zero_between(function: Callable[[float], float], below: float, above: float) -> float:
    """Where `function`, under 0 at `below` and over it at `above`, passes 0: by halving, to the last bit.

    In place of `scipy.optimize.brentq`, whose import takes longer than all searches of a model. Where the ends have
    other signs it raises ValueError, as that does.
    """
    if not function(below) <= 0 <= function(above):
        raise ValueError(f"the function does not pass 0 from {below} to {above}")
    while below < (middle := (below + above) / 2) < above:
        below, above = (middle, above) if function(middle) < 0 else (below, middle)
    return middle


def noise_level(sigma: FloatArray, rows: int, cols: int) -> float:
    """Standard deviation of the noise entries, from the median singular value: sigma_med / sqrt(long * mu_beta).

    Gavish & Donoho, The optimal hard threshold for singular values is 4/sqrt(3), IEEE Trans. Inf. Theory 60(8), 2014,
    sec. III.E. Needs all min(rows, cols) values; robust as long as fewer than half of them are signal.
    """
    long, short = max(rows, cols), min(rows, cols)
    return float(np.median(sigma) / np.sqrt(long * bulk_median(short / long)))


def noise_edge(noise: float, rows: int, cols: int) -> float:
    """Singular value below which the largest of a pure noise matrix stays in 99 % of cases.

    The edge sqrt(long) + sqrt(short), with the centring, the scale and the 0.99 quantile of the Tracy-Widom law of the
    largest eigenvalue (Johnstone, Annals of Statistics 29(2), 2001, thm 1.1).
    """
    a, b = np.sqrt(max(rows, cols) - 1.0), np.sqrt(min(rows, cols))
    if a == 0:
        return noise * 2.5758  # a single entry: 0.99 of a normal lies within
    scale = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(noise * np.sqrt((a + b) ** 2 + TRACY_WIDOM_99 * scale))


def optimal_hard_threshold(sigma: FloatArray, rows: int, cols: int) -> float:
    """Singular value above which keeping is better than dropping, noise level unknown: omega(beta) * median.

    Gavish & Donoho 2014, eqs. (4) and (11): omega(beta) = lambda(beta) / sqrt(mu_beta), lambda(beta) =
    sqrt(2 (beta + 1) + 8 beta / (beta + 1 + sqrt(beta^2 + 14 beta + 1))); 2.858 for a square matrix.
    """
    beta = min(rows, cols) / max(rows, cols)
    weight = np.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1)))
    return float(weight / np.sqrt(bulk_median(beta)) * np.median(sigma))
