"""The heaviest batch that training may draw: which rows, of what shape, and one step of it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.errors import TrainingError
from glmspectra.tuning.data import IGNORED, TrainingData
from glmspectra.tuning.data.batching import REAL_TOKENS
from glmspectra.tuning.memory.estimate import BatchShape

if TYPE_CHECKING:
    from glmspectra.tuning.training.run import Run


def longest_rows(data: TrainingData, count: int) -> list[int]:
    """Indices of the `count` longest training rows, longest first."""
    lengths = data.train["length"][:]
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])[:count]


def longest_batch(data: TrainingData, rows: int) -> BatchShape:
    """The shape of the batch of the `rows` longest rows."""
    chosen = longest_rows(data, rows)
    supervised = sum(label != IGNORED for index in chosen for label in data.train[index]["labels"])
    tokens = len(data.train[chosen[0]]["input_ids"])
    return BatchShape(len(chosen), tokens, supervised, packed="position_ids" in data.train.column_names)


def longest_batch_step(run: Run) -> dict[str, Any]:
    """One forward and backward of the longest rows together; gradients are cleared.

    Returns:
        {"rows", "tokens" (of one padded row), "loss", "peak_memory_gib" (CUDA only)}.

    Raises:
        TrainingError: Memory does not suffice.
    """
    trainer = run.trainer
    longest = longest_rows(run.data, trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([run.data.train[index] for index in longest])
    inputs = trainer._prepare_inputs({key: value for key, value in batch.items() if key != REAL_TOKENS})
    run.model.train()
    if run.device.type == "cuda":
        gc.collect()  # a model that is done with lies in cycles, and would be counted
        torch.cuda.reset_peak_memory_stats(run.device)
    try:
        with run.precision.context(run.device):
            loss = trainer.token_loss(run.model, inputs).nll.mean()
        loss.backward()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the longest batch ({len(longest)} rows of {inputs['input_ids'].shape[1]} tokens) does not fit into "
            "memory; set gradient_checkpointing, lower per_device_train_batch_size, or lower max_length."
        ) from error
    result = {"rows": len(longest), "tokens": inputs["input_ids"].shape[1], "loss": loss.item()}
    if run.device.type == "cuda":
        result["peak_memory_gib"] = torch.cuda.max_memory_allocated(run.device) / 2**30
    run.model.zero_grad(set_to_none=True)
    return result
