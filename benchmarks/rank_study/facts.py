"""Measures what the arms look at: pilots' delta-W, effective ranks of the base, variance of the layers' inputs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rank_study.arms import PILOT, PILOTS, Facts, targets_of
from rank_study.bases import Base
from rank_study.many_adapters import ManyAdapters
from rank_study.moving_ranks import Mover
from rank_study.tasks import Rows

PILOT_SEEDS = (900, 901, 902)


def pilot_seeds_of(seed: int) -> tuple[int, ...]:
    """Pilots of a job's own, apart from those of every other seed and from the training itself."""
    return tuple(1000 * seed + number for number in range(1, PILOTS + 1))


def train_jobs(
    base: Base,
    rows: Rows,
    ranks: list,
    rates: list[float],
    seeds: list[int],
    steps: int,
    batch: int,
    starts=None,
    movers: Sequence[Mover] = (),
) -> ManyAdapters:
    """Train jobs side by side; job j draws its rows by its own seed, so that paired arms see the same data."""
    device = str(next(base.model.parameters()).device)
    adapters = ManyAdapters(base.model, base.modules, ranks, rates, seeds, starts=starts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    orders = [torch.randperm(len(rows), generator=generator) for generator in generators]
    while len(orders[0]) < steps * batch:
        orders = [
            torch.cat([o, torch.randperm(len(rows), generator=g)]) for o, g in zip(orders, generators, strict=True)
        ]

    def watch(adapters: ManyAdapters, grad: torch.Tensor) -> None:
        for mover in movers:
            mover(adapters, grad)

    for step in range(steps):
        index = torch.cat([order[step * batch : (step + 1) * batch] for order in orders])
        adapters.step(rows.take(index, device), step / steps, watch=watch if movers else None)
    return adapters


def pilot_spectra(
    base: Base, rows: Rows, rank: int, rate: float, steps: int, batch: int, pilot_seeds: Sequence[int] = PILOT_SEEDS
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Singular values of short uniform runs, a mapping a pilot seed: 'plain' of delta-W, 'preconditioned' of delta-W
    in AdamW's metric. By QR of B and A^T, then an R x R SVD, in float64."""
    count = len(pilot_seeds)
    ranks = [dict.fromkeys(base.modules, rank)] * count
    adapters = train_jobs(base, rows, ranks, [rate] * count, list(pilot_seeds), steps, batch)
    spectra: dict[str, list[dict[str, np.ndarray]]] = {
        kind: [{} for _ in pilot_seeds] for kind in ("plain", "preconditioned")
    }
    for name, up, down in adapters.factors():
        up, down = up.double(), down.double()
        high, low = adam_metric(*adapters.of(adapters.second.double(), name), down)
        for kind, left, right in (
            ("plain", up, down),
            ("preconditioned", up * high[:, :, None], down * low[:, None, :]),
        ):
            left = torch.linalg.qr(left, mode="r").R
            right = torch.linalg.qr(right.transpose(1, 2), mode="r").R
            for job, sigma in enumerate(torch.linalg.svdvals(left @ right.transpose(1, 2)).cpu().numpy()):
                spectra[kind][job][name] = sigma
    adapters.remove()
    return spectra


def adam_metric(
    second_a: torch.Tensor, second_b: torch.Tensor, down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fourth roots of V's row and column factors, (J, out) and (J, in), for a metric in which a direction counts as
    AdamW on W itself would weigh it: ||D||^2 = sum_ij sqrt(V_ij) D_ij^2.

    V, the second moment of dL/dW, is taken for separable as in Adafactor (Shazeer & Stern 2018). dL/dB = G A^T gives
    its rows, mean over R of B's second moments (J, out, R) over the mean of A^2; dL/dA = B^T G the shape of its
    columns, A's second moments (J, R, in), taken to mean 1.
    """
    rows = second_b.mean(2) / down.square().mean(dim=(1, 2)).clamp(min=1e-30)[:, None] / down.shape[2]
    columns = second_a.mean(1)
    columns = columns / columns.mean(1, keepdim=True).clamp(min=1e-30)
    return rows.clamp(min=0) ** 0.25, columns.clamp(min=0) ** 0.25


def effective_ranks(base: Base) -> dict[str, float]:
    """exp of the entropy of sigma / sum(sigma) (Roy & Vetterli 2007) of each base weight, in float64."""
    found = {}
    for name in base.modules:
        weight = base.model.get_submodule(name).weight.detach().double()
        small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        sigma = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
        share = sigma / sigma.sum()
        found[name] = float(torch.exp(-(share * torch.log(share.clamp(min=1e-300))).sum()))
    return found


@torch.no_grad()
def input_variances(base: Base, rows: Rows, most: int, batches: int = 8, batch: int = 16):
    """Explained-variance ratios and directions of each adapted layer's inputs over a few training batches.

    Uncentred second moments of the rows that are tokens, as EVA's incremental SVD of activations has it.
    """
    device = str(next(base.model.parameters()).device)
    moments: dict[str, torch.Tensor] = {}
    keep: dict[str, torch.Tensor] = {}

    def hook(name):
        def add(module, inputs):
            x = inputs[0][keep["mask"]].float()
            moments[name] = moments.get(name, 0) + x.T @ x

        return add

    handles = [base.model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in base.modules]
    for number in range(batches):
        index = torch.arange(number * batch, (number + 1) * batch) % len(rows)
        taken = rows.take(index, device)
        keep["mask"] = taken["attention_mask"].bool()
        base.model.get_decoder()(input_ids=taken["input_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    ratios, directions = {}, {}
    for name, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment.double())
        ratios[name] = (values.flip(0)[:most].clamp(min=0) / values.clamp(min=0).sum()).cpu().numpy()
        directions[name] = vectors.flip(1)[:, :most].T.float().cpu()
    return ratios, directions


def pilots(
    base: Base,
    rows: Rows,
    rate: float,
    steps: int,
    rank: int,
    batch: int,
    cache: Path,
    pilot_seeds: Sequence[int] = PILOT_SEEDS,
) -> dict:
    """`pilot_spectra`, kept in `cache` and read from there the next time."""
    if cache.is_file():
        kept = json.loads(cache.read_text())
    else:
        found = pilot_spectra(base, rows, rank, rate, steps, batch, pilot_seeds)
        kept = {
            kind: [{name: [float(f"{v:.6g}") for v in values] for name, values in one.items()} for one in seeds]
            for kind, seeds in found.items()
        }
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial")
        partial.write_text(json.dumps(kept))
        partial.replace(cache)
    return {
        kind: [{name: np.array(values) for name, values in one.items()} for one in seeds]
        for kind, seeds in kept.items()
    }


def gather_facts(
    base: Base,
    rows: Rows,
    rate: float,
    lengths: Sequence[int],
    rank: int,
    batch: int,
    folder: Path,
    task: str,
    own_seeds: Sequence[int] = (),
) -> Facts:
    """Facts of a base and task, with pilots of these lengths in steps; what pilots found is kept in `folder`.

    own_seeds: seeds of jobs that get three pilots of their own, of the length PILOT.
    """
    found = {
        steps: pilots(base, rows, rate, steps, rank, batch, folder / f"pilots-{base.name}-{task}-{steps}.json")
        for steps in lengths
    }
    own = {}
    for seed in own_seeds:
        cache = folder / f"pilots-{base.name}-{task}-{PILOT}-of-{seed}.json"
        own[seed] = {PILOT: pilots(base, rows, rate, PILOT, rank, batch, cache, pilot_seeds_of(seed))["plain"]}
    variance, directions = input_variances(base, rows, most=rank)
    return Facts(
        targets_of(base.shapes()),
        {steps: one["plain"] for steps, one in found.items()},
        {steps: one["preconditioned"] for steps, one in found.items() if "preconditioned" in one},
        own,
        effective_ranks(base),
        variance,
        directions,
    )
