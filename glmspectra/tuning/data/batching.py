"""Batches for training: the data's own, with what training does not need taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glmspectra.tuning.training.token_loss import IGNORED

REAL_TOKENS = "real_tokens"


class TrainingCollator:
    """Calls the data's collator, then moves padding to the right and drops the attention mask.

    A causal model lets no token see what stands to its right, so with padding there no mask is needed, and
    attention runs by its fastest kernel. Positions count from each row's first token either way: the losses
    are the same. Batches without a mask (packed rows, whose position ids say where an example starts) pass
    unchanged.

    Adds real_tokens, int64 [1]: tokens that are not padding.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]], pad_token_id: int):
        self.collate = collate
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        batch = right_padded(self.collate(rows), self.pad_token_id)
        return {**batch, REAL_TOKENS: torch.tensor([sum(len(row["input_ids"]) for row in rows)])}


def right_padded(batch: dict[str, torch.Tensor], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and labels [b, s] with padding on the right, without mask and positions; see
    `TrainingCollator`."""
    mask = batch.get("attention_mask")
    if mask is None:
        return dict(batch)
    mask = mask.bool()
    # A stable sort by "is padding" keeps the order of tokens.
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
    width = int(mask.sum(1).max())
    fillers = {"input_ids": pad_token_id, "labels": IGNORED}
    return {
        name: batch[name].masked_fill(~mask, filler).gather(1, order)[:, :width] for name, filler in fillers.items()
    }
