"""The best integer ranks for given gains under a budget: a knapsack in which each matrix takes one of its options.

A greedy pass along each matrix's upper hull gives a feasible choice, and the linear relaxation's price for a parameter
an upper bound. Where gains descend, the two mostly meet and nothing is left to do. Else options that cannot be part of
anything better than the greedy choice are struck out (Sinha & Zoltners 1979), and the mixed-integer solver of scipy
(HiGHS, Huangfu & Hall 2018) takes the best of the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from glmspectra.errors import RequestError

SECONDS = 20.0  # that the solver may take; then its best so far is given, with what may be missing


@dataclass(frozen=True)
class Choice:
    """What is taken.

    Attributes:
        picks: Index of the option taken in each class.
        value: Their sum.
        bound: No choice can be worth more.
        weight: What the choice costs.
        exact: Whether `value` is the optimum; else bound - value is what may be missing.
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
    weights: Sequence[np.ndarray], values: Sequence[np.ndarray], capacity: int, seconds: float = SECONDS
) -> Choice:
    """Take one option a class so that weights sum to at most capacity and values to the most.

    Args:
        weights: Of each class (options,) int64, strictly ascending, the first one forced at least.
        values: Of each class (options,) float64, not descending.
        capacity: In the unit of the weights.
        seconds: The longest that the solver may run; 0 for the greedy choice.

    Raises:
        RequestError: Even the first options exceed the capacity.
    """
    least = sum(int(weight[0]) for weight in weights)
    if least > capacity:
        raise RequestError(f"the smallest ranks asked for cost {least} parameters, more than the budget of {capacity}.")
    picks, bound, price = _greedy(weights, values, capacity)
    value = _value(values, picks)
    if bound - value <= 1e-12 * max(1.0, abs(bound)):
        return Choice(tuple(picks), value, max(bound, value), _weight(weights, picks), exact=True)
    exact = False
    if seconds > 0:
        kept = _worth_keeping(weights, values, capacity, price, value)
        found, exact = _solve(weights, values, kept, capacity, bound - value, seconds)
        if found is not None and _value(values, found) > value:
            picks, value = found, _value(values, found)
    return Choice(tuple(picks), value, max(bound, value), _weight(weights, picks), exact)


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


def _solve(
    weights: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    capacity: int,
    slack: float,
    seconds: float,
) -> tuple[list[int] | None, bool]:
    """The best of the kept options by scipy.optimize.milp, and whether that is proved.

    One 0-1 variable an option. Values count from the first kept option of their class, in units of `slack` (what the
    greedy choice may miss), so that the solver's absolute tolerance of 1e-6 is far below any gain that matters; weights
    are divided by their common divisor.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    lengths = [len(options) for options in kept]
    owner = np.repeat(np.arange(len(kept)), lengths)
    gain = np.concatenate([value[options] - value[options[0]] for value, options in zip(values, kept, strict=True)])
    extra = np.concatenate(
        [weight[options] - weight[options[0]] for weight, options in zip(weights, kept, strict=True)]
    )
    room = capacity - sum(int(weight[options[0]]) for weight, options in zip(weights, kept, strict=True))
    if room < 0:
        return None, True  # the struck-out options were the cheap ones: nothing fits that beats the greedy choice
    unit = max(int(np.gcd.reduce(extra)), 1)
    one_each = sparse.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(len(kept), len(owner)))
    answer = milp(
        -gain / slack,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((extra // unit)[None, :].astype(np.float64), -np.inf, room // unit),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": seconds},
    )
    if answer.x is None:
        return None, answer.status == 2  # infeasible: nothing kept fits
    starts = np.concatenate([[0], np.cumsum(lengths)])
    chosen = [int(np.argmax(answer.x[start:end])) for start, end in pairwise(starts)]
    picks = [int(options[pick]) for options, pick in zip(kept, chosen, strict=True)]
    return (picks if _weight(weights, picks) <= capacity else None), answer.status == 0
