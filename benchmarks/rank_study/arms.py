"""The arms of the study: each gives a rank for every adapted layer within one parameter budget.

The shares are those of `glmspectra suggest-rank`, so that what is tested is what users get.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from glmspectra.ranks.evidence import Target
from glmspectra.ranks.sharing import Limits, share_by_threshold, share_gains, share_real, share_scores
from rank_study.moving_ranks import MOVERS

Ranks = dict[str, int]


PILOTS = 3  # that are averaged
PILOT = 80  # steps of the pilots of all arms whose name tells no other
PILOT_LENGTHS = (20, 40, 80, 160)


@dataclass
class Facts:
    """What arms may look at. targets: the adapted layers. delta: steps of the pilots -> sigma of delta-W by module, a
    list over pilot seeds; preconditioned: the same in AdamW's metric. own: seed of a job -> delta of pilots of its own,
    so that what is said of many seeds holds for other pilots too; seeds that are not there take the first ones.
    effective_rank: of the base weights.
    input_variance: explained-variance ratios of each layer's inputs, descending, and `input_directions` the directions
    (count, in) that belong to them."""

    targets: list[Target]
    delta: Mapping[int, list[Mapping[str, np.ndarray]]] = field(default_factory=dict)
    preconditioned: Mapping[int, list[Mapping[str, np.ndarray]]] = field(default_factory=dict)
    own: Mapping[int, Mapping[int, list[Mapping[str, np.ndarray]]]] = field(default_factory=dict)
    effective_rank: Mapping[str, float] = field(default_factory=dict)
    input_variance: Mapping[str, np.ndarray] = field(default_factory=dict)
    input_directions: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def mean_delta(self, seed: int, pilots: int | None = None, steps: int = PILOT) -> dict[str, np.ndarray]:
        return mean_of(self.own.get(seed, self.delta)[steps][:pilots])


def mean_of(seeds: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean over pilots, index by index."""
    return {name: np.mean([one[name] for one in seeds], axis=0) for name in seeds[0]}


def targets_of(shapes: Mapping[str, tuple[int, int]]) -> list[Target]:
    """Targets from module names like `...layers.3.mlp.up_proj` and their (rows, cols)."""
    targets = []
    for module, (rows, cols) in shapes.items():
        words = module.split(".")
        targets.append(Target(f"{module}.weight", int(words[words.index("layers") + 1]), words[-1], rows, cols))
    return targets


def by_module(ranks: Mapping[str, int]) -> Ranks:
    return {name.removesuffix(".weight"): rank for name, rank in ranks.items()}


def by_weight(values: Mapping[str, object]) -> dict:
    return {f"{name}.weight": value for name, value in values.items()}


def uniform(facts: Facts, budget: int, seed: int) -> Ranks:
    return by_module(share_scores(facts.targets, {t.name: 1.0 for t in facts.targets}, budget, Limits()).ranks)


def random_ranks(facts: Facts, budget: int, seed: int) -> Ranks:
    """Ranks in proportion to log-normal scores (sigma 0.7), drawn anew for each seed: does any spread help?"""
    rng = np.random.default_rng(seed)
    scores = {t.name: float(rng.lognormal(0.0, 0.7)) for t in facts.targets}
    return by_module(share_scores(facts.targets, scores, budget, Limits()).ranks)


def effective_rank(facts: Facts, budget: int, seed: int) -> Ranks:
    return by_module(share_scores(facts.targets, by_weight(facts.effective_rank), budget, Limits()).ranks)


def delta_threshold(facts: Facts, budget: int, seed: int, pilots: int | None = None, steps: int = PILOT) -> Ranks:
    sizes = by_weight(facts.mean_delta(seed, pilots, steps))
    return by_module(share_by_threshold(facts.targets, sizes, budget, Limits()).ranks)


def preconditioned(facts: Facts, budget: int, seed: int) -> Ranks:
    """One global threshold on delta-W in AdamW's metric (`facts.adam_metric`): what a step of the optimizer weighs."""
    sizes = by_weight(mean_of(facts.preconditioned[PILOT]))
    return by_module(share_by_threshold(facts.targets, sizes, budget, Limits()).ranks)


def wider(factor: float) -> "Arm":
    """Uniform at `factor` times the budget: where an arm begins whose ranks move (`moving_ranks`)."""
    return lambda facts, budget, seed: uniform(facts, round(factor * budget), seed)


def delta_energy(facts: Facts, budget: int, seed: int) -> Ranks:
    gains = {name: value**2 for name, value in by_weight(facts.mean_delta(seed)).items()}
    return by_module(share_gains(facts.targets, gains, budget, Limits()).ranks)


def delta_and_effective(facts: Facts, budget: int, seed: int) -> Ranks:
    """The mean of the delta threshold's ranks and effective rank's: a mixture."""
    one, other = delta_threshold(facts, budget, seed), effective_rank(facts, budget, seed)
    real = {t.name: (one[t.module] + other[t.module]) / 2 for t in facts.targets}
    return by_module(share_real(facts.targets, real, budget, Limits()).ranks)


def type_alone(facts: Facts, budget: int, seed: int) -> Ranks:
    """The delta threshold's ranks pooled over layers: only the kind of matrix counts."""
    ranks = delta_threshold(facts, budget, seed)
    kinds: dict[str, list[int]] = {}
    for target in facts.targets:
        kinds.setdefault(target.matrix, []).append(ranks[target.module])
    real = {t.name: float(np.mean(kinds[t.matrix])) for t in facts.targets}
    return by_module(share_real(facts.targets, real, budget, Limits()).ranks)


EVA_RHO = 2.0  # PEFT's default: no layer gets more than rho times the uniform rank


def eva(facts: Facts, budget: int, seed: int) -> Ranks:
    """EVA (Paischer et al. 2024): directions of the layers' inputs by explained variance, largest first over all, up to
    rho times the uniform rank. Shared out by parameters, as for every arm, where PEFT counts directions."""
    even = budget / sum(target.cost for target in facts.targets)
    limits = Limits(max_rank=max(1, int(EVA_RHO * even)))
    return by_module(share_by_threshold(facts.targets, by_weight(facts.input_variance), budget, limits).ranks)


Arm = Callable[[Facts, int, int], Ranks]

ARMS: dict[str, Arm] = {
    "uniform": uniform,
    "delta-threshold": delta_threshold,
    "effective-rank": effective_rank,
    "type-alone": type_alone,
    "random": random_ranks,
    "delta-energy": delta_energy,
    "delta-and-effective-rank": delta_and_effective,
    "delta-threshold-one-pilot": partial(delta_threshold, pilots=1),
    **{f"delta-threshold-{steps}": partial(delta_threshold, steps=steps) for steps in PILOT_LENGTHS if steps != PILOT},
    "delta-preconditioned": preconditioned,
    "eva": eva,
    **{name: wider(start) for name, (_, start) in MOVERS.items()},
}
# What was declared before the confirming runs; the others are screened only.
CONFIRMED = ("uniform", "delta-threshold", "effective-rank", "type-alone", "random")
# Arms whose learning rate is tuned for themselves; the others take delta-threshold's.
TUNED = (*CONFIRMED, *MOVERS)
