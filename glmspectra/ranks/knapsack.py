"""The best integer ranks for given gains under a budget: a knapsack in which each matrix takes one of its
options.

Exact where the numbers allow. A greedy pass along each matrix's upper hull gives a feasible choice, and the
linear relaxation's price for a parameter gives an upper bound; options that cannot be part of anything better
than the greedy choice are struck out (Sinha & Zoltners 1979), and dynamic programming over what is left is
exact. Costs share a divisor (128 in ChatGLM2), which divides the table's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from glmspectra.errors import RequestError

# Cells that dynamic programming may visit: some seconds of numpy.
LARGEST_TABLE = 2_000_000_000


@dataclass(frozen=True)
class Choice:
    """picks: index of the option taken in each class. value: their sum. bound: no choice can be worth more
    (the linear relaxation). exact: whether `value` is the optimum; else bound - value is what may be missing.
    """

    picks: tuple[int, ...]
    value: float
    bound: float
    weight: int
    exact: bool

    @property
    def gap(self) -> float:
        return max(0.0, self.bound - self.value)


def choose(
    weights: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    capacity: int,
    largest_table: int = LARGEST_TABLE,
) -> Choice:
    """Take one option a class so that weights sum to at most capacity and values to the most.

    weights[m]: (options,) int64, strictly ascending, the first one forced at least. values[m]: (options,)
    float64, not descending. Raises RequestError when even the first options exceed the capacity.
    """
    least = sum(int(weight[0]) for weight in weights)
    if least > capacity:
        raise RequestError(f"the smallest ranks asked for cost {least} parameters, more than the budget of {capacity}.")
    picks, bound, price = _greedy(weights, values, capacity)
    value = _value(values, picks)
    kept = _worth_keeping(weights, values, capacity, price, value)
    table = _table_size(weights, kept, capacity)
    if table > largest_table:
        return Choice(tuple(picks), value, bound, _weight(weights, picks), exact=False)
    exact = _dynamic_programming(weights, values, kept, capacity)
    if _value(values, exact) > value:
        picks, value = exact, _value(values, exact)
    return Choice(tuple(picks), value, max(bound, value), _weight(weights, picks), exact=True)


def _value(values: Sequence[np.ndarray], picks: Sequence[int]) -> float:
    return float(sum(value[pick] for value, pick in zip(values, picks, strict=True)))


def _weight(weights: Sequence[np.ndarray], picks: Sequence[int]) -> int:
    return int(sum(weight[pick] for weight, pick in zip(weights, picks, strict=True)))


def _hull(weight: np.ndarray, value: np.ndarray) -> list[int]:
    """Options on the upper concave hull of (weight, value), from the first one on."""
    hull = [0]
    for j in range(1, len(weight)):
        if value[j] <= value[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (value[b] - value[a]) * (weight[j] - weight[b]) > (value[j] - value[b]) * (weight[b] - weight[a]):
                break
            hull.pop()
        hull.append(j)
    return hull


def _greedy(
    weights: Sequence[np.ndarray], values: Sequence[np.ndarray], capacity: int
) -> tuple[list[int], float, float]:
    """Feasible picks along the hulls, the linear relaxation's value, and its price for a unit of weight."""
    steps = []
    for m, (weight, value) in enumerate(zip(weights, values, strict=True)):
        hull = _hull(weight, value)
        for a, b in pairwise(hull):
            extra = int(weight[b] - weight[a])
            steps.append(((value[b] - value[a]) / extra, m, a, b, extra))
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    picks = [0] * len(weights)
    left = capacity - sum(int(weight[0]) for weight in weights)
    relaxed = _value(values, picks)
    price = 0.0
    broken = False
    for density, m, a, b, extra in steps:
        fits = extra <= left
        if not broken:
            relaxed += density * min(extra, left)
            if not fits:
                broken, price = True, density
        if fits and picks[m] == a:
            picks[m] = b
            left -= extra
    _fill(weights, values, picks, left)
    return picks, relaxed, price


def _fill(weights: Sequence[np.ndarray], values: Sequence[np.ndarray], picks: list[int], left: int) -> None:
    """Spend what the hulls left over on the single best option that fits, again and again."""
    while True:
        best, chosen = 0.0, None
        for m, (weight, value) in enumerate(zip(weights, values, strict=True)):
            j = int(np.searchsorted(weight, weight[picks[m]] + left, side="right")) - 1
            if value[j] - value[picks[m]] > best:
                best, chosen = value[j] - value[picks[m]], (m, j)
        if chosen is None:
            return
        m, j = chosen
        left -= int(weights[m][j] - weights[m][picks[m]])
        picks[m] = j


def _worth_keeping(
    weights: Sequence[np.ndarray], values: Sequence[np.ndarray], capacity: int, price: float, incumbent: float
) -> list[np.ndarray]:
    """For each class the options that may be part of something better than the incumbent.

    At a price p, no choice with option j of class m is worth more than p * capacity + sum over classes of the
    best (value - p * weight), less what j falls behind the best of its own class.
    """
    reduced = [value - price * weight for weight, value in zip(weights, values, strict=True)]
    bound = price * capacity + sum(float(r.max()) for r in reduced)
    slack = bound - incumbent + 1e-12 * max(1.0, abs(bound))
    return [np.flatnonzero(r.max() - r <= slack) for r in reduced]


def _table_size(weights: Sequence[np.ndarray], kept: Sequence[np.ndarray], capacity: int) -> int:
    unit, length = _unit_and_length(weights, kept, capacity)
    return sum(len(options) for options in kept) * (length // unit + 1)


def _unit_and_length(weights: Sequence[np.ndarray], kept: Sequence[np.ndarray], capacity: int) -> tuple[int, int]:
    """Greatest common divisor of all differences of weight, and the capacity that is left above the cheapest
    options.
    """
    unit = 0
    least = most = 0
    for weight, options in zip(weights, kept, strict=True):
        chosen = weight[options]
        unit = int(np.gcd.reduce(np.append(chosen - chosen[0], unit)))
        least += int(chosen[0])
        most += int(chosen[-1])
    return max(unit, 1), max(0, min(capacity, most) - least)


def _dynamic_programming(
    weights: Sequence[np.ndarray], values: Sequence[np.ndarray], kept: Sequence[np.ndarray], capacity: int
) -> list[int]:
    unit, length = _unit_and_length(weights, kept, capacity)
    size = length // unit + 1
    best = np.zeros(size)
    taken = []
    for weight, value, options in zip(weights, values, kept, strict=True):
        extra = (weight[options] - weight[options[0]]) // unit
        new = best + value[options[0]]
        picked = np.zeros(size, dtype=np.int32)
        for k in range(1, len(options)):
            shift = int(extra[k])
            if shift >= size:
                break
            candidate = best[: size - shift] + value[options[k]]
            better = candidate > new[shift:]
            new[shift:][better] = candidate[better]
            picked[shift:][better] = k
        best = new
        taken.append((options, extra, picked))
    picks: list[int] = []
    place = size - 1
    for options, extra, picked in reversed(taken):
        k = int(picked[place])
        picks.append(int(options[k]))
        place -= int(extra[k])
    return picks[::-1]
