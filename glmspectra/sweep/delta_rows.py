"""The numbers of one change of one weight, as columns of the tables.

- allotted_rank: directions the adapter was given; rank: singular values above noise_floor.
- noise_floor: the singular value up to which rounding alone could have made them: of the stored factors, or of the
  stored weights where two checkpoints were subtracted. effective_rank_above_floor leaves out what is below it.
- share_of_rank_in_use: directions that hold 99 % of the energy, over the allotted rank.
- share_unchanged: entries that are equal in both checkpoints. relative_frobenius: ||Delta||_F / ||W||_F.
- overlap_left, overlap_right: subspace similarity of the overlap_directions leading directions of Delta and W
  (Hu et al. 2021, section 7.2), similarity_left, similarity_right the whole grid phi(i, j), row by row;
  amplification: their section 7.3, over all directions above the floor.
- intruders: of the 10 leading directions of W + Delta, those unlike all of W's (Shuttleworth et al. 2024);
  intruder_cosines: what each of the 10 has at most in common with one of W's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from glmspectra.spectra import NoiseBlock, Spectrum, summarize_spectrum
from glmspectra.spectra.intruders import GramOfWeight, MergedSpectrum
from glmspectra.spectra.lowrank import (
    amplification_factor,
    numerical_rank,
    subspace_similarity,
)
from glmspectra.spectra.spectrum import frobenius_of
from glmspectra.spectra.summary import effective_rank, energy_rank

# Columns that say something of the r singular values of a product; bulks and tails need a matrix of full
# rank.
LOW_RANK_COLUMNS = (
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    *(f"energy_rank_{percent}" for percent in (50, 80, 90, 95, 99)),
    "top12_share_of_singular_value_sum",
    "top12_energy_share",
    "log_norm",
    "log_spectral_norm",
)


def known(row: dict[str, Any]) -> dict[str, Any]:
    """The row without NaN and infinity, which the tables keep as null."""
    return {key: value for key, value in row.items() if not (isinstance(value, float) and not np.isfinite(value))}


def low_rank_columns(found: Spectrum, allotted: int, floor: float) -> dict[str, Any]:
    """Columns of a change that is held in factors."""
    k = len(found.sigma)
    summary: dict[str, Any] = {}
    if k and found.sigma[0] > 0:
        # As a k x k matrix of its own: the product's other singular values are 0 and change none of these.
        columns = summarize_spectrum(replace(found, rows=k, cols=k))
        summary = {name: columns[name] for name in LOW_RANK_COLUMNS}
    else:
        summary = {"frobenius_norm": 0.0, "spectral_norm": 0.0, "nuclear_norm": 0.0, "effective_rank": 0.0}
    return known(summary) | _use(found.sigma, allotted, floor)


def full_rank_columns(
    spectrum: Spectrum, allotted: int | None, floor: float, blocks: Sequence[NoiseBlock] = ()
) -> dict[str, Any]:
    """Columns of a change that was computed as a dense matrix; blocks: the scales of its parts where it is fused."""
    return known(dict(summarize_spectrum(spectrum, blocks=blocks))) | _use(spectrum.sigma, allotted, floor)


def _use(sigma: np.ndarray, allotted: int | None, floor: float) -> dict[str, Any]:
    rank = numerical_rank(sigma, floor)
    columns: dict[str, Any] = {
        "rank": rank,
        "noise_floor": float(floor),
        "effective_rank_above_floor": effective_rank(sigma[:rank]),
    }
    if allotted:
        held = energy_rank(sigma, 0.99) or 0
        columns |= {"allotted_rank": allotted, "share_of_rank_in_use": held / allotted}
    return columns


@dataclass(frozen=True)
class Bases:
    """Leading singular vectors: left (rows, k), right (cols, k), float64 on the CPU."""

    left: torch.Tensor
    right: torch.Tensor


def leading_of_weight(gram: GramOfWeight, weight: torch.Tensor, k: int) -> Bases:
    """The k leading singular vectors of a weight from the eigenvectors of its Gram matrix.

    On the other side they are W v / sigma.
    """
    k = min(k, int(np.sum(gram.sigma > 1e-7 * gram.sigma[0]))) if gram.sigma.size else 0
    inner = gram.vectors[:, :k].cpu()
    sigma = torch.from_numpy(np.maximum(gram.sigma[:k], 1e-300))
    tall = weight.T if gram.transposed else weight
    outer = torch.cat([block.cpu().double() @ inner for block in tall.split(2048)], dim=0) / sigma
    return Bases(inner, outer) if gram.transposed else Bases(outer, inner)


def against_base_columns(delta: Spectrum, weight: torch.Tensor, base: Bases, floor: float) -> dict[str, Any]:
    """How the change lies in the weight (rows, cols): overlap on both sides, amplification.

    delta: with its vectors. Empty where the change is 0.
    """
    columns = overlap_columns(delta, base, floor)
    if not columns:
        return {}
    rank = numerical_rank(delta.sigma, floor)
    return columns | known({"amplification": amplification_factor(delta, weight.cpu(), rank)})


def overlap_columns(delta: Spectrum, base: Bases, floor: float) -> dict[str, Any]:
    """Subspace similarity of the leading directions of the change, with its vectors, and of W; empty where it is 0."""
    k = min(base.left.shape[1], numerical_rank(delta.sigma, floor))
    if k == 0 or delta.vectors is None:
        return {}
    left = subspace_similarity(torch.from_numpy(delta.vectors.left[:, :k]), base.left[:, :k])
    right = subspace_similarity(torch.from_numpy(delta.vectors.right[:, :k]), base.right[:, :k])
    return {
        "overlap_directions": k,
        "overlap_left": float(left[-1, -1]),
        "overlap_right": float(right[-1, -1]),
        "similarity_left": left.flatten().tolist(),
        "similarity_right": right.flatten().tolist(),
    }


def intruder_columns(merged: MergedSpectrum) -> dict[str, Any]:
    """Columns of the delta table on intruder dimensions: how many, and the best cosine of each direction."""
    return {"intruders": merged.intruders(), "intruder_cosines": [float(c) for c in merged.best_cosine]}


def gram_spectrum(sigma: np.ndarray, bound: np.ndarray, rows: int, cols: int) -> Spectrum:
    """A whole spectrum that came from a Gram matrix, as it is summarized and stored."""
    return Spectrum(sigma, bound, rows, cols, "gram", frobenius_of(sigma))
