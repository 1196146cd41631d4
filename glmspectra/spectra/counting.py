"""Exact counts of the values of a weight by their bit patterns, in one streamed pass.

A 16-bit floating type has 65,536 values: their counts are the whole distribution. A float32 value is cut in two: counts
of the upper 16 bits (sign, exponent, 7 bits of mantissa: bins at most 0.8 % wide) give the shape, and a second pass
over the lower 16 bits of the few bins that hold a wanted rank gives that quantile exactly.

Bit patterns are ordered like the values after one flip: all bits of a negative number, the sign bit of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from glmspectra.spectra.spectrum import FloatArray

PATTERNS = 1 << 16
# Elements that are worked on at once: 8 MiB in float64 for a processor's cache, enough to fill a CUDA device.
CHUNK_ELEMENTS = 1 << 20
CUDA_CHUNK_ELEMENTS = 1 << 24
IntArray = npt.NDArray[np.int64]


def row_chunks(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of consecutive rows, about CHUNK_ELEMENTS (CUDA_CHUNK_ELEMENTS) elements each."""
    elements = CUDA_CHUNK_ELEMENTS if weight.is_cuda else CHUNK_ELEMENTS
    height = max(1, elements // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], height):
        yield weight[start : start + height]


def _total_counts(chunks: Iterable[torch.Tensor]) -> IntArray:
    """Counts of uint16 patterns held in int16 tensors, by raw pattern; made on their device, brought back once."""
    on_device: torch.Tensor | None = None
    total = np.zeros(PATTERNS, dtype=np.int64)
    for patterns in chunks:
        if patterns.is_cuda:
            counts = torch.bincount(patterns.flatten().int() & 0xFFFF, minlength=PATTERNS)
            on_device = counts if on_device is None else on_device.add_(counts)
        else:  # numpy's is the faster here
            total += np.bincount(patterns.contiguous().numpy().view(np.uint16).ravel(), minlength=PATTERNS)
    return total if on_device is None else on_device.cpu().numpy()


def _in_value_order(counts: IntArray) -> IntArray:
    """Counts by raw pattern, re-ordered from the most negative pattern to the most positive one."""
    return np.concatenate([counts[PATTERNS // 2 :][::-1], counts[: PATTERNS // 2]])


@lru_cache(maxsize=2)
def pattern_values(dtype: torch.dtype) -> FloatArray:
    """The 65,536 values of float16 or bfloat16 in ascending order of pattern, as float64; NaN at both ends."""
    raw = torch.from_numpy(np.arange(PATTERNS, dtype=np.uint16).view(np.int16)).view(dtype).double().numpy()
    values = np.concatenate([raw[PATTERNS // 2 :][::-1], raw[: PATTERNS // 2]])
    values.flags.writeable = False
    return values


def count_patterns(weight: torch.Tensor) -> IntArray:
    """Counts of each pattern of a float16 or bfloat16 weight (2-D), in the order of `pattern_values`."""
    return _in_value_order(_total_counts(chunk.view(torch.int16) for chunk in row_chunks(weight)))


def count_prefixes(weight: torch.Tensor) -> IntArray:
    """Counts of the upper 16 bits of a float32 weight (2-D), in value order; prefix p is bfloat16 pattern p."""
    prefixes = ((chunk.contiguous().view(torch.int32) >> 16).to(torch.int16) for chunk in row_chunks(weight))
    return _in_value_order(_total_counts(prefixes))


def select_ranks(weight: torch.Tensor, prefix_counts: IntArray, ranks: IntArray) -> FloatArray:
    """The float32 values at 0-based `ranks` of the sorted finite and infinite values of a float32 weight, exactly.

    `prefix_counts`: of `count_prefixes`, with NaN prefixes already set to 0. A second pass over the weight counts the
    lower halves inside the prefixes that hold a rank.
    """
    ends = np.cumsum(prefix_counts)
    holders = np.searchsorted(ends, ranks, side="right")
    wanted = np.unique(holders)
    # From value order back to raw upper bits.
    raw = np.where(wanted < PATTERNS // 2, PATTERNS - 1 - wanted, wanted - PATTERNS // 2)
    slot = torch.full((PATTERNS,), -1, dtype=torch.int64)
    slot[torch.from_numpy(raw)] = torch.arange(wanted.size)
    slot = slot.to(weight.device)
    counts = torch.zeros(wanted.size * PATTERNS, dtype=torch.int64, device=weight.device)
    for chunk in row_chunks(weight):
        bits = chunk.contiguous().view(torch.int32).flatten()
        where = slot[((bits >> 16) & 0xFFFF).long()]
        inside = where >= 0
        keys = where[inside] * PATTERNS + (bits[inside] & 0xFFFF).long()
        counts += torch.bincount(keys, minlength=counts.numel())
    table = counts.cpu().numpy().reshape(wanted.size, PATTERNS)
    values = np.empty(len(ranks))
    for i, (rank, holder) in enumerate(zip(ranks, holders, strict=True)):
        row = int(np.searchsorted(wanted, holder))
        offset = int(rank - (ends[holder] - prefix_counts[holder]))
        negative = holder < PATTERNS // 2
        lower = table[row][::-1] if negative else table[row]
        low_bits = int(np.searchsorted(np.cumsum(lower), offset, side="right"))
        low_bits = PATTERNS - 1 - low_bits if negative else low_bits
        values[i] = np.array((int(raw[row]) << 16) | low_bits, dtype=np.uint32).view(np.float32)
    return values
