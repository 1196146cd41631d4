"""Training, merging and loading, as the commands do them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.embedded import EMBEDDED_MODEL, locate_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from glmspectra.checkpoint.writing.merge import Merged

__all__ = ["load_model", "merge", "train"]


def train(
    folder: str | Path = "args_file",
    overrides: Sequence[str] = (),
    *,
    ranks: str | Path | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> dict[str, Any]:
    """Train by the three JSON files in `folder`, as `glmspectra train` does.

    Args:
        folder: Holds finetune_args.json, lora_args.json and train_args.json.
        overrides: Keys to change, as "section.key=value": "lora.r=8".
        ranks: A ranks file of `suggest_ranks`.
        device: "auto", "cpu" or "cuda" ("cuda:N" is chosen by CUDA_VISIBLE_DEVICES before torch is imported).
        quiet: No progress bar.

    Returns:
        What the run came to: method, steps, losses, the adapter's folder, trainable parameters ...

    Raises:
        ConfigError: A setting is wrong; all faults at once.
        DataError: A row cannot be used.
        TrainingError: A loss or gradient is not finite, or what was asked for did not happen.
    """
    from glmspectra.tuning.settings.load import load_settings
    from glmspectra.tuning.training.run import prepare_run
    from glmspectra.tuning.training.run import train as run_training

    settings = load_settings(Path(folder), list(overrides), None if ranks is None else Path(ranks))
    return run_training(prepare_run(settings, device, quiet=quiet))


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Base and adapter into one checkpoint in the base's original precision, one tensor at a time.

    Args:
        adapter: A PEFT adapter folder.
        out: The folder to write; it must not hold anything else.
        base: The base model; None: the embedded one.
        dtype: Of the written weights; None: as the base.

    Raises:
        CheckpointError: The adapter does not fit the base, or holds what is not understood.
    """
    from glmspectra.checkpoint.writing.merge import merge as merge_folders

    found = EMBEDDED_MODEL if base is None else locate_model(base, "base")
    return merge_folders(found, Path(adapter), Path(out), dtype)


def load_model(
    model: str | Path, adapter: str | Path | None = None, *, device: str = "auto", four_bit: bool = False
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Model and tokenizer, ready to answer, with an adapter or without; no code of the folder is run.

    Args:
        model: A folder or GGUF file, or "nano".
        adapter: A PEFT adapter folder.
        device: "auto", "cpu", "cuda" or "cuda:N".
        four_bit: Load in NF4.
    """
    from glmspectra.tuning.inference.batch import load_for_inference

    changes = None if adapter is None else Path(adapter)
    loaded = load_for_inference(locate_model(model, "model"), changes, device, "auto", four_bit=four_bit)
    return loaded.model, loaded.tokenizer
