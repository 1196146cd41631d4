"""Batches for training: the data's own, without the mask that training does not need."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from glmspectra.tuning.data.encode import IGNORED

REAL_TOKENS = "real_tokens"
SUPERVISED = "supervised"


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Rows and positions of the tokens that a label supervises, int64 [2, n], of labels [b, s].

    The label at position t is predicted by position t - 1, which is the one that is named.
    """
    return torch.stack((labels[:, 1:] != IGNORED).nonzero(as_tuple=True))


class TrainingCollator:
    """Calls the data's collator and drops the attention mask.

    Padding stands on the right, where no token sees it, so no mask is needed, and attention runs by its fastest kernel.
    Adds real_tokens, int64 [1]: tokens that are not padding; and supervised, `supervised_positions` of the labels: how
    many there are is known here, where a GPU that was asked for it would first finish all that it has been given.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]]):
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        batch = {name: values for name, values in self.collate(rows).items() if name != "attention_mask"}
        real = torch.tensor([sum(len(row["input_ids"]) for row in rows)])
        return {**batch, REAL_TOKENS: real, SUPERVISED: supervised_positions(batch["labels"])}
