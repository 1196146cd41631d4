"""The order of training rows.

It is a function of seed and epoch alone, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

MEGABATCH = 50  # global batches that are sorted by length together, transformers' own choice


class EpochSampler(Sampler[int]):
    """Indices of all rows in an order drawn from (seed, epoch); call `set_epoch` before each epoch.

    strategy: "random"; "sequential"; or "group_by_length", in which the rows of one optimizer step
    (`global_batch` of them, over all processes and micro-batches) have similar lengths, and the longest come
    first, so that what does not fit into memory shows at once. The order does not depend on how a global
    batch is spread over processes.
    """

    def __init__(self, lengths: Sequence[int], global_batch: int, seed: int, strategy: str):
        self.lengths = torch.as_tensor(lengths)
        self.global_batch = global_batch
        self.seed = seed
        self.strategy = strategy
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rows = len(self.lengths)
        if self.strategy == "sequential":
            return iter(range(rows))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(rows, generator=generator)
        if self.strategy == "group_by_length":
            order = self._grouped(order, generator)
        return iter(order.tolist())

    def _grouped(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        batches = []
        for part in order.split(MEGABATCH * self.global_batch):
            by_length = part[torch.argsort(self.lengths[part], descending=True, stable=True)]
            batches += by_length.split(self.global_batch)
        # An incomplete batch stays last, or all batches behind it would be cut elsewhere.
        full = [batch for batch in batches if len(batch) == self.global_batch]
        rest = [batch for batch in batches if len(batch) < self.global_batch]
        if full:
            shuffled = torch.randperm(len(full), generator=generator).tolist()
            longest = max(range(len(full)), key=lambda index: int(self.lengths[full[index][0]]))
            shuffled.remove(longest)
            full = [full[index] for index in [longest, *shuffled]]
        return torch.cat([*full, *rest])
