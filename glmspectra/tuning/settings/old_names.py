"""Names of arguments of the Trainer from earlier years: translated or set aside, with one line each that says so."""

from glmspectra.language import text
from glmspectra.tuning.settings.files import Faults, Section
from glmspectra.tuning.settings.train_args import TrainArgs

# Old name -> new name, where the value stays as it is.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "xpu_backend": "ddp_backend",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
# Names whose two spellings are both current: translated without a word.
SILENT = {"activation_checkpointing", "activation_checkpointing_kwargs"}

# Old name -> why it has no effect.
SET_ASIDE = {
    "overwrite_output_dir": "a new run writes into output_dir and keeps the checkpoints that stand there",
    "save_safetensors": "adapters are always saved as safetensors",
    "logging_dir": "logs go to output_dir; set TENSORBOARD_LOGGING_DIR for another folder",
    "include_tokens_per_second": "tokens per second are always logged",
    "jit_mode_eval": "the Trainer has no such mode any more",
    "use_ipex": "the Trainer has no such mode any more",
    "use_mps_device": "the device is chosen by --device",
    "half_precision_backend": "fp16 runs by torch's own automatic mixed precision",
    "fp16_backend": "fp16 runs by torch's own automatic mixed precision",
    "fp16_opt_level": "fp16 runs by torch's own automatic mixed precision",
    "tpu_num_cores": "TPUs are not supported",
    "tpu_metrics_debug": "TPUs are not supported",
    "past_index": "the model carries no state from batch to batch",
    "mp_parameters": "SageMaker's model parallelism is not supported",
    "sharded_ddp": "the library dropped it for fsdp",
    "fsdp_min_num_params": "write min_num_params into fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "write transformer_layer_cls_to_wrap into fsdp_config",
    "ray_scope": "there is no search over hyperparameters here",
    "tokenizer": "the tokenizer is the model's own",
    "push_to_hub_organization": "nothing is sent to a hub",
    "dispatch_batches": "how rows are shared over processes is fixed",
    "split_batches": "how rows are shared over processes is fixed",
    "include_inputs_for_metrics": "evaluation counts loss and token accuracy only",
}

_OPTIMIZERS = {"adamw_hf": "adamw_torch"}
OLD_NAMES = (*RENAMED, *SET_ASIDE, "group_by_length", "warmup_ratio", "adafactor")


def translate(section: Section, notes: list[str], faults: Faults) -> None:
    """Rename or set aside the names of earlier versions, in place; one note a key."""
    fields = TrainArgs.model_fields
    for old in list(section.values):
        value, source = section.values[old], section.source(old)
        if old in RENAMED:
            new = RENAMED[old]
            if new in section.values:
                if section.values[new] != value:
                    faults.add(
                        source,
                        f"{old} is the old name of {new}, and both are given with different values; keep {new}.",
                    )
                section.drop(old)
                continue
            section.rename(old, new, value)
            if old not in SILENT:
                notes.append(text("settings-renamed", source=source, old=old, new=new))
        elif old == "group_by_length":
            if not isinstance(value, bool):
                faults.add(source, f"{old} is {value!r}; allowed: true or false.")
                section.drop(old)
                continue
            strategy = "group_by_length" if value else "random"
            section.rename(old, "train_sampling_strategy", strategy)
            notes.append(text("settings-grouped", source=source, strategy=strategy))
        elif old == "warmup_ratio":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                faults.add(source, f"warmup_ratio is {value!r}; allowed: a number from 0 up to, not including, 1.")
                section.drop(old)
            elif section.values.get("warmup_steps"):
                section.drop(old)
                notes.append(text("settings-warmup-aside", source=source))
            else:
                section.rename(old, "warmup_steps", value)
                notes.append(text("settings-warmup", source=source))
        elif old == "adafactor":
            section.drop(old)
            if value:
                section.put("optim", "adafactor", source)
            notes.append(text("settings-adafactor" if value else "settings-adafactor-off", source=source))
        elif old in SET_ASIDE and old not in fields:
            section.drop(old)
            notes.append(text("settings-aside", source=source, key=old, why=SET_ASIDE[old]))
        elif old == "optim" and isinstance(value, str) and value in _OPTIMIZERS:
            section.put(old, _OPTIMIZERS[value], source)
            notes.append(text("settings-optimizer", source=source, old=value, new=_OPTIMIZERS[value]))
