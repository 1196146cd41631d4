"""From examples to a batch of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from glmspectra.tuning.data.encode import IGNORED


@dataclass(frozen=True)
class PaddingCollator:
    """Pads a batch to its longest example.

    Gives input_ids, labels and attention_mask, int64 [b, s]; with `position_ids` also positions, which are 0 on
    padding and count from 0 at the first token, as ChatGLM2's own tokenizer has them.
    """

    pad_token_id: int
    side: Literal["left", "right"] = "right"
    position_ids: bool = False

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(example["input_ids"]) for example in examples)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        if self.position_ids:
            columns["position_ids"] = []
        for example in examples:
            length = len(example["input_ids"])
            columns["input_ids"].append(self._padded(list(example["input_ids"]), self.pad_token_id, width))
            columns["labels"].append(self._padded(list(example["labels"]), IGNORED, width))
            columns["attention_mask"].append(self._padded([1] * length, 0, width))
            if self.position_ids:
                columns["position_ids"].append(self._padded(list(range(length)), 0, width))
        return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}

    def _padded(self, values: list[int], filler: int, width: int) -> list[int]:
        padding = [filler] * (width - len(values))
        return padding + values if self.side == "left" else values + padding


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
