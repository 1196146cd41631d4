"""The Trainer's arguments of a run, and what is refused before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from glmspectra.errors import ConfigError
from glmspectra.files import check_target
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.settings.at_hand import IDLE_FSDP

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from glmspectra.tuning.settings.load import Settings

ADAPTER_CONFIG = "adapter_config.json"


def training_arguments(settings: Settings, precision: Precision, device: torch.device) -> TrainingArguments:
    """The Trainer's arguments with what this run decides: precision, device, no silent treatment of NaN.

    Raises:
        ConfigError: The Trainer refuses them, or they ask for what cannot be here.
    """
    more: dict[str, Any] = {
        **precision.trainer_arguments(),
        # Checkpointing is switched on at the model, where its two names in the supported versions do not
        # matter.
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
        "use_cpu": device.type == "cpu",
        "ddp_find_unused_parameters": False,
    }
    given = settings.train.given()
    if "report_to" not in given:
        more["report_to"] = "none"
    if device.type == "cpu":
        more["dataloader_pin_memory"] = False
    elif given.get("dataloader_pin_memory", True):
        more["accelerator_config"] = {"non_blocking": True}  # the next batch is copied while this one is worked on
    if settings.finetune.early_stopping_patience is not None:
        more |= _for_early_stopping(given)
    arguments: TrainingArguments = settings.training_arguments(**more)
    _check_trackers(list(arguments.report_to or []))
    refuse_idle_fsdp(arguments, device)
    if device.type == "cuda" and arguments.world_size == 1:
        torch.cuda.set_device(device)
        arguments._n_gpu = 1  # without a launcher the Trainer would spread a batch over all cards by DataParallel
    return arguments


def _for_early_stopping(given: dict[str, Any]) -> dict[str, Any]:
    """What early stopping needs of the Trainer, as far as it is not given: the best checkpoint is saved and kept."""
    if given.get("eval_strategy", "no") == "no":
        raise ConfigError(
            "finetune_args.json: early_stopping_patience counts evaluations, and there are none: set eval_strategy to "
            "steps or epoch."
        )
    wanted = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "restore_callback_states_from_checkpoint": True,
        "save_strategy": given["eval_strategy"],
    } | ({"save_steps": given["eval_steps"]} if "eval_steps" in given else {})
    return {key: value for key, value in wanted.items() if key not in given}


def refuse_idle_fsdp(arguments: TrainingArguments, device: torch.device) -> None:
    """Raises ConfigError where fsdp is asked for and there is nothing to shard over."""
    if arguments.fsdp and (device.type != "cuda" or arguments.world_size == 1):
        raise ConfigError(IDLE_FSDP)


def _check_trackers(names: list[str]) -> None:
    """Stop when `report_to` names what the Trainer does not know or what is not installed. Raises ConfigError."""
    try:
        for tracker in get_reporting_integration_callbacks(names):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"train_args.json: report_to {', '.join(names)} cannot be used: {error}") from error


def count_steps(arguments: TrainingArguments, rows: int) -> int:
    """Optimizer steps of a run, as the Trainer counts them."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    per_batch = arguments.per_device_train_batch_size * arguments.world_size
    batches = rows // per_batch if arguments.dataloader_drop_last else math.ceil(rows / per_batch)
    updates: int = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    epochs: float = arguments.num_train_epochs
    return math.ceil(epochs * updates)


def check_final_folder(settings: Settings) -> None:
    """Stop before training where the adapter could not be saved without taking something away.

    Raises:
        ConfigError: The adapter's folder is the run's folder, or holds it.
        RequestError: It holds something else than an earlier adapter.
    """
    folder, output = settings.final_adapter, Path(settings.train.output_dir)
    if output.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"final_model_path {folder} is output_dir or holds it, and the adapter's folder is written as a whole: "
            "name a folder inside output_dir or elsewhere, or null for output_dir/final_adapter."
        )
    check_target(folder, "final_model_path", ADAPTER_CONFIG)
