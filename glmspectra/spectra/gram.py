"""Gram matrices of a weight and of ranges of its rows, each on its own smaller side, from one read.

The Gram matrix adds up over row blocks, G = sum_b W_b^T W_b, so parts that lie in the same rows share the work: every
block is multiplied once, into the accumulator of the set of parts that hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import torch
from scipy.linalg import blas

from glmspectra.spectra.blocks import LongView


def add_gram(gram: torch.Tensor, block: torch.Tensor) -> None:
    """Add block^T block to `gram`, for `block` of shape (length, short) and `gram` (short, short), both float64.

    On the CPU only the lower triangle is written (BLAS syrk, half the work of a general product); on CUDA all of it.
    """
    if gram.is_cuda:
        gram.addmm_(block.T, block)
        return
    array = block.numpy()
    # BLAS counts columns first, so the C-ordered lower triangle is its upper one, and a C-ordered block its transpose.
    trans = 1 if array.flags.f_contiguous else 0
    blas.dsyrk(1.0, array if trans else array.T, beta=1.0, c=gram.numpy().T, trans=trans, lower=0, overwrite_c=1)


def full_gram(view: LongView) -> torch.Tensor:
    """A^T A of shape (short, short), float64, both triangles, on the weight's device."""
    gram = _gram_of(view)
    if not gram.is_cuda:  # only the lower triangle is written there
        gram = gram.tril() + gram.tril(-1).T
    return gram


def _gram_of(view: LongView) -> torch.Tensor:
    gram = torch.zeros((view.short, view.short), dtype=torch.float64, device=view.device)
    for _, _, block in view.blocks():
        add_gram(gram, block)
    return gram


def gram_matrices(weight: torch.Tensor, ranges: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, Gram matrix) for each range of rows, float64, on the weight's device; the caller may overwrite it.

    `weight`: shape (rows, cols), any floating dtype. `ranges`: name -> (first row, row after the last).
    The matrix has the size of the part's smaller side: W^T W of shape (cols, cols) where the part has at least as many
    rows as columns, else W W^T. On the CPU only its lower triangle is meaningful. Smaller parts come first.
    """
    rows, cols = weight.shape
    by_size = sorted(ranges.items(), key=lambda item: item[1][1] - item[1][0])
    if rows < cols:
        # Wide: the Gram matrix of a range of rows is the diagonal block of the whole's.
        whole = _gram_of(LongView(weight))
        last = len(by_size) - 1
        for position, (name, (start, stop)) in enumerate(by_size):
            block = whole[start:stop, start:stop]
            yield name, block if position == last and block.is_contiguous() else block.clone()
        return

    for name, (start, stop) in by_size:
        if stop - start < cols:
            yield name, _gram_of(LongView(weight[start:stop]))

    tall = [(name, bounds) for name, bounds in by_size if bounds[1] - bounds[0] >= cols]
    cuts = sorted({row for _, bounds in tall for row in bounds})
    accumulators: dict[frozenset[str], torch.Tensor] = {}
    for start, stop in pairwise(cuts):
        holders = frozenset(name for name, bounds in tall if bounds[0] <= start and stop <= bounds[1])
        if not holders:
            continue
        if holders not in accumulators:
            accumulators[holders] = torch.zeros((cols, cols), dtype=torch.float64, device=weight.device)
        rows_view = LongView(weight[start:stop])
        for block in _row_blocks(rows_view):
            add_gram(accumulators[holders], block)

    remaining = [name for name, _ in tall]
    for name, _ in tall:
        remaining.remove(name)
        total: torch.Tensor | None = None
        for holders in [h for h in accumulators if name in h]:
            needed_later = any(other in holders for other in remaining)
            gram = accumulators[holders] if needed_later else accumulators.pop(holders)
            if total is None:
                total = gram.clone() if needed_later else gram
            else:
                total += gram
        assert total is not None  # a tall range holds at least one interval between cuts
        yield name, total


def _row_blocks(view: LongView) -> Iterator[torch.Tensor]:
    """Blocks of whole rows in float64, whichever side of the range is the longer."""
    if view.tall:
        for _, _, block in view.blocks():
            yield block
    else:  # fewer rows than columns, as k and v have inside a fused projection: one block holds them
        yield view.weight.to(torch.float64).contiguous()


def diagonal_is_finite(gram: torch.Tensor) -> bool:
    """Whether the weight behind `gram` is free of NaN and Inf: either would reach the diagonal."""
    return bool(np.isfinite(float(gram.diagonal().sum())))
