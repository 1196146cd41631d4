"""What is asked of `ranks`, and the answer from tables: what `suggest-rank` and the loop both do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from glmspectra.errors import RequestError
from glmspectra.ranks.allocation import Limits
from glmspectra.ranks.budget import Budget, default_budget, parse_budget
from glmspectra.ranks.evidence import Evidence, gather
from glmspectra.ranks.exports import EXPORTS
from glmspectra.ranks.peft_patterns import DEFAULT_SCALE
from glmspectra.ranks.stability import PILOTS, STEPS, Stability, between_runs, between_steps, read_by
from glmspectra.ranks.suggest import Suggestion, check_criterion, default_criterion, suggest
from glmspectra.store import Run


@dataclass(frozen=True)
class RankRequest:
    """What is asked.

    Attributes:
        criterion: None: the default of the tables.
        budget: None: the default of the tables.
        targets: the matrices that get ranks.
        limits: of each rank.
        step: of the deltas; None: the last.
        scale: alpha / r of every matrix.
        rslora: whether the scale follows rsLoRA's rule, alpha / sqrt(r).
        exports: the trainers to export to.
    """

    criterion: str | None = None
    budget: str | None = None
    targets: str | None = None
    limits: Limits = field(default_factory=Limits)
    step: int | None = None
    scale: float = DEFAULT_SCALE
    rslora: bool = False
    exports: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises RequestError for what cannot be, before a pilot is trained for it."""
        if self.criterion is not None:
            check_criterion(self.criterion)
        if not 0 < self.scale < math.inf:
            raise RequestError(f"--scale is {self.scale}; alpha over rank is a number above 0, 2 by default.")
        for trainer in self.exports:
            if trainer not in EXPORTS:
                raise RequestError(f"--export {trainer}: there are {', '.join(EXPORTS)}.")


def evidence_and_budget(base: Run | None, deltas: Sequence[Run], request: RankRequest) -> tuple[Evidence, Budget]:
    """The tables brought together, and the parameters that the request comes to on them. Raises RequestError."""
    evidence = gather(base, deltas, request.targets, request.step)
    return evidence, parse_budget(request.budget or default_budget(evidence), evidence)


def suggest_ranks(base: Run | None, deltas: Sequence[Run], request: RankRequest) -> Suggestion:
    """Ranks by the request's criterion, all others beside it. Raises RequestError for what cannot be answered."""
    evidence, budget = evidence_and_budget(base, deltas, request)
    found = suggest(evidence, request.criterion or default_criterion(evidence), budget, request.limits)
    return replace(found, stabilities=_stabilities(base, deltas, found, request))


def _stabilities(
    base: Run | None, deltas: Sequence[Run], suggestion: Suggestion, request: RankRequest
) -> dict[str, Stability]:
    """Between pilots where there are several; between the steps of the first one where it has several."""
    criterion, evidence, budget = suggestion.criterion, suggestion.evidence, suggestion.budget
    if not criterion.startswith("delta"):
        return {}
    found = {}
    if len(deltas) > 1:
        found[PILOTS] = between_runs(base, deltas, evidence, criterion, budget, request.limits)
    if deltas and request.step is None and _steps_of(deltas[0], criterion) > 1:
        found[STEPS] = between_steps(base, deltas[0], evidence, criterion, budget, request.limits)
    return found


def _steps_of(delta: Run, criterion: str) -> int:
    """How many steps of a run have what a criterion reads."""
    rows = delta.matrices
    return int(rows.loc[rows["quantity"] == read_by(criterion), "step"].nunique())
