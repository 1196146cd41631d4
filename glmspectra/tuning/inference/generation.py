"""Answers from a model, in batches, from token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.tuning.data import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def split_prompt(input_ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """(what stands before the last answer, the last answer) of a training example, as token ids."""
    end = max((index for index, label in enumerate(labels) if label != IGNORED), default=-1)
    start = end
    while start > 0 and labels[start - 1] != IGNORED:
        start -= 1
    return list(input_ids[: max(start, 0)]), list(input_ids[max(start, 0) : end + 1])


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    **sampling: Any,
) -> list[str]:
    """One answer a prompt, greedy unless `sampling` (arguments of `generate`) says otherwise, in the order given.

    Prompts of similar length share a batch, padded on the left; progress(count) is called after each batch.
    """
    device = next(model.parameters()).device
    model.eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        width = max(len(prompts[index]) for index in chosen)
        ids = torch.full((len(chosen), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            prompt = torch.tensor(list(prompts[index]), dtype=torch.long)
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        made = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            **({"do_sample": False} | sampling),
        )
        for row, index in enumerate(chosen):
            answers[index] = decode(tokenizer, made[row, width:].tolist())
        if progress is not None:
            progress(len(chosen))
    return answers


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of token ids up to the first eos; ids without a text (padding rows of the vocabulary) are left out."""
    ids = list(ids)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    limit = len(tokenizer)
    return str(tokenizer.decode([token for token in ids if token < limit], skip_special_tokens=True)).strip()
