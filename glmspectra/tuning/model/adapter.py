"""The adapter of the settings on a loaded base: PEFT's configuration, its layers, what of it is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraConfig, EvaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from glmspectra.errors import ConfigError
from glmspectra.tuning.model import adalora
from glmspectra.tuning.model.schedule import resolve_schedule
from glmspectra.tuning.model.targets import check_pattern, resolve_names, resolve_targets

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings


def adapter_config(settings: Settings, targets: list[str], total_steps: int) -> LoraConfig:
    """PEFT's configuration of the adapter; targets are full module names, so that PEFT has nothing left to guess."""
    lora = settings.lora
    start: Any = lora.init_lora_weights  # PEFT's type names no pissa_niter_N but as an example
    shared: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "target_modules": targets,
        "lora_alpha": _whole(lora.lora_alpha),
        "lora_dropout": lora.lora_dropout,
        "bias": lora.bias,
        "modules_to_save": lora.modules_to_save,
        "base_model_name_or_path": str(settings.finetune.model_path),
    }
    if settings.adaptive:
        schedule = resolve_schedule(lora, total_steps)
        return AdaLoraConfig(
            **shared,
            init_r=settings.init_r,
            target_r=settings.target_r,
            tinit=schedule.tinit,
            tfinal=schedule.tfinal,
            total_step=schedule.total,
            deltaT=lora.delta_t,
            beta1=lora.beta1,
            beta2=lora.beta2,
            orth_reg_weight=lora.orth_reg_weight,
            init_lora_weights=start,
        )
    return LoraConfig(
        **shared,
        r=lora.r,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern={key: _whole(value) for key, value in lora.alpha_pattern.items()},
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        # LoftQ starts from a base that is quantized already: PEFT refits the factors afterwards.
        init_lora_weights=True if start == "loftq" else start,
        eva_config=EvaConfig(rho=lora.eva_rho) if start == "eva" else None,
    )


def add_adapter(model: PreTrainedModel, settings: Settings, total_steps: int) -> PeftModel:
    """Put the adapter of the settings on a loaded base.

    Every name in target_modules, rank_pattern, alpha_pattern and start_ranks must match. The adapter's
    parameters are float32 whatever the base is. Raises ConfigError.
    """
    lora = settings.lora
    targets = resolve_targets(model, lora)
    check_pattern("rank_pattern", lora.rank_pattern, targets)
    check_pattern("alpha_pattern", lora.alpha_pattern, targets)
    for name in lora.modules_to_save or []:
        if not any(key == name or key.endswith(f".{name}") for key, _ in model.named_modules()):
            raise ConfigError(f"modules_to_save names {name}, and the model has no such module.")
    start_ranks = resolve_names("start_ranks", lora.start_ranks, targets) if settings.adaptive else {}
    config = adapter_config(settings, targets, total_steps)
    config.base_model_name_or_path = model.name_or_path  # what PEFT writes in any case, with a warning when it differs
    if isinstance(config, AdaLoraConfig):
        wrapped = adalora.add_adalora(model, config, lora.adapter_name, start_ranks)
    else:
        wrapped = get_peft_model(model, config, adapter_name=lora.adapter_name)
    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    return wrapped


def trainable_by_type(model: PeftModel) -> dict[str, int]:
    """Trainable parameters of each matrix type (the last part of the module's name), most first."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.split(".lora_")[0].split(".modules_to_save")[0]
            leaf = module.rpartition(".")[2]
            counts[leaf] = counts.get(leaf, 0) + parameter.numel()
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _whole(value: float) -> float | int:
    """24 for 24.0, as PEFT's files have it."""
    return int(value) if float(value).is_integer() else value
