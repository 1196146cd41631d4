"""The arms of the study: each gives a rank for every adapted layer within one parameter budget.

The shares are those of `glmspectra suggest-rank`, so that what is tested is what users get.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from glmspectra.ranks.allocation import (
    Limits,
    allocate_by_gains,
    allocate_by_scores,
    allocate_by_threshold,
    round_ranks,
)
from rank_study.facts import PILOT, Facts, mean_of
from rank_study.moving_ranks import MOVERS

Ranks = dict[str, int]

PILOT_LENGTHS = (20, 40, 80, 160)  # that are screened; all arms whose name tells no other take facts.PILOT


def by_module(ranks: Mapping[str, int]) -> Ranks:
    return {name.removesuffix(".weight"): rank for name, rank in ranks.items()}


def by_weight(values: Mapping[str, object]) -> dict:
    return {f"{name}.weight": value for name, value in values.items()}


def uniform(facts: Facts, budget: int, seed: int) -> Ranks:
    return by_module(allocate_by_scores(facts.targets, {t.name: 1.0 for t in facts.targets}, budget, Limits()).ranks)


def random_ranks(facts: Facts, budget: int, seed: int) -> Ranks:
    """Ranks in proportion to log-normal scores (sigma 0.7), drawn anew for each seed: does any spread help?"""
    rng = np.random.default_rng(seed)
    scores = {t.name: float(rng.lognormal(0.0, 0.7)) for t in facts.targets}
    return by_module(allocate_by_scores(facts.targets, scores, budget, Limits()).ranks)


def effective_rank(facts: Facts, budget: int, seed: int) -> Ranks:
    return by_module(allocate_by_scores(facts.targets, by_weight(facts.effective_rank), budget, Limits()).ranks)


def over_one_threshold(facts: Facts, sizes: Mapping[str, np.ndarray], budget: int) -> Ranks:
    return by_module(allocate_by_threshold(facts.targets, by_weight(sizes), budget, Limits()).ranks)


def delta_threshold(
    facts: Facts, budget: int, seed: int, pilots: int | None = None, steps: int = PILOT, metric: str = "plain"
) -> Ranks:
    """One global threshold on the singular values of the pilots' mean delta-W, in a metric of `facts.Pilot`."""
    return over_one_threshold(
        facts, mean_of([getattr(one, metric) for one in facts.pilots(seed, steps)[:pilots]]), budget
    )


def loss_change(facts: Facts, budget: int, seed: int) -> Ranks:
    """Each layer's part in what the pilots' loss fell (loss change allocation), shared over its directions as delta-W's
    energy is; one global threshold on the roots of these parts, which have the unit of a singular value."""
    pilots = facts.pilots(seed)
    parts = mean_of([one.loss_change for one in pilots])
    sizes = mean_of([one.plain for one in pilots])
    shared = {
        name: np.sqrt(max(float(parts[name]), 0.0)) * sigma / np.linalg.norm(sigma) for name, sigma in sizes.items()
    }
    return over_one_threshold(facts, shared, budget)


def wider(factor: float) -> "Arm":
    """Uniform at `factor` times the budget: where an arm begins whose ranks move (`moving_ranks`)."""
    return lambda facts, budget, seed: uniform(facts, round(factor * budget), seed)


def delta_energy(facts: Facts, budget: int, seed: int) -> Ranks:
    sizes = mean_of([one.plain for one in facts.pilots(seed)])
    gains = {name: value**2 for name, value in by_weight(sizes).items()}
    return by_module(allocate_by_gains(facts.targets, gains, budget, Limits()).ranks)


def mixed(facts: Facts, budget: int, seed: int, other: "Arm") -> Ranks:
    """The mean of the delta threshold's ranks and another arm's."""
    one, two = delta_threshold(facts, budget, seed), other(facts, budget, seed)
    real = {t.name: (one[t.module] + two[t.module]) / 2 for t in facts.targets}
    return by_module(round_ranks(facts.targets, real, budget, Limits()).ranks)


def type_alone(facts: Facts, budget: int, seed: int) -> Ranks:
    """The delta threshold's ranks pooled over layers: only the matrix type counts."""
    ranks = delta_threshold(facts, budget, seed)
    by_type: dict[str, list[int]] = {}
    for target in facts.targets:
        by_type.setdefault(target.matrix, []).append(ranks[target.module])
    real = {t.name: float(np.mean(by_type[t.matrix])) for t in facts.targets}
    return by_module(round_ranks(facts.targets, real, budget, Limits()).ranks)


EVA_RHO = 2.0  # PEFT's default: no layer gets more than rho times the uniform rank


def eva(facts: Facts, budget: int, seed: int) -> Ranks:
    """EVA (Paischer et al. 2024): directions of the layers' inputs by explained variance, largest first over all, up to
    rho times the uniform rank. Shared out by parameters, as for every arm, where PEFT counts directions."""
    even = budget / sum(target.cost for target in facts.targets)
    limits = Limits(max_rank=max(1, int(EVA_RHO * even)))
    return by_module(allocate_by_threshold(facts.targets, by_weight(facts.inputs.variance), budget, limits).ranks)


Arm = Callable[[Facts, int, int], Ranks]

ARMS: dict[str, Arm] = {
    "uniform": uniform,
    "delta-threshold": delta_threshold,
    "effective-rank": effective_rank,
    "type-alone": type_alone,
    "random": random_ranks,
    "delta-energy": delta_energy,
    "delta-and-effective-rank": partial(mixed, other=effective_rank),
    "delta-and-type": partial(mixed, other=type_alone),
    "delta-preconditioned": partial(delta_threshold, metric="preconditioned"),
    "delta-fisher": partial(delta_threshold, metric="fisher"),
    "delta-loss-change": loss_change,
    "eva": eva,
    **{name: wider(start) for name, (_, start) in MOVERS.items()},
    "delta-threshold-one-pilot": partial(delta_threshold, pilots=1),
    **{f"delta-threshold-{steps}": partial(delta_threshold, steps=steps) for steps in PILOT_LENGTHS if steps != PILOT},
}
# What was declared before the confirming runs. One more is confirmed: the best challenger of the screening, by the rule
# of `plan.challenger`, declared likewise. The others are screened only.
CONFIRMED = ("uniform", "delta-threshold", "effective-rank", "type-alone", "random")
CHALLENGERS = (
    "delta-energy",
    "delta-and-effective-rank",
    "delta-and-type",
    "delta-preconditioned",
    "delta-fisher",
    "delta-loss-change",
    "eva",
    *MOVERS,
)
# Arms whose learning rate is tuned for themselves; the others take delta-threshold's.
TUNED = (*CONFIRMED, *MOVERS)
