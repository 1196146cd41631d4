"""`train_args.json`: every field of the installed `transformers.TrainingArguments`, and the names of earlier years.

The fields, their types and the values of enumerations are read from the library, so a new version brings its own. What
later versions renamed or dropped is translated or set aside, and each such key gives one line that says so.
"""

import dataclasses
import enum
import functools
import types
import typing
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from glmspectra.tuning.settings.files import Faults, Section

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
    "push_to_hub_organization": "write organization/name into hub_model_id",
    "dispatch_batches": "write dispatch_batches into accelerator_config",
    "split_batches": "write split_batches into accelerator_config",
    "include_inputs_for_metrics": "evaluation counts loss and token accuracy only",
}

_OPTIMIZERS = {"adamw_hf": "adamw_torch"}
OLD_NAMES = (*RENAMED, *SET_ASIDE, "group_by_length", "warmup_ratio", "adafactor")


class TrainArgs(BaseModel):
    """Arguments of the Trainer; the fields are added by `train_args_model`. Only keys that were given are handed on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    def given(self) -> dict[str, Any]:
        """The keys that a user set; 100.0, which steps-or-share fields make of 100, is an int again."""
        values = {key: getattr(self, key) for key in self.model_fields_set}
        return {
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in values.items()
        }

    if TYPE_CHECKING:  # fields are made at run time; type checkers are told that any name may be asked for

        def __getattr__(self, name: str) -> Any: ...


def translate(section: Section, notes: list[str], faults: Faults) -> None:
    """Rename or set aside the names of earlier versions, in place; one note a key."""
    fields = train_args_model().model_fields
    for old in list(section.values):
        value, place = section.values[old], section.place(old)
        if old in RENAMED:
            new = RENAMED[old]
            if new in section.values:
                if section.values[new] != value:
                    faults.add(
                        place,
                        f"{old} is the old name of {new}, and both are given with different values; keep {new}.",
                    )
                section.drop(old)
                continue
            section.rename(old, new, value)
            if old not in SILENT:
                notes.append(f"{place}: {old} is taken as {new}.")
        elif old == "group_by_length":
            if not isinstance(value, bool):
                faults.add(place, f"{old} is {value!r}; allowed: true or false.")
                section.drop(old)
                continue
            strategy = "group_by_length" if value else "random"
            section.rename(old, "train_sampling_strategy", strategy)
            notes.append(f'{place}: group_by_length is taken as train_sampling_strategy "{strategy}".')
        elif old == "warmup_ratio":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                faults.add(place, f"warmup_ratio is {value!r}; allowed: a number from 0 up to, not including, 1.")
                section.drop(old)
            elif section.values.get("warmup_steps"):
                section.drop(old)
                notes.append(f"{place}: warmup_ratio is set aside, since warmup_steps is given.")
            else:
                section.rename(old, "warmup_steps", value)
                notes.append(f"{place}: warmup_ratio is taken as warmup_steps, below 1 a share of all steps.")
        elif old == "adafactor":
            section.drop(old)
            if value:
                section.put("optim", "adafactor", place)
            notes.append(f"{place}: adafactor is taken as optim{' adafactor' if value else ', which stays as it is'}.")
        elif old in SET_ASIDE and old not in fields:
            section.drop(old)
            notes.append(f"{place}: {old} is set aside: {SET_ASIDE[old]}.")
        elif old == "optim" and isinstance(value, str) and value in _OPTIMIZERS:
            section.put(old, _OPTIMIZERS[value], place)
            notes.append(f'{place}: optim "{value}" is gone from transformers and is taken as "{_OPTIMIZERS[value]}".')


@functools.cache
def train_args_model() -> type[TrainArgs]:
    """`TrainArgs` with a field for each argument of the installed Trainer, its type and its default."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(TrainingArguments):
        if not item.init or item.name in SILENT:
            continue
        kind, allowed = _field_type(hints[item.name], item.metadata.get("choices"))
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        if isinstance(default, enum.Enum):
            default = default.value
        fields[item.name] = _field(kind, default, allowed)
    return create_model("TrainArgs", __base__=TrainArgs, **(fields | _own_fields(fields)))


def _own_fields(library: dict[str, Any]) -> dict[str, Any]:
    """Fields that take something else here than in the library: narrower, or with another default."""
    own = {
        "output_dir": _field(str, "runs/train", "the path of a folder"),
        "logging_steps": _field(float, 10, "a number; below 1 a share of all steps"),
        "learning_rate": _field(float, 5e-5, "a number of at least 0", ge=0),
        "num_train_epochs": _field(float, 3.0, "a number above 0", gt=0),
        "dataloader_num_workers": _field(int, 0, "a whole number of at least 0", ge=0),
        "resume_from_checkpoint": _field(bool | str | None, None, "true, false, null or the path of a checkpoint"),
        # 5.24 renames these two to activation_*; here they keep one name.
        "gradient_checkpointing": _field(bool | None, False, "true, false or null"),
        "gradient_checkpointing_kwargs": _field(dict | None, None, "an object or null"),
    }
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        own[name] = _field(int, library[name][1].default, "a whole number of at least 1", ge=1)
    return own


def _field(kind: Any, default: Any, allowed: str, **constraints: Any) -> tuple[Any, Any]:
    return kind, Field(default, json_schema_extra={"allowed": allowed}, **constraints)


def _field_type(hint: Any, choices: Any) -> tuple[Any, str]:
    """A pydantic type and the sentence of what it takes, from an annotation of the library."""
    arms = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    plain = [arm for arm in arms if typing.get_origin(arm) is None and isinstance(arm, type)]
    values = [member.value for arm in plain if issubclass(arm, enum.Enum) for member in arm]
    values = values or list(choices or [])
    optional = type(None) in arms
    if values:
        kind: Any = Literal[tuple(values)]
        text = "one of " + ", ".join(values)
        return (kind | None, text + " or null") if optional else (kind, text)
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        dict: "an object",
    }
    texts, kinds = [], []
    for arm in arms:
        origin = typing.get_origin(arm) or arm
        if arm is type(None):
            continue
        if origin is list:
            texts.append("a list of strings")
        elif origin is Literal:
            texts.append(" or ".join(str(value).lower() for value in typing.get_args(arm)))
        elif origin in words:
            texts.append(words[origin])
        else:
            return Any, "what transformers.TrainingArguments takes"
        kinds.append(arm)
    text = " or ".join([*texts, *(["null"] if optional else [])])
    return (typing.Union[(*kinds, *([type(None)] if optional else []))], text)
