"""A training run from checked settings to a saved adapter: construct, train, save."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from glmspectra.checkpoint import open_checkpoint
from glmspectra.checkpoint.adapter.adapter import INITIAL_FOLDER
from glmspectra.device import choose_device
from glmspectra.embedded import locate_model
from glmspectra.errors import ConfigError, TrainingError
from glmspectra.files import atomic_folder, check_target, remove_leftovers
from glmspectra.tuning.data import TrainingData, prepare_data
from glmspectra.tuning.data.batching import REAL_TOKENS, TrainingCollator
from glmspectra.tuning.model.adapter import add_adapter, trainable_by_type
from glmspectra.tuning.model.adapter_products import follow_input_dtype
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.model.loading import (
    check_not_packed,
    load_config,
    load_for_settings,
    load_tokenizer,
    positions_of,
)
from glmspectra.tuning.model.precision import Precision, choose_precision
from glmspectra.tuning.model.recomputation import enable_checkpointing
from glmspectra.tuning.model.start import changes_base, initialize_from_data
from glmspectra.tuning.settings.load import Settings, load_settings
from glmspectra.tuning.training.callbacks import AdaLoraCallback, CurvesCallback, ProgressCallback, StartCallback
from glmspectra.tuning.training.checkpoints import find_resume
from glmspectra.tuning.training.throughput import Throughput, flops_parameters
from glmspectra.tuning.training.token_loss import TokenLoss
from glmspectra.tuning.training.trainer import AdapterTrainer

SETTINGS_FOLDER = "resolved_args"
FINAL_RANKS = "final_ranks.json"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass
class Run:
    """Everything of a run before its first step."""

    settings: Settings
    device: torch.device
    precision: Precision
    tokenizer: Any
    data: TrainingData
    model: PeftModel
    trainer: AdapterTrainer
    total_steps: int
    resume: Path | None
    notes: list[str] = field(default_factory=list)

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer.args.output_dir)


def prepare_run(
    settings: Settings,
    device: str = "auto",
    draw: Callable[[Path], Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Load tokenizer, data and model, add the adapter and build the trainer; nothing is written but the
    data's cache.

    draw: called with the output folder after each evaluation and at the end. Raises the errors of each part:
    ConfigError, DataError, CheckpointError, TrainingError.
    """
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    precision = choose_precision(settings, place)
    training_arguments(settings, precision, place)  # what the Trainer refuses is refused before anything is loaded
    check_ranks_base(settings)
    check_final_place(settings)
    tokenizer = load_tokenizer(settings.finetune.model_path)
    config = load_config(settings.finetune.model_path)
    if settings.quantized:
        check_not_packed(config, settings.finetune.model_path)
    data = prepare_data(
        settings, tokenizer, family_of(config), limit=positions_of(config), vocabulary=config.vocab_size
    )
    base = load_for_settings(settings, precision, place)
    return build_run(settings, place, precision, tokenizer, data, base, draw, quiet)


def check_ranks_base(settings: Settings) -> None:
    """Stop when `--ranks` were measured on another checkpoint than model_path. Raises ConfigError."""
    if settings.lora.ranks_base:
        with open_checkpoint(locate_model(settings.finetune.model_path)) as checkpoint:
            settings.check_base(checkpoint.name, checkpoint.fingerprint)


def check_final_place(settings: Settings) -> None:
    """Stop before training where the adapter could not be saved without taking something away. Raises ConfigError
    or RequestError."""
    place, output = settings.final_adapter, Path(settings.train.output_dir)
    if output.resolve().is_relative_to(place.resolve()):
        raise ConfigError(
            f"final_model_path {place} is output_dir or holds it, and the adapter's folder is written as a whole: name "
            "a folder inside output_dir or elsewhere, or null for output_dir/final_adapter."
        )
    check_target(place, "final_model_path", ADAPTER_CONFIG)


def build_run(
    settings: Settings,
    place: torch.device,
    precision: Precision,
    tokenizer: Any,
    data: TrainingData,
    base: Any,
    draw: Callable[[Path], Any] | None = None,
    quiet: bool = False,
) -> Run:
    """The run over a base model and data that are loaded already; `prepare_run` says the rest."""
    arguments = training_arguments(settings, precision, place)
    total_steps = count_steps(arguments, len(data.train))
    notes: list[str] = []
    if arguments.eval_strategy != "no" and data.valid is None:
        raise ConfigError(
            f"eval_strategy is {getattr(arguments.eval_strategy, 'value', arguments.eval_strategy)}, and there are "
            "no rows to evaluate on; give valid_path or valid_fraction, or set eval_strategy to no."
        )
    set_seed(settings.finetune.seed)
    model = add_adapter(base, settings, total_steps)
    collator = TrainingCollator(data.collator, data.collator.pad_token_id)
    valid = data.valid.sort("length", reverse=True) if data.valid is not None else None  # less padding
    if settings.lora.init_lora_weights in ("eva", "loftq"):
        initialize_from_data(model, settings, _first_batches(data, arguments.per_device_train_batch_size))
        set_seed(settings.finetune.seed)
    if precision.autocast is None and precision.weights is not torch.float32:
        follow_input_dtype(model, settings.lora.adapter_name)
    if settings.train.gradient_checkpointing:
        enable_checkpointing(base, settings.train.gradient_checkpointing_kwargs)
    token_loss = TokenLoss(base)
    if not token_loss.in_chunks:
        notes.append(
            "the output layer does not have the last word on the logits, so the loss is taken from all of them."
        )

    trainer = AdapterTrainer(
        adapter=settings.lora.adapter_name,
        token_loss=token_loss,
        throughput=Throughput(
            place, flops_parameters(base), precision.compute is not torch.float32, arguments.world_size
        ),
        base_name=str(settings.finetune.model_path),
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=valid,
        data_collator=collator,
    )
    if trainer.is_fsdp_enabled and settings.adaptive:
        raise ConfigError(
            f"method {settings.method} does not go with fsdp: allocating ranks needs whole matrices and gradients, "
            "and fsdp keeps a share of each on each process; leave fsdp out (data parallelism works), or use lora "
            "or qlora."
        )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is the command's result
    output_dir = Path(arguments.output_dir)
    trainer.add_callback(StartCallback(trainer, total_steps))
    if trainer.adalora is not None:
        trainer.add_callback(AdaLoraCallback(trainer.adalora, output_dir))
    if draw is not None:
        trainer.add_callback(CurvesCallback(draw))
    if not quiet:
        trainer.add_callback(ProgressCallback())
    resume = find_resume(settings.resume, output_dir)
    if resume is not None:
        notes += differences(settings, resume.parent / SETTINGS_FOLDER)
    return Run(settings, place, precision, tokenizer, data, model, trainer, total_steps, resume, notes)


def training_arguments(settings: Settings, precision: Precision, device: torch.device) -> Any:
    """The Trainer's arguments with what this run decides: precision, device, no silent treatment of NaN."""
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
    arguments = settings.training_arguments(**more)
    check_trackers(arguments.report_to)
    refuse_idle_fsdp(arguments, device)
    if device.type == "cuda" and arguments.world_size == 1:
        torch.cuda.set_device(device)
        arguments._n_gpu = 1  # without a launcher the Trainer would spread a batch over all cards by DataParallel
    return arguments


def refuse_idle_fsdp(arguments: Any, device: torch.device) -> None:
    """Raises ConfigError where fsdp is asked for and there is nothing to shard over."""
    if arguments.fsdp and (device.type != "cuda" or arguments.world_size == 1):
        raise ConfigError(
            "train_args.json: fsdp is given and would do nothing here: it shards over GPUs under a launcher "
            "(torchrun --nproc-per-node 8 -m glmspectra train ...); leave fsdp out, or start the run so."
        )


def check_trackers(names: list[str]) -> None:
    """Stop when `report_to` names what the Trainer does not know or what is not installed. Raises ConfigError."""
    try:
        for tracker in get_reporting_integration_callbacks(names):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"train_args.json: report_to {', '.join(names)} cannot be used: {error}") from error


def count_steps(arguments: Any, rows: int) -> int:
    """Optimizer steps of a run, as the Trainer counts them."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    per_batch = arguments.per_device_train_batch_size * arguments.world_size
    batches = rows // per_batch if arguments.dataloader_drop_last else math.ceil(rows / per_batch)
    updates = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * updates)


def train(run: Run) -> dict[str, Any]:
    """Train, save the adapter to `final_model_path`, and return what came out.

    {"adapter", "output_dir", "steps", "train_loss", "eval_loss", ..., "trainable_parameters",
    "tokens_per_second", ...}. Raises TrainingError when the run stops by itself; the last whole checkpoint
    stays as it is.
    """
    settings, trainer, output = run.settings, run.trainer, run.output_dir
    if trainer.args.should_save:
        output.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        settings.save(output / SETTINGS_FOLDER)
        if changes_base(settings) and run.resume is None:
            trainer.save_adapter(output / INITIAL_FOLDER)
    trainer.accelerator.wait_for_everyone()
    try:
        outcome = trainer.train(resume_from_checkpoint=str(run.resume) if run.resume else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device ran out of memory: {str(error).splitlines()[0]} Set gradient_checkpointing, lower "
            "per_device_train_batch_size (and raise gradient_accumulation_steps), or lower max_length."
        ) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.close()
    result: dict[str, Any] = {
        "adapter": str(settings.final_adapter),
        "output_dir": str(output),
        "method": settings.method,
        "steps": trainer.state.global_step,
        "train_loss": outcome.training_loss,
        "trainable_parameters": sum(trainable_by_type(run.model).values()),
    }
    for key in (
        "eval_loss",
        "eval_perplexity",
        "eval_token_accuracy",
        "tokens_per_second",
        "padded_tokens_per_second",
        "mfu",
    ):
        entry = next((entry for entry in reversed(trainer.state.log_history) if key in entry), None)
        if entry is not None:
            result[key] = entry[key]
    if trainer.adalora is not None:
        result["ranks"] = trainer.adalora.rankallocator.ranks()
    state_dict = trainer.gathered_state()
    if trainer.args.should_save:
        save_final(run, result.get("ranks"), state_dict)
        trainer.state.save_to_json(str(output / "trainer_state.json"))
    trainer.accelerator.wait_for_everyone()
    return result


def save_final(run: Run, ranks: dict[str, int] | None, state_dict: dict[str, Any] | None = None) -> None:
    """The trained adapter into `final_model_path`, whole or not at all; AdaLoRA's final ranks beside it."""
    with atomic_folder(run.settings.final_adapter) as staging:
        run.trainer.save_adapter(staging, state_dict)
        start = run.output_dir / INITIAL_FOLDER
        if changes_base(run.settings) and start.is_dir():
            shutil.copytree(start, staging / INITIAL_FOLDER)
        if ranks is not None:
            (staging / FINAL_RANKS).write_text(json.dumps(ranks, indent=2) + "\n", encoding="utf-8")


def longest_batch_step(run: Run) -> dict[str, Any]:
    """One forward and backward of the heaviest batch there will be: the longest rows together. Gradients are
    cleared.

    Returns {"rows", "tokens" (of one padded row), "loss", "peak_memory_gib" (CUDA only)}; raises
    TrainingError when memory does not suffice.
    """
    trainer = run.trainer
    lengths = [len(row["input_ids"]) for row in run.data.train]
    longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[: trainer.args.per_device_train_batch_size]
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


def differences(settings: Settings, saved: Path) -> list[str]:
    """One line a key that a resumed run takes from the settings of now, where those of the start differ."""
    if not saved.is_dir():
        return []
    before, now = load_settings(saved).as_files(), settings.as_files()
    lines = []
    for section, values in now.items():
        for key, value in values.items():
            old = before[section].get(key, value)
            if old != value and key != "resume_from_checkpoint":
                lines.append(f"{section}.{key}: {value!r} is used; this run began with {old!r}.")
    return lines


def _first_batches(data: TrainingData, size: int, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Up to `count` batches of training rows as the data's collator makes them, each with an attention mask."""
    batches = []
    for start in range(0, min(len(data.train), count * size), size):
        batch = data.collator([data.train[row] for row in range(start, min(start + size, len(data.train)))])
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        batches.append(batch)
    return batches
