"""From what a criterion says of each matrix to integer ranks within a budget.

Three ways, by the criterion's answer: 'gain' (what each further direction is worth; the best sum, `knapsack`),
'threshold' (directions in the order of one number over all matrices) and 'score' (ranks in proportion, by
largest remainder).
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from glmspectra.errors import RequestError
from glmspectra.ranks.evidence import Target
from glmspectra.ranks.knapsack import SECONDS, choose

GOLDEN = 0.6180339887498949  # spreads ties evenly over the layers


@dataclass(frozen=True)
class Limits:
    """What each rank must keep to.

    Attributes:
        min_rank: the least.
        max_rank: the most; None: rows or cols.
        multiple_of: what it is a multiple of (0 is one).
    """

    min_rank: int = 0
    max_rank: int | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.min_rank < 0 or self.multiple_of < 1 or (self.max_rank is not None and self.max_rank < 1):
            raise RequestError("--min-rank is 0 or more, --max-rank and --multiple-of are 1 or more.")
        if self.max_rank is not None and self.lowest > self.max_rank:
            raise RequestError(
                f"no rank is at least {self.min_rank}, at most {self.max_rank} and a multiple of {self.multiple_of}."
            )

    @property
    def lowest(self) -> int:
        return -(-self.min_rank // self.multiple_of) * self.multiple_of

    def highest(self, target: Target, known: int | None = None) -> int:
        """The largest rank admitted: of the matrix, of the option, and of the directions that are known of it."""
        top = min(target.rows, target.cols)
        if self.max_rank is not None:
            top = min(top, self.max_rank)
        if known is not None:
            top = min(top, known)
        return max(top // self.multiple_of * self.multiple_of, self.lowest)


@dataclass(frozen=True)
class Allocation:
    """Ranks of all targets by one criterion under one budget, and how they were found.

    Attributes:
        targets: the matrices that get ranks.
        ranks: name -> rank, 0 included.
        how: the way they were found.
        threshold: the global one, of a criterion that answers with 'threshold'.
        gap: what the value may fall short of the optimum, where the solver ran out of time.
        capped: names whose rank is all that the criterion knows of, so that more might have been worth something.
    """

    targets: tuple[Target, ...]
    ranks: dict[str, int]
    how: str
    threshold: float | None = None
    value: float | None = None
    gap: float = 0.0
    capped: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Trainable parameters of these ranks."""
        return sum(self.ranks[target.name] * target.cost for target in self.targets)


def allocate_by_gains(
    targets: Sequence[Target],
    gains: Mapping[str, np.ndarray],
    budget: int,
    limits: Limits,
    seconds: float = SECONDS,
) -> Allocation:
    """Ranks whose summed gains are the most that `budget` parameters buy. gains[name][i]: of direction i, 0 or more."""
    weights, values, options = [], [], []
    for target in targets:
        gain = np.asarray(gains[target.name], dtype=np.float64)
        top = limits.highest(target, len(gain))
        top = max(limits.lowest, min(top, budget // target.cost // limits.multiple_of * limits.multiple_of))
        admitted = np.arange(limits.lowest, top + 1, limits.multiple_of, dtype=np.int64)
        total = np.concatenate([[0.0], np.cumsum(gain), np.full(max(0, top - len(gain)), gain.sum())])
        options.append(admitted)
        weights.append(admitted * target.cost)
        values.append(total[admitted])
    choice = choose(weights, values, budget, seconds)
    ranks = {
        target.name: int(option[pick]) for target, option, pick in zip(targets, options, choice.picks, strict=True)
    }
    return Allocation(
        tuple(targets),
        ranks,
        "best sum" if choice.exact else "greedy",
        value=choice.value,
        gap=0.0 if choice.exact else choice.gap,
        capped=_capped(targets, ranks, gains, limits),
    )


def allocate_by_threshold(
    targets: Sequence[Target], sizes: Mapping[str, np.ndarray], budget: int, limits: Limits
) -> Allocation:
    """Keep every direction whose size is over one threshold, the lowest that the budget allows.

    sizes[name]: descending, the same unit in all matrices. Directions are taken from the largest down; the
    first that does not fit sets the threshold, and what is then left goes to the next ones that still fit.
    With multiple_of, blocks of directions by their mean. A size of 0 is never taken.
    """
    ranks = {target.name: limits.lowest for target in targets}
    left = budget - sum(limits.lowest * target.cost for target in targets)
    if left < 0:
        raise RequestError(f"--min-rank {limits.min_rank} alone costs more than the budget of {budget} parameters.")
    step = limits.multiple_of
    by_name = {target.name: (position, target) for position, target in enumerate(targets)}
    queue: list[tuple[float, int, str]] = []

    def offer(name: str) -> None:
        position, target = by_name[name]
        values = sizes[name]
        start = ranks[name]
        if start + step <= limits.highest(target, len(values)) and len(values) >= start + step:
            mean = float(np.mean(values[start : start + step]))
            if mean > 0:
                heapq.heappush(queue, (-mean, position, name))

    for target in targets:
        offer(target.name)
    threshold = None
    while queue:
        size, _, name = heapq.heappop(queue)
        cost = by_name[name][1].cost * step
        if cost > left:
            threshold = -size if threshold is None else threshold
            continue
        left -= cost
        ranks[name] += step
        offer(name)
    return Allocation(
        tuple(targets),
        ranks,
        "one global threshold",
        threshold=threshold or 0.0,
        capped=_capped(targets, ranks, sizes, limits),
    )


def allocate_by_scores(
    targets: Sequence[Target], scores: Mapping[str, float], budget: int, limits: Limits
) -> Allocation:
    """Ranks in proportion to scores (0 or more).

    The factor is the same for all; ranks are clipped to the limits and rounded by largest remainder.
    """
    values = np.array([max(0.0, float(scores[target.name])) for target in targets])
    if not np.isfinite(values).all():
        raise RequestError("a score is not finite: measure the matrices again.")
    costs = np.array([target.cost for target in targets], dtype=np.float64)
    low = np.full(len(values), float(limits.lowest))
    high = np.array([float(limits.highest(target)) for target in targets])
    if float(low @ costs) > budget:
        raise RequestError(f"--min-rank {limits.min_rank} alone costs more than the budget of {budget} parameters.")
    nothing = not values.any()
    if nothing:
        values = np.ones(len(values))
    values = values / values.max()
    values[values < 1e-12] = 0.0  # too small to count, and their inverse would overflow
    ranks = _round(targets, _proportional(values, costs, low, high, budget), budget, limits)
    return Allocation(tuple(targets), ranks, "every score is 0: uniform" if nothing else "largest remainder")


def _proportional(values: np.ndarray, costs: np.ndarray, low: np.ndarray, high: np.ndarray, budget: int) -> np.ndarray:
    """Real ranks clip(t * values, low, high) with the largest t that the budget allows."""
    positive = values > 0
    if float(np.where(positive, high, low) @ costs) <= budget:
        return np.where(positive, high, low)
    small, large = 0.0, float(np.max(high[positive] / values[positive]))
    for _ in range(200):
        middle = (small + large) / 2
        if float(np.clip(middle * values, low, high) @ costs) <= budget:
            small = middle
        else:
            large = middle
    return np.clip(small * values, low, high)


def _round(targets: Sequence[Target], real: np.ndarray, budget: int, limits: Limits) -> dict[str, int]:
    """Largest remainder: all down to a multiple, then one step more by the size of what was cut, while it fits.

    Equal remainders are served in an order that spreads over the layers instead of favoring the first ones.
    """
    step = limits.multiple_of
    # 1e-9: a real rank of 11.999999999 from the bisection is 12.
    steps = np.floor(real / step + 1e-9)
    ranks = {target.name: int(count) * step for target, count in zip(targets, steps, strict=True)}
    left = budget - sum(ranks[target.name] * target.cost for target in targets)
    remainder = real / step - steps
    order = sorted(
        range(len(targets)),
        key=lambda i: (-round(float(remainder[i]), 9), (((targets[i].layer or 0) + 1) * GOLDEN) % 1.0, i),
    )
    for i in order:
        target = targets[i]
        cost = target.cost * step
        if remainder[i] > 1e-9 and cost <= left and ranks[target.name] + step <= limits.highest(target):
            ranks[target.name] += step
            left -= cost
    return ranks


def round_ranks(targets: Sequence[Target], real: Mapping[str, float], budget: int, limits: Limits) -> Allocation:
    """Round ranks that are already real numbers within the budget by largest remainder.

    Such are mixtures and means over layers.
    """
    values = np.array([real[target.name] for target in targets], dtype=np.float64)
    high = np.array([float(limits.highest(target)) for target in targets])
    ranks = _round(targets, np.clip(values, limits.lowest, high), budget, limits)
    return Allocation(tuple(targets), ranks, "largest remainder")


def _capped(
    targets: Sequence[Target], ranks: Mapping[str, int], known: Mapping[str, np.ndarray], limits: Limits
) -> tuple[str, ...]:
    """Names whose rank is all the non-zero directions that were known, though matrix and limits would admit more."""
    return tuple(
        target.name
        for target in targets
        if 0 < len(known[target.name]) <= ranks[target.name] < limits.highest(target) and known[target.name][-1] > 0
    )
