"""From evidence and a budget to ranks.

By one criterion, a mixture, a pooled control; all of them side by side; the curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from glmspectra.errors import RequestError
from glmspectra.ranks.allocation import (
    Allocation,
    Limits,
    allocate_by_gains,
    allocate_by_scores,
    allocate_by_threshold,
    round_ranks,
)
from glmspectra.ranks.budget import Budget
from glmspectra.ranks.criteria import available, find
from glmspectra.ranks.evidence import Evidence, Target

if TYPE_CHECKING:
    import pandas as pd

    from glmspectra.ranks.stability import Stability

MOMENTS_MISSING = (
    "it needs AdamW's second moments: give --delta a training's folder whose checkpoint-N hold optimizer.pt (optim "
    "adamw_torch), or --pilot; `glmspectra delta` says why one is not read."
)
# Below this share of the budget moved, ranks are uniform for all practical purposes.
UNIFORM_WITHIN = 0.05


@dataclass(frozen=True)
class Suggestion:
    """Ranks under one budget by the chosen criterion, and all that stands beside them.

    Attributes:
        criterion: the chosen one as asked for, with its options.
        budget: of every allocation.
        evidence: what they were computed from.
        allocations: criterion -> ranks, for all that the tables can answer; the chosen one first.
        curve: of `budget_curve`, for the chosen one and uniform.
        stabilities: between pilots and between steps, where there are several.
    """

    criterion: str
    budget: Budget
    evidence: Evidence
    allocations: dict[str, Allocation]
    curve: "pd.DataFrame"
    stabilities: Mapping[str, "Stability"] = field(default_factory=dict)

    @property
    def chosen(self) -> Allocation:
        return self.allocations[self.criterion]


def default_criterion(evidence: Evidence) -> str:
    """delta-threshold where a delta is given, else effective-rank."""
    return "delta-threshold" if evidence.has("delta") else "effective-rank"


def check_criterion(text: str) -> None:
    """Raise RequestError for a criterion that `suggest` cannot read, before anything is measured for it."""
    word, _, rest = text.partition(":")
    if word == "type":
        if rest:
            check_criterion(rest)
    elif word == "mixture":
        for name in _weights_of(text, rest):
            check_criterion(name)
    else:
        find(text)


def allocate(evidence: Evidence, criterion: str, budget: Budget, limits: Limits | None = None) -> Allocation:
    """Ranks of every target under the budget by one criterion.

    criterion: a name of the registry with its option ('delta-rank:0.95'); 'type:NAME', the control in which
    only the matrix type counts: NAME's ranks averaged over layers; 'mixture:NAME=WEIGHT,NAME=WEIGHT', the
    weighted mean of the ranks that each gives under the same budget. Raises RequestError for an unknown one
    or missing tables.
    """
    return _allocate(evidence, criterion, budget.parameters, limits or Limits())


def _allocate(evidence: Evidence, text: str, parameters: int, limits: Limits) -> Allocation:
    word, _, rest = text.partition(":")
    if word == "type":
        return _pooled(evidence, rest or default_criterion(evidence), parameters, limits)
    if word == "mixture":
        return _mixture(evidence, text, rest, parameters, limits)
    entry, option = find(text)
    if entry.needs is not None and not evidence.has(entry.needs):
        raise RequestError(f"--criterion {text}: {_how_to_get(entry.needs)}")
    answer = entry.measure(evidence, option)
    if entry.answer == "gain":
        return allocate_by_gains(evidence.targets, _arrays(answer), parameters, limits)
    if entry.answer == "threshold":
        return allocate_by_threshold(evidence.targets, _arrays(answer), parameters, limits)
    return allocate_by_scores(
        evidence.targets, {name: float(value) for name, value in answer.items()}, parameters, limits
    )


def _arrays(answer: Mapping[str, "np.ndarray | float"]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, dtype=np.float64) for name, value in answer.items()}


def _how_to_get(quantity: str) -> str:
    return {
        "weight": "it needs the spectra of the base: run `glmspectra svd --layers all` first.",
        "delta": "it needs a change to look at: give an adapter, a run or a tuned model with --delta.",
        "quant_error": "it needs the spectra of W - Q(W): give --quantized nf4 (or int8, int4) with --model.",
        "gradient": "it needs a table of gradients (quantity 'gradient').",
        "delta_adamw": MOMENTS_MISSING,
        "delta_tempered": MOMENTS_MISSING,
    }[quantity]


def _pooled(evidence: Evidence, text: str, parameters: int, limits: Limits) -> Allocation:
    """Every layer's rank of a matrix type replaced by the mean over layers."""
    ranks = _allocate(evidence, text, parameters, limits).ranks
    by_type: dict[tuple[str, int, int], list[int]] = {}
    for target in evidence.targets:
        by_type.setdefault((target.matrix, target.rows, target.cols), []).append(ranks[target.name])
    real = {t.name: float(np.mean(by_type[t.matrix, t.rows, t.cols])) for t in evidence.targets}
    return round_ranks(evidence.targets, real, parameters, limits)


def _weights_of(text: str, rest: str) -> dict[str, float]:
    """Criterion -> its weight in a mixture, as asked for."""
    weights: dict[str, float] = {}
    for piece in rest.split(","):
        name, equals, share = piece.rpartition("=")
        try:
            weight = float(share)
        except ValueError:
            weight = 0.0
        if not equals or not name.strip() or not weight > 0:
            raise RequestError(
                f"--criterion {text}: write a mixture as mixture:delta-threshold=0.7,effective-rank=0.3."
            )
        weights[name.strip()] = weight
    return weights


def _mixture(evidence: Evidence, text: str, rest: str, parameters: int, limits: Limits) -> Allocation:
    weights = _weights_of(text, rest)
    total = sum(weights.values())
    real = dict.fromkeys((target.name for target in evidence.targets), 0.0)
    for name, weight in weights.items():
        for target, rank in _allocate(evidence, name, parameters, limits).ranks.items():
            real[target] += weight / total * rank
    return round_ranks(evidence.targets, real, parameters, limits)


def suggest(evidence: Evidence, criterion: str, budget: Budget, limits: Limits | None = None) -> Suggestion:
    """Ranks by every criterion that the tables can answer under one budget, and what other budgets would hold.

    The chosen one comes first, then uniform, its pooled control, and the others. One whose statistic is missing for a
    target is left out, except the chosen one.

    Raises:
        RequestError: The chosen criterion is unknown, or the tables do not hold what it needs.
    """
    allocations = {criterion: allocate(evidence, criterion, budget, limits)}
    for name in ["uniform", f"type:{criterion}", *available(evidence)]:
        pooled_control = name.startswith("type:")
        if name in allocations or (pooled_control and criterion.partition(":")[0] in ("uniform", "random", "type")):
            continue
        try:
            allocations[name] = allocate(evidence, name, budget, limits)
        except RequestError:
            continue
    return Suggestion(criterion, budget, evidence, allocations, budget_curve(evidence, criterion, budget, limits))


def moved_share(first: Mapping[str, int], second: Mapping[str, int], targets: Sequence[Target]) -> float:
    """Share of the parameters that two sets of ranks give to different matrices: 0 the same, 1 nothing in common.

    Half the sum of |difference| * cost, over the larger of the two totals.
    """
    difference = sum(abs(first[t.name] - second[t.name]) * t.cost for t in targets) / 2
    total = max(sum(ranks[t.name] * t.cost for t in targets) for ranks in (first, second))
    return difference / total if total else 0.0


def side_by_side(allocations: Mapping[str, Allocation]) -> "pd.DataFrame":
    """A table of one row a matrix, with a column of ranks for each criterion.

    The columns before those are name, layer, matrix, rows, cols, parameters_per_rank.
    """
    import pandas as pd

    targets = next(iter(allocations.values())).targets
    frame = pd.DataFrame(
        {
            "name": [t.name for t in targets],
            "layer": pd.array([t.layer for t in targets], dtype="Int64"),
            "matrix": [t.matrix for t in targets],
            "rows": [t.rows for t in targets],
            "cols": [t.cols for t in targets],
            "parameters_per_rank": [t.cost for t in targets],
        }
    )
    for name, allocation in allocations.items():
        frame[name] = [allocation.ranks[t.name] for t in targets]
    return frame


def disagreement(allocations: Mapping[str, Allocation]) -> "pd.DataFrame":
    """Criterion x criterion, the share of the parameters on which two of them differ (`moved_share`)."""
    import pandas as pd

    targets = next(iter(allocations.values())).targets
    names = list(allocations)
    rows = [[moved_share(allocations[a].ranks, allocations[b].ranks, targets) for b in names] for a in names]
    return pd.DataFrame(rows, index=names, columns=names)


def kept_energy(evidence: Evidence, quantity: str, ranks: Mapping[str, int]) -> float:
    """Share of the energy of a quantity that the leading directions of these ranks hold.

    Energy is the sum of sigma^2 over all targets.
    """
    spectra = evidence.spectra(quantity, absent_is_zero=True)
    total = sum(float(np.sum(sigma**2)) for sigma in spectra.values())
    held = sum(float(np.sum(sigma[: ranks[name]] ** 2)) for name, sigma in spectra.items())
    return held / total if total else 0.0


def budget_curve(
    evidence: Evidence, criterion: str, budget: Budget, limits: Limits | None = None, points: int = 17
) -> "pd.DataFrame":
    """How much of the energy is held at what budget: columns parameters, share_of_budget, criterion, quantity, energy.

    Budgets from 1/16 of the given one to 16 times it, for the criterion and for uniform. quantity: 'delta'
    where there is one; else 'weight', which says how compressible the base is, not what training will need.
    """
    import pandas as pd

    limits = limits or Limits()
    quantity = "delta" if evidence.has("delta") else "weight"
    least = max(limits.lowest * sum(t.cost for t in evidence.targets), min(t.cost for t in evidence.targets))
    most = sum(limits.highest(t) * t.cost for t in evidence.targets)
    rows = []
    for factor in np.logspace(-4, 4, points, base=2):
        parameters = round(budget.parameters * float(factor))
        if not least <= parameters <= most:
            continue
        for name in dict.fromkeys((criterion, "uniform")):
            allocation = _allocate(evidence, name, parameters, limits)
            energy = kept_energy(evidence, quantity, allocation.ranks)
            rows.append((parameters, float(factor), name, quantity, energy))
    return pd.DataFrame(rows, columns=["parameters", "share_of_budget", "criterion", "quantity", "energy"])


def needed_parameters(
    curve: "pd.DataFrame", criterion: str, shares: Sequence[float] = (0.5, 0.8, 0.9, 0.95)
) -> dict[float, int]:
    """Share of energy -> parameters of the smallest budget on the curve that holds it.

    Shares out of reach are left out.
    """
    rows = curve[curve["criterion"] == criterion].sort_values("parameters")
    found = {}
    for share in shares:
        enough = rows[rows["energy"] >= share]
        if len(enough):
            found[share] = int(enough["parameters"].iloc[0])
    return found
