"""How far a suggestion moves when only the pilot changes: its seed, or the number of its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from glmspectra.errors import RequestError
from glmspectra.language import text
from glmspectra.ranks.allocation import Limits
from glmspectra.ranks.budget import Budget
from glmspectra.ranks.criteria import find
from glmspectra.ranks.evidence import Evidence, gather, mean_spectra
from glmspectra.ranks.suggest import allocate, moved_share
from glmspectra.store import Run

PILOTS, STEPS = "pilots", "steps of a pilot"  # between what a suggestion may move
PILOT_RANK_FACTOR = 3  # a pilot's rank over the mean rank of the budget, so that few matrices end at its cap


@dataclass(frozen=True)
class Stability:
    """How much a suggestion changes over pairs of pilots.

    A suggestion whose `moved` is near its `from_uniform` is noise.

    Attributes:
        pilots: how many were compared.
        moved_mean: mean share of the parameters given to different matrices.
        moved_largest: the largest such share.
        spearman: the mean rank correlation of the ranks.
        from_uniform: how far the mean suggestion is from uniform by the same measure as `moved`.
    """

    pilots: int
    moved_mean: float
    moved_largest: float
    spearman: float
    from_uniform: float

    def sentence(self, between: str) -> str:
        """What a person is told; `between`: PILOTS or STEPS, what was compared."""
        moved = {"moved": f"{self.moved_mean:.0%}", "largest": f"{self.moved_largest:.0%}"}
        message = "ranks-between-pilots" if between == PILOTS else "ranks-between-steps"
        if self.moved_mean >= self.from_uniform:
            return text(f"{message}-noise", count=self.pilots, **moved)
        return text(message, count=self.pilots, **moved, **{"from": f"{self.from_uniform:.0%}"})


def stability(
    evidence: Evidence,
    spectra: Sequence[Mapping[str, np.ndarray]],
    criterion: str,
    budget: Budget,
    limits: Limits | None = None,
) -> Stability:
    """Suggest from each pilot's spectra alone and compare.

    `spectra`: name -> sigma of the quantity that the criterion reads, one mapping a pilot, two at least.
    """
    if len(spectra) < 2:
        raise RequestError("stability needs the deltas of two pilots or more: --pilot-seeds 3, or several --delta.")
    limits = limits or Limits()
    quantity = read_by(criterion)

    def ranks_of(sigma: Mapping[str, np.ndarray]) -> dict[str, int]:
        return allocate(replace(evidence, sigma={**evidence.sigma, quantity: sigma}), criterion, budget, limits).ranks

    each = [ranks_of(sigma) for sigma in spectra]
    pairs = [(a, b) for a, b in combinations(each, 2)]
    moved = [moved_share(a, b, evidence.targets) for a, b in pairs]
    names = [target.name for target in evidence.targets]
    correlations = [_spearman([a[n] for n in names], [b[n] for n in names]) for a, b in pairs]
    uniform = allocate(evidence, "uniform", budget, limits).ranks
    together = ranks_of(mean_spectra(list(spectra)))
    return Stability(
        len(spectra),
        float(np.mean(moved)),
        float(np.max(moved)),
        float(np.mean(correlations)),
        moved_share(together, uniform, evidence.targets),
    )


def read_by(criterion: str) -> str:
    """The quantity that a criterion of changes reads: delta, or delta-W in another metric."""
    return find(criterion)[0].needs or "delta"


def _spearman(first: list[int], second: list[int]) -> float:
    if first == second:
        return 1.0
    if len(set(first)) == 1 or len(set(second)) == 1:
        return 0.0
    from scipy.stats import spearmanr  # a second of importing, and not all answers need it

    return float(spearmanr(first, second).statistic)


def between_runs(
    base: Run | None, deltas: Sequence[Run], evidence: Evidence, criterion: str, budget: Budget, limits: Limits
) -> Stability:
    """Stability between the last steps of several delta runs (seeds)."""
    names = ",".join(target.name for target in evidence.targets)
    spectra = [gather(base, [run], names).sigma[read_by(criterion)] for run in deltas]
    return stability(evidence, spectra, criterion, budget, limits)


def between_steps(
    base: Run | None, delta: Run, evidence: Evidence, criterion: str, budget: Budget, limits: Limits
) -> Stability:
    """Stability between the steps of one delta run (its checkpoint-N)."""
    names = ",".join(target.name for target in evidence.targets)
    known = delta.matrices[delta.matrices["quantity"] == read_by(criterion)]  # not every state has its optimizer's
    steps = sorted({int(step) for step in known["step"].dropna()})
    spectra = [gather(base, [delta], names, step=step).sigma[read_by(criterion)] for step in steps]
    return stability(evidence, spectra, criterion, budget, limits)


def pilot_rank(budget: Budget, evidence: Evidence) -> int:
    """The uniform rank that a pilot should have.

    Three times the mean rank of the budget over the targets, at least 4.
    """
    mean = budget.parameters / sum(target.cost for target in evidence.targets)
    smallest = min(min(target.rows, target.cols) for target in evidence.targets)
    return int(min(smallest, max(4, np.ceil(PILOT_RANK_FACTOR * mean))))
