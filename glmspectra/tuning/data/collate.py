"""From examples to a batch of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glmspectra.tuning.data.encode import IGNORED


@dataclass(frozen=True)
class PaddingCollator:
    """Pads a batch to its longest example: input_ids, labels and attention_mask, int64 [b, s].

    Padding stands on the right for every family. A causal model lets no token see what stands to its right, so each
    example is computed as it is alone, with positions that count from its first token.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(example["input_ids"]) for example in examples)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for example in examples:
            padding = width - len(example["input_ids"])
            columns["input_ids"].append([*example["input_ids"], *[self.pad_token_id] * padding])
            columns["labels"].append([*example["labels"], *[IGNORED] * padding])
            columns["attention_mask"].append([1] * (width - padding) + [0] * padding)
        return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


@dataclass(frozen=True)
class PackedCollator:
    """Batches packed rows: input_ids, labels and position_ids, int64 [b, s], and no attention mask.

    A row without position_ids is a single example, as evaluation has them.

    Positions that start anew keep examples apart: transformers' masks (block causal) and its flash attention (variable
    lengths) read them where there is neither an attention mask nor a cache. Padding at the end of a row counts from 0
    too, so it is an example of its own that nothing sees and nothing is learnt from. With `one_row` the rows are laid
    end to end as [1, b * s] without padding: flash attention reads positions of a single row only.
    """

    pad_token_id: int
    one_row: bool = False

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = 0 if self.one_row else max(len(example["input_ids"]) for example in examples)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for example in examples:
            padding = max(width - len(example["input_ids"]), 0)
            columns["input_ids"].append(list(example["input_ids"]) + [self.pad_token_id] * padding)
            columns["labels"].append(list(example["labels"]) + [IGNORED] * padding)
            positions = example.get("position_ids") or range(len(example["input_ids"]))
            columns["position_ids"].append(list(positions) + list(range(padding)))
        if self.one_row:
            columns = {name: [[value for row in rows for value in row]] for name, rows in columns.items()}
        return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}
