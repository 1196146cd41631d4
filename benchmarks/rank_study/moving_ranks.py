"""Arms whose ranks move during training: AdaLoRA's pruning, and one sharing anew of a wide start.

A mover is shown every step's gradient (`ManyAdapters.step`, watch) and changes the masks of the jobs that are its own.
Both begin wider than the budget and end within it, so that they cost more memory than other arms until then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from glmspectra.ranks.evidence import Target
from rank_study.cutting import keep_leading, ranks_over_threshold, singular_directions
from rank_study.many_adapters import ManyAdapters

ADALORA_START = 1.5  # times the final budget, as the paper's b(0)
RESHARED_START = 3.0  # as the pilots of `suggest-rank`


@dataclass
class Mover:
    """jobs: the numbers of the jobs whose masks it moves, and budgets, their final parameters. steps: of the run."""

    targets: Sequence[Target]
    jobs: list[int]
    budgets: list[int]
    steps: int
    seen: int = 0

    def __call__(self, adapters: ManyAdapters, grad: torch.Tensor) -> None:
        self.move(adapters, grad, self.seen)
        self.seen += 1

    def move(self, adapters: ManyAdapters, grad: torch.Tensor, step: int) -> None:
        raise NotImplementedError


class AdaLora(Mover):
    """Zhang et al. 2023 (AdaLoRA), on the pairs (A_i, B_i) instead of triplets: without Lambda and orthogonality.

    Sensitivity |w dL/dw| (eq. 8), smoothed with beta_1 = beta_2 = 0.85 (eq. 9), and its uncertainty (eq. 10); the
    score of a direction is the mean of their product over A_i and over B_i, added (eq. 7 without the singular value).
    The budget falls by a cubic (eq. 12) from ADALORA_START times the final one, between 10 and 50 % of the steps.
    Directions are dropped lowest score first until the parameters fit; here one that was dropped does not come back.
    """

    beta, begin, end, every = 0.85, 0.1, 0.5, 5

    def move(self, adapters: ManyAdapters, grad: torch.Tensor, step: int) -> None:
        sensitivity = (adapters.master[self.jobs] * grad[self.jobs]).abs()
        if step == 0:
            self.smooth, self.doubt = torch.zeros_like(sensitivity), torch.zeros_like(sensitivity)
        self.smooth.lerp_(sensitivity, 1 - self.beta)
        self.doubt.lerp_((sensitivity - self.smooth).abs(), 1 - self.beta)
        first, last = round(self.begin * self.steps), round(self.end * self.steps)
        if (first <= step < last and (step - first) % self.every == 0) or step == last:
            left = 1 - min(1.0, (step - first) / max(1, last - first))
            factor = 1 + (ADALORA_START - 1) * left**3
            self._prune(adapters, [round(factor * budget) for budget in self.budgets])

    def _prune(self, adapters: ManyAdapters, budgets: list[int]) -> None:
        score = self.smooth * self.doubt
        costs, scores, layers = [], [], []
        by_module = {target.module: target.cost for target in self.targets}
        for name in adapters.layers:
            down, up = adapters.of(score, name)
            here = down.mean(2) + up.mean(1)  # (jobs, R)
            scores.append(here.masked_fill(~adapters.kept(name)[self.jobs], -1.0))
            costs += [by_module[name]] * here.shape[1]
            layers.append(here.shape[1])
        table = torch.cat(scores, dim=1).cpu()
        kept = torch.zeros_like(table, dtype=torch.bool)
        cost = torch.tensor(costs)
        for row, budget in enumerate(budgets):
            order = torch.argsort(table[row], descending=True, stable=True)
            order = order[table[row][order] >= 0]
            kept[row, order[torch.cumsum(cost[order], 0) <= budget]] = True
        for name, mask in zip(adapters.layers, kept.split(layers, dim=1), strict=True):
            adapters.keep(name, mask, self.jobs)


class Reshared(Mover):
    """A pilot that goes on: uniform at RESHARED_START times the budget for a third of the steps, then the directions of
    its own delta-W over one global threshold, within the budget.

    Its factors become the singular directions of `cutting.singular_directions`, with moments anew.
    """

    at = 1 / 3

    def move(self, adapters: ManyAdapters, grad: torch.Tensor, step: int) -> None:
        if step != round(self.at * self.steps):
            return
        sizes, factors = singular_directions(adapters, self.jobs)
        for row, (job, budget) in enumerate(zip(self.jobs, self.budgets, strict=True)):
            keep_leading(adapters, job, factors[row], ranks_over_threshold(self.targets, sizes[row], budget))
            grad[job] = 0  # it belongs to factors that are gone


MOVERS: Mapping[str, tuple[type[Mover], float]] = {
    "adalora": (AdaLora, ADALORA_START),
    "re-shared": (Reshared, RESHARED_START),
}


def movers_of(arms: Sequence[str], budgets: Sequence[int], targets: Sequence[Target], steps: int) -> list[Mover]:
    """One mover for each moving arm among the jobs' arms; budgets: parameters of each job."""
    found = []
    for arm, (mover, _) in MOVERS.items():
        jobs = [number for number, own in enumerate(arms) if own == arm]
        if jobs:
            found.append(mover(targets, jobs, [budgets[job] for job in jobs], steps))
    return found
