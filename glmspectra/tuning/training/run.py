"""A training run from checked settings to a saved adapter: construct, train, save."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PrinterCallback, set_seed

from glmspectra.chatglm2.layers import norms_after_blocks
from glmspectra.checkpoint.adapter.start import INITIAL_FOLDER
from glmspectra.device import choose_device
from glmspectra.errors import ConfigError, RequestError, TrainingError
from glmspectra.files import atomic_folder, exclusive, remove_leftovers
from glmspectra.language import text
from glmspectra.tuning.data.batching import TrainingCollator
from glmspectra.tuning.model.adapter import add_adapter, trainable_by_type
from glmspectra.tuning.model.adapter_products import follow_input_dtype
from glmspectra.tuning.model.four_bit_products import widen_by_kernel
from glmspectra.tuning.model.loading import load_for_settings
from glmspectra.tuning.model.precision import Precision, choose_precision
from glmspectra.tuning.model.recomputation import enable_checkpointing
from glmspectra.tuning.model.start import changes_base, initialize_from_data
from glmspectra.tuning.training.arguments import check_final_folder, count_steps, training_arguments
from glmspectra.tuning.training.callbacks import AdaLoraCallback, CurvesCallback, ProgressCallback, StartCallback
from glmspectra.tuning.training.inputs import Inputs, load_inputs
from glmspectra.tuning.training.record import SETTINGS_FOLDER, RunRecord
from glmspectra.tuning.training.samples import SamplesCallback
from glmspectra.tuning.training.start import Start, absent_again, choose_start, move_aside
from glmspectra.tuning.training.throughput import Throughput, flops_parameters
from glmspectra.tuning.training.token_loss import TokenLoss
from glmspectra.tuning.training.trainer import AdapterTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from glmspectra.tuning.data import TrainingData
    from glmspectra.tuning.settings.load import Settings

FINAL_RANKS = "final_ranks.json"


@dataclass
class Run:
    """Everything of a run before its first step."""

    inputs: Inputs
    model: PeftModel
    trainer: AdapterTrainer
    total_steps: int
    start: Start = field(default_factory=Start)
    record: RunRecord | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return self.inputs.settings

    @property
    def data(self) -> TrainingData:
        return self.inputs.data

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def precision(self) -> Precision:
        return self.inputs.precision

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer.args.output_dir)


def run_training(
    settings: Settings,
    device: str = "auto",
    draw: Callable[[Path], object] | None = None,
    quiet: bool = False,
    overwrite: bool = False,
    allow_changed: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train as the settings say, or go on where the same run stopped; the result of a run that is finished is returned.

    Meanwhile no other process may train into the same folder.

    Args:
        settings: Of the run.
        device: As `choose_device` takes it.
        draw: Called with the output folder after each evaluation and at the end.
        quiet: No progress.
        overwrite: Move what is in the output folder aside and begin anew.
        allow_changed: Go on although settings or data differ from what the run began with.
        say: Called with each line for the user before training begins.

    Returns:
        As `train`; "finished_before" is True where there was nothing left to do.

    Raises:
        RequestError: The folder is in use, or holds another run.
        GlmspectraError: As `prepare_run` and `train`.
    """
    output = Path(settings.train.output_dir)
    with ExitStack() as held:
        if _is_main():
            held.enter_context(absent_again(output))
            held.enter_context(exclusive(output, "train", beside=True))
        arguments = request(settings, device)
        inputs = load_inputs(settings, own_device(device))
        with arguments.main_process_first(local=False):  # the others look at the folder after that
            moved = move_aside(output) if overwrite and _is_main() else None
        if moved is not None:
            say(text("training-moved", path=str(moved)))
        record = RunRecord.of(inputs, arguments.world_size)
        start = choose_start(settings, record, allow_changed)
        if start.finished is not None:
            return start.finished | {"finished_before": True}
        run = build_run(
            inputs, load_for_settings(settings, inputs.precision, inputs.device), draw, quiet, start, record
        )
        for line in [*inputs.data.report.lines(), *run.notes]:
            say(line)
        return train(run)


def prepare_run(
    settings: Settings,
    device: str = "auto",
    draw: Callable[[Path], object] | None = None,
    quiet: bool = False,
    allow_changed: bool = False,
) -> Run:
    """A run that `train` takes: tokenizer, data and model loaded, the adapter added.

    Nothing is written but the data's cache. The arguments are those of `run_training`.

    Raises:
        RequestError: The output folder holds another run, or this one, finished.
        ConfigError, DataError, CheckpointError, TrainingError: Those of each part.
    """
    arguments = request(settings, device)
    inputs = load_inputs(settings, own_device(device))
    record = RunRecord.of(inputs, arguments.world_size)
    start = choose_start(settings, record, allow_changed)
    if start.finished is not None:
        raise RequestError(f"{arguments.output_dir}: this run is finished; its adapter is {settings.final_adapter}.")
    base = load_for_settings(settings, inputs.precision, inputs.device)
    return build_run(inputs, base, draw, quiet, start, record)


def request(settings: Settings, device: str) -> TrainingArguments:
    """The Trainer's arguments, once nothing speaks against the run that can be known before anything is loaded."""
    own = own_device(device)
    arguments = training_arguments(settings, choose_precision(settings, own), own)
    check_final_folder(settings)
    return arguments


def own_device(device: str) -> torch.device:
    """The device of this process: `device`, on the card that the launcher gave it (LOCAL_RANK)."""
    return choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def build_run(
    inputs: Inputs,
    base: PreTrainedModel,
    draw: Callable[[Path], object] | None = None,
    quiet: bool = False,
    start: Start | None = None,
    record: RunRecord | None = None,
) -> Run:
    """The run over a base model that is loaded already. Raises ConfigError; `prepare_run` says the rest."""
    settings, data, device, precision = inputs.settings, inputs.data, inputs.device, inputs.precision
    arguments = training_arguments(settings, precision, device)
    if arguments.eval_strategy != "no" and data.valid is None:
        raise ConfigError(
            f"eval_strategy is {getattr(arguments.eval_strategy, 'value', arguments.eval_strategy)}, and there are "
            "no rows to evaluate on; give valid_path or valid_fraction, or set eval_strategy to no."
        )
    total_steps = count_steps(arguments, len(data.train))
    model = _adapted(inputs, base, arguments, total_steps)
    token_loss = TokenLoss(base)
    flops = flops_parameters(base)
    trainer = AdapterTrainer(
        adapter=settings.lora.adapter_name,
        token_loss=token_loss,
        throughput=Throughput(device, flops, precision.compute is not torch.float32, arguments.world_size),
        base_name=str(settings.finetune.model_path),
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.valid.sort("length", reverse=True) if data.valid is not None else None,  # less padding
        data_collator=TrainingCollator(data.collator),
    )
    if trainer.is_fsdp_enabled and settings.adaptive:
        raise ConfigError(
            f"method {settings.method} does not go with fsdp: allocating ranks needs whole matrices and gradients, "
            "and fsdp keeps a share of each on each process; leave fsdp out (data parallelism works), or use lora "
            "or qlora."
        )
    if trainer.is_fsdp_enabled and settings.finetune.eval_samples:
        raise ConfigError("eval_samples does not go with fsdp, which keeps a share of each matrix on each process.")
    _add_callbacks(trainer, inputs, total_steps, draw, quiet)
    notes = [*start.notes] if start is not None else []
    if not token_loss.in_chunks:
        notes.append(text("training-all-logits"))
    return Run(inputs, model, trainer, total_steps, start or Start(), record, notes)


def _adapted(inputs: Inputs, base: PreTrainedModel, arguments: TrainingArguments, total_steps: int) -> PeftModel:
    """The base with the adapter of the settings where it starts, ready to be trained."""
    settings, data, precision = inputs.settings, inputs.data, inputs.precision
    set_seed(settings.finetune.seed)
    model = add_adapter(base, settings, total_steps)
    if settings.lora.init_lora_weights in ("eva", "loftq"):
        initialize_from_data(model, settings, _first_batches(data, arguments.per_device_train_batch_size))
        set_seed(settings.finetune.seed)
    if precision.autocast is None and precision.weights is not torch.float32:
        follow_input_dtype(model, settings.lora.adapter_name)
    if settings.quantized:
        widen_by_kernel(model)
    if settings.train.gradient_checkpointing:
        enable_checkpointing(base, settings.train.gradient_checkpointing_kwargs)
    elif not arguments.fsdp:  # with either, a block and the norm that follows it are worked on apart
        for block, norm in norms_after_blocks(base):
            vars(block)["following"] = norm
    return model


def _add_callbacks(
    trainer: AdapterTrainer,
    inputs: Inputs,
    total_steps: int,
    draw: Callable[[Path], object] | None,
    quiet: bool,
) -> None:
    finetune, output = inputs.settings.finetune, Path(trainer.args.output_dir)
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which is the command's result
    trainer.add_callback(StartCallback(trainer, total_steps))
    if trainer.allocator is not None:
        trainer.add_callback(AdaLoraCallback(trainer.allocator, output))
    if finetune.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(finetune.early_stopping_patience, finetune.early_stopping_threshold))
    if finetune.eval_samples:
        trainer.add_callback(SamplesCallback(trainer.model, inputs, output))
    if draw is not None:
        trainer.add_callback(CurvesCallback(draw))
    if not quiet:
        trainer.add_callback(ProgressCallback())


def train(run: Run) -> dict[str, Any]:
    """Train, save the adapter to `final_model_path`, and return what came out.

    Returns:
        {"adapter", "output_dir", "method", "steps", "train_loss" (mean over all steps, also of a run that was resumed),
        "eval_loss", ..., "trainable_parameters", "tokens_per_second", ...}.

    Raises:
        TrainingError: The run stopped by itself; the last whole checkpoint stays as it is.
    """
    trainer, checkpoint = run.trainer, run.start.checkpoint
    if trainer.args.should_save:
        _begin_folder(run)
    trainer.accelerator.wait_for_everyone()
    ended = checkpoint is not None and trainer.stopped_at(checkpoint, run.total_steps)
    if checkpoint is not None and ended:
        trainer.take_up_end(checkpoint)
    else:
        _take_steps(run)
    result = _result(run)
    state_dict = None if ended else trainer.gathered_state()
    if trainer.args.should_save:
        save_final(run, result.get("ranks"), state_dict)
        trainer.state.save_to_json(str(run.output_dir / "trainer_state.json"))
        if run.record is not None:
            run.record.model_copy(update={"finished": result}).write(run.output_dir)
    trainer.accelerator.wait_for_everyone()
    return result


def _begin_folder(run: Run) -> None:
    """What a run folder holds before the first step."""
    settings, output = run.settings, run.output_dir
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    settings.save(output / SETTINGS_FOLDER)
    if run.record is not None:
        run.record.write(output)
    if changes_base(settings) and run.start.checkpoint is None:
        run.trainer.save_adapter(output / INITIAL_FOLDER)


def _take_steps(run: Run) -> None:
    """The steps of the run that are left; an error that the device's memory ends in becomes a sentence."""
    trainer, checkpoint = run.trainer, run.start.checkpoint
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device ran out of memory: {str(error).splitlines()[0]} Set gradient_checkpointing, lower "
            "per_device_train_batch_size (and raise gradient_accumulation_steps), or lower max_length."
        ) from error
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.close()


def _result(run: Run) -> dict[str, Any]:
    settings, trainer = run.settings, run.trainer
    result: dict[str, Any] = {
        "adapter": str(settings.final_adapter),
        "output_dir": str(run.output_dir),
        "method": settings.method,
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(trainable_by_type(run.model).values()),
    }
    for key in (
        "train_loss",
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
    if trainer.args.load_best_model_at_end and trainer.state.best_global_step:
        result |= {"best_step": trainer.state.best_global_step, "best_eval_loss": trainer.state.best_metric}
    if trainer.allocator is not None:
        result["ranks"] = trainer.allocator.ranks()
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


def _first_batches(data: TrainingData, size: int, count: int = 8) -> list[dict[str, torch.Tensor]]:
    """Up to `count` batches of training rows as the data's collator makes them, each with an attention mask."""
    batches = []
    for start in range(0, min(len(data.train), count * size), size):
        batch = data.collator([data.train[row] for row in range(start, min(start + size, len(data.train)))])
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        batches.append(batch)
    return batches
