"""The arms of the study: each gives a rank for every adapted layer within one parameter budget.

The shares are those of `glmspectra suggest-rank`, so that what is tested is what users get.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from glmspectra.ranks.evidence import Target
from glmspectra.ranks.sharing import Limits, share_by_threshold, share_gains, share_real, share_scores

Ranks = dict[str, int]


@dataclass
class Facts:
    """What arms may look at. targets: the adapted layers. delta: sigma of delta-W by module, a list over pilot
    seeds. effective_rank: of the base weights. input_variance: explained-variance ratios of each layer's inputs,
    descending, and `input_directions` the directions (count, in) that belong to them."""

    targets: list[Target]
    delta: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    effective_rank: Mapping[str, float] = field(default_factory=dict)
    input_variance: Mapping[str, np.ndarray] = field(default_factory=dict)
    input_directions: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def mean_delta(self, pilots: int | None = None) -> dict[str, np.ndarray]:
        chosen = self.delta[:pilots]
        return {name: np.mean([one[name] for one in chosen], axis=0) for name in chosen[0]}


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


def delta_threshold(facts: Facts, budget: int, seed: int, pilots: int | None = None) -> Ranks:
    return by_module(share_by_threshold(facts.targets, by_weight(facts.mean_delta(pilots)), budget, Limits()).ranks)


def delta_threshold_one_pilot(facts: Facts, budget: int, seed: int) -> Ranks:
    return delta_threshold(facts, budget, seed, pilots=1)


def delta_energy(facts: Facts, budget: int, seed: int) -> Ranks:
    gains = {name: value**2 for name, value in by_weight(facts.mean_delta()).items()}
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


def eva(facts: Facts, budget: int, seed: int) -> Ranks:
    """EVA (Paischer et al. 2024): directions of the layers' inputs by explained variance, largest first over all."""
    return by_module(share_by_threshold(facts.targets, by_weight(facts.input_variance), budget, Limits()).ranks)


ARMS: dict[str, Callable[[Facts, int, int], Ranks]] = {
    "uniform": uniform,
    "delta-threshold": delta_threshold,
    "effective-rank": effective_rank,
    "type-alone": type_alone,
    "random": random_ranks,
    "delta-energy": delta_energy,
    "delta-and-effective-rank": delta_and_effective,
    "delta-threshold-one-pilot": delta_threshold_one_pilot,
    "eva": eva,
}
# What was declared before the confirming runs; the others are screened only.
CONFIRMED = ("uniform", "delta-threshold", "effective-rank", "type-alone", "random")
