"""`train_args.json`: every argument of `transformers.TrainingArguments`, and what becomes of it here.

Each key is one of three:

    done        it does what transformers says
    refused     it would change nothing, or something else than its name says: any value but those named is a fault
    no effect   it is accepted, and a note says why nothing follows from it

The table is ours, and not read from the library, so that a wrong setting is answered before torch is loaded, and a new
argument of a later version is refused until somebody has looked at what it does here. A test holds names, defaults and
choices equal to those of the installed library.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["done", "refused", "no effect"]
Json = dict[str, Any]


def _entry(status: Status) -> Callable[..., Any]:
    def field(default: Any, takes: str, meaning: str, also: tuple[Any, ...] = (), **constraints: Any) -> Any:
        """A field: its default, what it takes, and what it means (or why it is refused).

        `also` holds values beside the default that are what is done anyway; `constraints` are bounds.
        """
        extra: Json = {"allowed": takes, "status": status, "also": list(also)}
        return Field(default, description=meaning, json_schema_extra=extra, **constraints)

    return field


done, refused, idle = _entry("done"), _entry("refused"), _entry("no effect")

Interval = Literal["no", "steps", "epoch"]
Metric = Literal[
    "loss", "eval_loss", "perplexity", "eval_perplexity", "token_accuracy", "eval_token_accuracy",
]  # fmt: skip
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
# Not here: GaLore and APOLLO, which project gradients of whole matrices; LOMO, which updates inside the backward pass;
# those of other hardware.
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_torch_8bit", "adamw_bnb_8bit", "adamw_8bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "adafactor", "adamw_anyprecision", "ademamix", "ademamix_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_8bit", "lion_32bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "sgd", "adagrad", "grokadamw",
    "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "stable_adamw",
]  # fmt: skip
Level = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]

SWITCH = "true or false"
SWITCH_OR_NULL = "true, false or null"
COUNT = "a whole number of at least 1"
COUNT_OR_NULL = "a whole number of at least 1, or null"
TEXT_OR_NULL = "a text, or null"
OBJECT_OR_NULL = "an object, or null"
STEPS = "a number; below 1 a share of all steps"
NO_HUB = "Nothing is sent to a hub; upload the adapter's folder with the hub's own command."
LEVELS = "one of detail, debug, info, warning, error, critical, passive"


class TrainArgs(BaseModel):
    """Arguments of the Trainer. Only keys that were given are handed on; the library's defaults stay its own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # Length of the run, and its rows
    output_dir: str = done("runs/train", "the path of a folder", "Where checkpoints, logs and settings of the run go.")
    num_train_epochs: float = done(3.0, "a number above 0", "Passes over the training rows.", gt=0)
    max_steps: int = done(-1, "a whole number; -1 for as many as num_train_epochs makes", "Optimizer steps of the run.")
    per_device_train_batch_size: int = done(8, COUNT, "Rows in one forward pass of one device.", ge=1)
    gradient_accumulation_steps: int = done(1, COUNT, "Forward passes whose gradients make one step.", ge=1)
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = done(
        "random",
        "one of random, sequential, group_by_length",
        "Order of the rows; left out, rows of like length go together, which saves padding.",
    )
    seed: int = done(42, "a whole number of at least 0", "Seed of everything random; the same key as in "
                     "finetune_args.json.", ge=0)  # fmt: skip
    data_seed: int | None = refused(None, "null", "The order of the rows follows seed.")
    full_determinism: bool = done(
        False, SWITCH, "Deterministic kernels only: the same numbers in each run, and slower."
    )
    resume_from_checkpoint: bool | str | None = done(
        None, "true, false, null or the path of a checkpoint", "Where to go on from; the same key as in "
        "finetune_args.json.",
    )  # fmt: skip
    ignore_data_skip: bool = done(False, SWITCH, "A resumed run begins its epoch anew and sees rows of it twice.")
    restore_callback_states_from_checkpoint: bool = done(
        False, SWITCH, "A resumed run takes the settings of its callbacks from the checkpoint."
    )
    # Learning rate and optimizer
    learning_rate: float = done(
        5e-5, "a number of at least 0", "Largest learning rate; --find-lr says which fits.", ge=0
    )
    lr_scheduler_type: Schedule = done("linear", "one of " + ", ".join(get_args(Schedule)), "How the rate falls.")
    lr_scheduler_kwargs: Json | None = done(None, OBJECT_OR_NULL, 'Options of the schedule, such as {"min_lr": 1e-6}.')
    warmup_steps: float = done(0, STEPS, "Steps in which the rate rises from 0.", ge=0)
    optim: Optimizer = done("adamw_torch_fused", "one of " + ", ".join(get_args(Optimizer)), "The optimizer.")
    optim_args: str | None = done(None, 'a text such as "a=1,b=2", or null', "Options of the optimizer.")
    optim_target_modules: str | list[str] | None = refused(
        None, "null", "It is for optimizers that project gradients of whole matrices (GaLore, APOLLO)."
    )
    weight_decay: float = done(0.0, "a number of at least 0", "Decay of the weights a step, times the rate.", ge=0)
    adam_beta1: float = done(
        0.9, "a number from 0 up to, not including, 1", "Adam: memory of the gradient.", ge=0, lt=1
    )
    adam_beta2: float = done(
        0.999, "a number from 0 up to, not including, 1", "Adam: memory of its square.", ge=0, lt=1
    )
    adam_epsilon: float = done(1e-8, "a number of at least 0", "Adam: what is added to the denominator.", ge=0)
    max_grad_norm: float = done(
        1.0, "a number of at least 0; 0 for no limit", "Gradients with a larger norm are scaled down to it.", ge=0
    )
    # Loss
    label_smoothing_factor: float = refused(
        0.0, "0", "The loss is the plain cross-entropy of each learnt token, without smoothing."
    )
    average_tokens_across_devices: bool = refused(
        True, "true", "A step's loss is always divided by the learnt tokens of all devices."
    )
    neftune_noise_alpha: float | None = done(
        None, "a number above 0, or null", "NEFTune: noise added to the embeddings while training.", gt=0
    )
    # Precision, memory and speed
    bf16: bool = done(False, SWITCH, "Compute in bfloat16; left out, dtype of finetune_args.json decides.")
    fp16: bool = done(False, SWITCH, "Compute in float16 with loss scaling; left out, dtype decides.")
    bf16_full_eval: bool = refused(False, "false", "Evaluation runs in the precision of training.")
    fp16_full_eval: bool = refused(False, "false", "Evaluation runs in the precision of training.")
    tf32: bool | None = done(
        None, SWITCH_OR_NULL, "Products of float32 in TF32 on Ampere and later; null: torch's own."
    )
    gradient_checkpointing: bool | None = done(
        None, SWITCH_OR_NULL, "Compute activations again in the backward pass: far less memory, a third slower."
    )
    gradient_checkpointing_kwargs: Json | None = done(None, OBJECT_OR_NULL, "Options of torch.utils.checkpoint.")
    torch_compile: bool = refused(False, "false", "The training step is not compiled.")
    torch_compile_backend: str | None = refused(None, "null", "The training step is not compiled.")
    torch_compile_mode: str | None = refused(None, "null", "The training step is not compiled.")
    use_liger_kernel: bool = refused(
        False, "false", "The loss is computed in chunks without the whole logits already, which Liger's would replace."
    )
    liger_kernel_config: dict[str, bool] | None = refused(None, "null", "Liger's kernels are not used.")
    use_cache: bool = refused(False, "false", "Training keeps no keys and values of earlier tokens.")
    torch_empty_cache_steps: int | None = done(
        None, COUNT_OR_NULL, "Steps after which cached GPU memory is given back; less memory, slower.", ge=1
    )
    auto_find_batch_size: bool = refused(
        False, "false", "A batch that does not fit is said before training; --dry-run tries the longest one."
    )
    use_cpu: bool = refused(False, "false", "The device is chosen by --device: write --device cpu.")
    # Logs
    logging_strategy: Interval = done("steps", "one of no, steps, epoch", "When the loss is logged.")
    logging_steps: float = done(10, STEPS, "Steps between two entries of the log.", gt=0)
    logging_first_step: bool = done(False, SWITCH, "Log the first step too.")
    logging_nan_inf_filter: bool = idle(True, SWITCH, "A loss that is not finite stops the run.", also=(False,))
    log_on_each_node: bool = done(True, SWITCH, "On several machines, log on each.")
    log_level: Level = done("passive", LEVELS, "What transformers says of itself.")
    log_level_replica: Level = done("warning", LEVELS, "The same, of processes beside the first.")
    disable_tqdm: bool | None = idle(
        None, SWITCH_OR_NULL, "The command draws its own progress; --quiet leaves it out.", also=(True,)
    )
    include_num_input_tokens_seen: bool | str = idle(
        "no", "no, all or non_padding", "Tokens are counted and logged always.", also=(False,)
    )
    report_to: str | list[str] | None = done(
        "none", "none, a name or a list of tensorboard, wandb, swanlab, trackio, mlflow, ...", "Where logs go beside "
        "output_dir.",
    )  # fmt: skip
    run_name: str | None = done(None, TEXT_OR_NULL, "Name of the run for report_to.")
    project: str = done("huggingface", "a text", "Name of the project for trackio.")
    trackio_space_id: str | None = refused(None, "null", NO_HUB)
    trackio_bucket_id: str | None = refused(None, "null", NO_HUB)
    trackio_static_space_id: str | bool | None = refused(None, "null or false", NO_HUB, also=(False,))
    # Evaluation
    eval_strategy: Interval = done("no", "one of no, steps, epoch", "When the rows of valid are evaluated.")
    eval_steps: float | None = done(None, STEPS + ", or null for logging_steps", "Steps between two evaluations.", gt=0)
    eval_delay: float = done(0, "a number of at least 0", "Steps or epochs before the first evaluation.", ge=0)
    eval_on_start: bool = done(False, SWITCH, "Evaluate before the first step too.")
    per_device_eval_batch_size: int = done(8, COUNT, "Rows evaluated at once on one device.", ge=1)
    prediction_loss_only: bool = idle(
        False, SWITCH, "Evaluation keeps sums of losses, never predictions.", also=(True,)
    )
    eval_do_concat_batches: bool = idle(True, SWITCH, "Evaluation keeps sums of losses, never predictions.")
    eval_use_gather_object: bool = idle(False, SWITCH, "Evaluation keeps sums of losses, never predictions.")
    eval_accumulation_steps: int | None = idle(
        None, COUNT_OR_NULL, "Evaluation keeps sums of losses, never predictions."
    )
    include_for_metrics: list[str] = refused([], "an empty list", "Evaluation has loss, perplexity and token accuracy.")
    batch_eval_metrics: bool = refused(False, "false", "Evaluation has loss, perplexity and token accuracy.")
    # Checkpoints
    save_strategy: Literal["no", "steps", "epoch", "best"] = done(
        "steps", "one of no, steps, epoch, best", "When a checkpoint is written."
    )
    save_steps: float = done(500, STEPS, "Steps between two checkpoints.", gt=0)
    save_total_limit: int | None = done(None, COUNT_OR_NULL, "Checkpoints that are kept, the best beside them.", ge=1)
    save_only_model: bool = done(
        False, SWITCH, "Checkpoints without the optimizer's state; no run can resume from them."
    )
    save_on_each_node: bool = done(False, SWITCH, "On several machines without a common disk, write on each.")
    enable_jit_checkpoint: bool = done(False, SWITCH, "Write a checkpoint when the machine is about to be taken away.")
    load_best_model_at_end: bool = done(False, SWITCH, "Save the adapter of the best checkpoint, not of the last.")
    metric_for_best_model: Metric | None = done(
        None, "one of loss, perplexity, token_accuracy, with or without eval_, or null", "What best means; null: loss."
    )
    greater_is_better: bool | None = done(None, SWITCH_OR_NULL, "Whether best is largest; null: by the metric.")
    # Loading of rows
    dataloader_drop_last: bool = done(False, SWITCH, "Leave out the last batch of a pass where it is not full.")
    dataloader_num_workers: int = done(0, "a whole number of at least 0", "Processes that make batches.", ge=0)
    dataloader_pin_memory: bool = done(True, SWITCH, "Batches in pinned memory, from where copies to a GPU are faster.")
    dataloader_persistent_workers: bool = done(False, SWITCH, "Keep these processes from one pass to the next.")
    dataloader_prefetch_factor: int | None = done(None, COUNT_OR_NULL, "Batches that each of them makes ahead.", ge=1)
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = done(
        None, "one of fork, spawn, forkserver, or null", "How these processes are started."
    )
    dataloader_in_order: bool = done(True, SWITCH, "Batches come in the order they were asked for.")
    remove_unused_columns: bool = idle(
        True, SWITCH, "Batches hold what the model takes and nothing else.", also=(False,)
    )
    label_names: list[str] | None = refused(None, 'null or ["labels"]', "Labels are called labels.", also=(["labels"],))
    length_column_name: str = refused("length", '"length"', "Lengths are called length.")
    # Several devices
    ddp_find_unused_parameters: bool | None = refused(
        None, "false or null", "Every parameter of the adapter takes part in each step.", also=(False,)
    )
    ddp_bucket_cap_mb: int | None = done(None, COUNT_OR_NULL, "MiB of gradients that are sent at once.", ge=1)
    ddp_broadcast_buffers: bool | None = done(None, SWITCH_OR_NULL, "Send buffers to all processes at each step.")
    ddp_static_graph: bool | None = done(None, SWITCH_OR_NULL, "Promise that each step uses the same parameters.")
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"] | None = done(
        None, "one of nccl, gloo, mpi, xccl, hccl, cncl, mccl, or null", "How processes talk; null: by the device."
    )
    ddp_timeout: int = done(1800, COUNT, "Seconds that a process waits for the others.", ge=1)
    fsdp: str | None = done(
        None, 'a text such as "full_shard auto_wrap", or null', "Share the weights over the GPUs of a launcher (FSDP)."
    )
    fsdp_config: Json | str | None = done(None, "an object, the path of a JSON file, or null", "Options of fsdp.")
    deepspeed: Json | str | None = refused(None, "null", "DeepSpeed is not supported; fsdp shares weights over GPUs.")
    accelerator_config: Json | str | None = refused(None, "null", "How rows are shared over processes is fixed.")
    parallelism_config: Json | None = refused(None, "null", "Processes share rows (data parallel) or weights (fsdp).")
    local_rank: int = idle(-1, "a whole number", "The launcher says which process this is.")
    # Of the Trainer's example scripts, and its debugging
    do_train: bool = idle(False, SWITCH, "The command says what is done: train trains.", also=(True,))
    do_eval: bool = idle(False, SWITCH, "eval_strategy says when rows are evaluated.")
    do_predict: bool = idle(False, SWITCH, "`glmspectra infer` writes answers.")
    debug: str | list[str] = refused(
        "", "an empty text", "The first gradient that is not finite is named anyway.", also=([],)
    )
    skip_memory_metrics: bool = idle(True, SWITCH, "--dry-run says what memory a step takes.")
    # Hubs
    push_to_hub: bool = refused(False, "false", NO_HUB)
    hub_token: str | None = refused(None, "null", NO_HUB)
    hub_private_repo: bool | None = refused(None, "null", NO_HUB)
    hub_model_id: str | None = refused(None, "null", NO_HUB)
    hub_strategy: str = refused("every_save", '"every_save"', NO_HUB)
    hub_always_push: bool = refused(False, "false", NO_HUB)
    hub_revision: str | None = refused(None, "null", NO_HUB)

    def given(self) -> Json:
        """The keys that a user set; 100.0, which steps-or-share fields make of 100, is an int again."""
        values = {key: getattr(self, key) for key in self.model_fields_set}
        return {
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in values.items()
        }


# The first key of each group, in the order of the fields.
GROUPS = {
    "output_dir": "length",
    "learning_rate": "rate",
    "label_smoothing_factor": "loss",
    "bf16": "precision",
    "logging_strategy": "logs",
    "eval_strategy": "evaluation",
    "save_strategy": "checkpoints",
    "dataloader_drop_last": "loading",
    "ddp_find_unused_parameters": "devices",
    "do_train": "scripts",
    "push_to_hub": "hubs",
}


def takes(key: str) -> str:
    """What a key takes, in words."""
    return str(_extra(key)["allowed"])


@functools.cache
def statuses() -> dict[str, Status]:
    """What becomes of each key of the Trainer here."""
    return {name: _extra(name)["status"] for name in TrainArgs.model_fields}


def check_status(key: str, value: Any) -> str | None:
    """Why a value of a refused key is a fault, or of a key without effect is worth a note; None where it is neither."""
    info, extra = TrainArgs.model_fields[key], _extra(key)
    if extra["status"] == "done" or value in (info.default, *extra["also"]):
        return None
    return str(info.description).rstrip(".")


def _extra(name: str) -> Json:
    extra = TrainArgs.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)  # as `_entry` makes it
    return extra
