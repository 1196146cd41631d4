"""Paired comparisons with the correction for many, equivalence, and what a gain is worth in parameters."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Paired:
    """Difference of an arm from uniform over paired seeds: negative is better."""

    mean: float
    low: float  # 95 % confidence interval
    high: float
    p: float  # two-sided paired t test
    seeds: int


def paired(arm: np.ndarray, uniform: np.ndarray) -> Paired:
    """Student's paired t test and 95 % interval of arm - uniform; one loss a seed in each, in the same order."""
    difference = np.asarray(arm, dtype=float) - np.asarray(uniform, dtype=float)
    count = len(difference)
    if count < 2:
        return Paired(float(difference.mean()), float("nan"), float("nan"), float("nan"), count)
    half = stats.t.ppf(0.975, count - 1) * difference.std(ddof=1) / np.sqrt(count)
    p = float(stats.ttest_1samp(difference, 0.0).pvalue)
    return Paired(float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half), p, count)


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p values, Holm (1979): step down, each times the number still open, kept monotone, at most 1."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def not_worse(arm: np.ndarray, uniform: np.ndarray, margin: float) -> float:
    """p of 'worse than uniform by `margin` or more': one-sided paired t, the upper half of Schuirmann's TOST."""
    difference = np.asarray(arm, dtype=float) - np.asarray(uniform, dtype=float)
    return float(stats.ttest_1samp(difference, margin, alternative="less").pvalue)


@dataclass(frozen=True)
class EqualLoss:
    """Uniform's rank of a given loss, and whether it is only the end of the curve, beyond which nothing is known."""

    rank: float
    at_end: bool


def uniform_rank_of_equal_loss(ranks: list[int], losses: list[float], loss: float) -> EqualLoss:
    """Uniform's rank that would reach `loss`, from its own curve: descending, linear in log rank between its points.

    A rank that is no better than a smaller one is no point of the curve. Outside the curve the answer is the nearer
    end, so that a saving is never extrapolated.
    """
    points: list[tuple[int, float]] = []
    for rank, own in sorted(zip(ranks, losses, strict=True)):
        if not points or own < points[-1][1]:
            points.append((rank, own))
    x, y = np.log([rank for rank, _ in points]), np.array([own for _, own in points])
    at_end = not y[-1] < loss < y[0]
    return EqualLoss(float(np.exp(np.interp(-loss, -y, x))), at_end)
