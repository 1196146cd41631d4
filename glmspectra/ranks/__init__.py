"""From tables to a rank for every matrix under one budget."""

from glmspectra.ranks.allocation import Allocation, Limits
from glmspectra.ranks.budget import Budget, default_budget, parse_budget
from glmspectra.ranks.criteria import CRITERIA, available
from glmspectra.ranks.evidence import FOUR_MATRICES, Evidence, Target, gather
from glmspectra.ranks.peft_patterns import lora_args, ranks_file
from glmspectra.ranks.stability import Stability, between_runs, between_steps, pilot_rank, stability
from glmspectra.ranks.suggest import (
    Suggestion,
    allocate,
    budget_curve,
    default_criterion,
    moved_share,
    side_by_side,
    suggest,
)

__all__ = [
    "CRITERIA",
    "FOUR_MATRICES",
    "Allocation",
    "Budget",
    "Evidence",
    "Limits",
    "Stability",
    "Suggestion",
    "Target",
    "allocate",
    "available",
    "between_runs",
    "between_steps",
    "budget_curve",
    "default_budget",
    "default_criterion",
    "gather",
    "lora_args",
    "moved_share",
    "parse_budget",
    "pilot_rank",
    "ranks_file",
    "side_by_side",
    "stability",
    "suggest",
]
