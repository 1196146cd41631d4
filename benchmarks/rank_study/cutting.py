"""Cut trained adapters to lower ranks: the singular directions of delta-W, the largest kept.

PARA (arXiv 2604.27796) cuts by one global threshold and trains no further; LoRA-Squeeze (arXiv 2602.10993) goes on with
a short training. Both start from a uniform rank that is larger than the budget.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from glmspectra.ranks.allocation import Limits, allocate_by_threshold
from glmspectra.ranks.evidence import Target
from rank_study.many_adapters import ManyAdapters

Ranks = Mapping[str, int]
BySigma = dict[str, np.ndarray]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def thin_svd(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (n, out, R), sigma (n, R) and V^T (n, R, in) of up @ down, (n, out, R) and (n, R, in), from QR of both."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.transpose(1, 2))
    inner, sigma, outer = torch.linalg.svd(r_up @ r_down.transpose(1, 2))
    return q_up @ inner, sigma, outer @ q_down.transpose(1, 2)


def singular_directions(adapters: ManyAdapters, jobs: Sequence[int]) -> tuple[list[BySigma], list[Factors]]:
    """Of each job: module -> singular values of delta-W, descending, and module -> (B, A) in singular directions.

    A_i = v_i / sqrt(3), the norm that LoRA's start gives a row, and B_i = sqrt(3) sigma_i u_i / scale, so that delta-W
    stays and what a mask drops of the last directions is its smallest part.
    """
    sizes: list[BySigma] = [{} for _ in jobs]
    factors: list[Factors] = [{} for _ in jobs]
    for name, up, down in adapters.factors():
        left, sigma, right = thin_svd(up[list(jobs)].double(), down[list(jobs)].double())
        for row in range(len(jobs)):
            sizes[row][name] = sigma[row].cpu().numpy()
            own = left[row] * (sigma[row] * 3**0.5 / adapters.scale)
            factors[row][name] = (own.float(), (right[row] / 3**0.5).float())
    return sizes, factors


def ranks_over_threshold(targets: Sequence[Target], sizes: Mapping[str, np.ndarray], budget: int) -> dict[str, int]:
    """Module -> rank: one global threshold over all singular values, within `budget` parameters."""
    by_weight = {f"{name}.weight": sigma for name, sigma in sizes.items()}
    ranks = allocate_by_threshold(targets, by_weight, budget, Limits()).ranks
    return {name.removesuffix(".weight"): rank for name, rank in ranks.items()}


def keep_leading(adapters: ManyAdapters, job: int, factors: Factors, ranks: Ranks) -> None:
    """Put the leading directions of `factors`, as many as `ranks` says, in the place of a job's; moments anew."""
    for name, (_, _, width) in adapters.places.items():
        adapters.keep(name, (torch.arange(width) < ranks.get(name, 0))[None, :], [job])
    adapters.restart(job, factors)
