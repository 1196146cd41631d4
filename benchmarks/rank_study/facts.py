"""Measures what the arms look at: pilots' delta-W, effective ranks of the base, variance of the layers' inputs."""

import json
from pathlib import Path

import numpy as np
import torch

from rank_study.arms import Facts, targets_of
from rank_study.bases import Base
from rank_study.many_adapters import ManyAdapters
from rank_study.tasks import Rows

PILOT_SEEDS = (900, 901, 902)


def train_jobs(
    base: Base, rows: Rows, ranks: list, rates: list[float], seeds: list[int], steps: int, batch: int, starts=None
):
    """Train jobs side by side; job j draws its rows by its own seed, so that paired arms see the same data."""
    device = str(next(base.model.parameters()).device)
    adapters = ManyAdapters(base.model, base.modules, ranks, rates, seeds, starts=starts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    orders = [torch.randperm(len(rows), generator=generator) for generator in generators]
    while len(orders[0]) < steps * batch:
        orders = [
            torch.cat([o, torch.randperm(len(rows), generator=g)]) for o, g in zip(orders, generators, strict=True)
        ]
    for step in range(steps):
        index = torch.cat([order[step * batch : (step + 1) * batch] for order in orders])
        adapters.step(rows.take(index, device), step / steps)
    return adapters


def pilot_spectra(
    base: Base, rows: Rows, rank: int, rate: float, steps: int, batch: int
) -> list[dict[str, np.ndarray]]:
    """Singular values of delta-W of short uniform runs, a mapping a pilot seed: QR of B and A^T, then an R x R SVD."""
    ranks = [dict.fromkeys(base.modules, rank)] * len(PILOT_SEEDS)
    adapters = train_jobs(base, rows, ranks, [rate] * len(PILOT_SEEDS), list(PILOT_SEEDS), steps, batch)
    spectra: list[dict[str, np.ndarray]] = [{} for _ in PILOT_SEEDS]
    for name, up, down in adapters.factors():
        left = torch.linalg.qr(up.double(), mode="r").R
        right = torch.linalg.qr(down.double().transpose(1, 2), mode="r").R
        for job, sigma in enumerate(torch.linalg.svdvals(left @ right.transpose(1, 2)).cpu().numpy()):
            spectra[job][name] = sigma
    adapters.remove()
    return spectra


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
        base.model.get_decoder()(input_ids=taken["input_ids"], attention_mask=taken["attention_mask"], use_cache=False)
    for handle in handles:
        handle.remove()
    ratios, directions = {}, {}
    for name, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment.double())
        ratios[name] = (values.flip(0)[:most].clamp(min=0) / values.clamp(min=0).sum()).cpu().numpy()
        directions[name] = vectors.flip(1)[:, :most].T.float().cpu()
    return ratios, directions


def gather_facts(base: Base, rows: Rows, rate: float, steps: int, rank: int, batch: int, cache: Path) -> Facts:
    """Facts of a base and task; the pilots' spectra are kept in `cache` and read from there the next time."""
    if cache.is_file():
        kept = json.loads(cache.read_text())
        delta = [{name: np.array(values) for name, values in one.items()} for one in kept["delta"]]
    else:
        delta = pilot_spectra(base, rows, rank, rate, steps, batch)
        cache.parent.mkdir(parents=True, exist_ok=True)
        kept = {"delta": [{name: [float(f"{v:.6g}") for v in values] for name, values in one.items()} for one in delta]}
        partial = cache.with_suffix(".partial")
        partial.write_text(json.dumps(kept))
        partial.replace(cache)
    variance, directions = input_variances(base, rows, most=rank)
    return Facts(targets_of(base.shapes()), delta, effective_ranks(base), variance, directions)
