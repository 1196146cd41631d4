"""From settings to a model that is ready to be trained: base, adapter, precision, checks."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError

import glmspectra.chatglm2  # noqa: F401 - registers the native model with the Auto classes
from glmspectra.checkpoint import open_checkpoint
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, ConfigError, RequestError
from glmspectra.tuning.model import adalora
from glmspectra.tuning.model.four_bit import check_four_bit, four_bit_config, keep_layout
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.model.targets import check_pattern, resolve_names, resolve_targets

# What reading a damaged, incomplete or foreign folder ends in, by the libraries that read it.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass
class Schedule:
    """AdaLoRA's three phases in optimizer steps: warm-up to `tinit`, falling to `total - tfinal`, then
    fixed."""

    total: int
    tinit: int
    tfinal: int


def _load_arguments(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and keyword arguments that the Auto classes take, for a folder or a GGUF file."""
    if path.is_file():
        return path.parent, {"gguf_file": path.name, "local_files_only": True}
    quantised = sorted(path.glob("*.gguf"))
    if quantised and not (path / "config.json").exists():
        if len(quantised) > 1:
            raise RequestError(f"{path}: {len(quantised)} GGUF files lie here; name one of them as model_path.")
        return path, {"gguf_file": quantised[0].name, "local_files_only": True}
    return path, {"local_files_only": True}


def load_config(model_path: str | Path) -> Any:
    """The configuration of the model at a path. Raises CheckpointError when it cannot be read."""
    from transformers import AutoConfig

    folder, arguments = _load_arguments(locate_model(model_path))
    try:
        return AutoConfig.from_pretrained(str(folder), **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its configuration cannot be read: {first_line(error)}") from error


def positions_of(config: Any) -> int | None:
    """Positions that a model was made for, None where its configuration does not say."""
    return next(
        (
            int(value)
            for key in ("max_position_embeddings", "seq_length", "n_positions")
            if (value := getattr(config, key, None))
        ),
        None,
    )


def load_tokenizer(model_path: str | Path) -> Any:
    """The model's own tokenizer, with a padding token. Raises CheckpointError when it cannot be read."""
    from transformers import AutoTokenizer

    folder, arguments = _load_arguments(locate_model(model_path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be read: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    model_path: str | Path,
    precision: Precision,
    device: torch.device,
    quantization: Any = None,
    attention: str = "sdpa",
) -> Any:
    """A causal language model of any family that transformers knows, frozen, in evaluation mode, on one
    device.

    quantization: a `BitsAndBytesConfig` or None. Raises ConfigError when a packed folder is to be quantised again,
    CheckpointError when the folder cannot be loaded or lacks weights of the model, TrainingError when a 4-bit load did
    not quantise what it should.
    """
    from transformers import AutoModelForCausalLM

    folder, arguments = _load_arguments(locate_model(model_path))
    if quantization is not None:
        check_not_packed(load_config(model_path), model_path)
        arguments["quantization_config"] = quantization
        arguments["device_map"] = {"": device}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=precision.weights,
            attn_implementation=attention,
            output_loading_info=True,
            **arguments,
        )
    except LOADING_ERRORS as error:
        if "ignore_mismatched_sizes" in str(error):
            raise CheckpointError(
                f"{folder}: weights have other shapes than its config.json asks for; the two are of different models."
            ) from error
        raise CheckpointError(
            f"{folder}: cannot be loaded as a causal language model: {first_line(error).rstrip('.')}."
        ) from error
    model, report = loaded
    if report["missing_keys"]:  # transformers draws them at random and goes on
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{folder}: {len(missing)} weights of the model that its config.json describes are in none of its files, "
            f"{missing[0]} among them; fetch the folder again, or mend config.json."
        )
    model.requires_grad_(False)
    if "gguf_file" in arguments:
        _forget_gguf(model)
    if quantization is not None:
        keep_layout(model)
        check_four_bit(model)
    else:
        model.to(device)
    return model.eval()


def check_not_packed(config: Any, model_path: str | Path) -> None:
    """Stop before weights that are whole numbers on disk already are quantised again. Raises ConfigError."""
    if bits := getattr(config, "quantization_bit", 0):
        raise ConfigError(
            f"{model_path} is stored in {bits} bits already and is used as it is: set method to lora or adalora "
            "(load_in_4bit false), and leave out --4bit."
        )


def _forget_gguf(model: Any) -> None:
    """A GGUF file's weights are dequantised as they are read. The model is a plain one from then on, but it is still
    marked as quantised by a method that cannot be trained, which the Trainer would refuse."""
    model.is_quantized = False
    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def load_for_settings(settings: Any, precision: Precision, device: torch.device) -> Any:
    """The base model that the settings name, in 4 bits where the method says so."""
    finetune = settings.finetune
    quantization = four_bit_config(finetune, precision.compute) if settings.quantized else None
    return load_base(finetune.model_path, precision, device, quantization, finetune.attn_implementation)


def resolve_schedule(lora: Any, total: int) -> Schedule:
    """AdaLoRA's phases for a run of `total` steps; `tinit` and `tfinal` below 1 are shares of it.

    Raises ConfigError when no step is left in which ranks could fall.
    """

    def steps(value: float) -> int:
        return round(value * total) if isinstance(value, float) and value < 1 else int(value)

    tinit, tfinal = steps(lora.tinit), steps(lora.tfinal)
    if tinit + tfinal >= total:
        raise ConfigError(
            f"AdaLoRA: tinit {tinit} and tfinal {tfinal} leave none of the {total} steps of this run for ranks to "
            "fall in; lower them (lora_args.json), or train for longer."
        )
    return Schedule(total, tinit, tfinal)


def adapter_config(settings: Any, targets: list[str], total_steps: int) -> LoraConfig:
    """PEFT's configuration of the adapter; targets are full module names, so that PEFT has nothing left to
    guess."""
    lora = settings.lora
    shared = {
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
            init_lora_weights=lora.init_lora_weights,
        )
    return LoraConfig(
        **shared,
        r=lora.r,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern={key: _whole(value) for key, value in lora.alpha_pattern.items()},
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        # LoftQ starts from a base that is quantised already: PEFT refits the factors afterwards.
        init_lora_weights=True if lora.init_lora_weights == "loftq" else lora.init_lora_weights,
        eva_config=EvaConfig(rho=lora.eva_rho) if lora.init_lora_weights == "eva" else None,
    )


def add_adapter(model: Any, settings: Any, total_steps: int) -> PeftModel:
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


def initialize_from_data(model: PeftModel, settings: Any, batches: Any) -> None:
    """The starts that need more than shapes: EVA looks at the inputs of layers over `batches` (dicts of
    tensors), LoftQ at what quantising the base lost."""
    if settings.lora.init_lora_weights == "eva":
        from peft import initialize_lora_eva_weights

        def forward(wrapped: Any, inputs: dict[str, torch.Tensor]) -> Any:
            device = next(wrapped.parameters()).device
            return wrapped(**{key: value.to(device) for key, value in inputs.items() if key != "labels"})

        initialize_lora_eva_weights(
            model,
            batches,
            adapter_name=settings.lora.adapter_name,
            forward_fn=forward,
            show_progress_bar=False,
        )
    elif settings.lora.init_lora_weights == "loftq":
        fit_quantization_error(model, settings)


def fit_quantization_error(model: PeftModel, settings: Any) -> None:
    """LoftQ (Li et al. 2023, https://arxiv.org/abs/2310.08659, algorithm 1 with the base as bitsandbytes
    quantised it): scale * B A starts as the best approximation of W - Q of the adapter's rank, Q being the
    4-bit base."""
    from bitsandbytes.functional import dequantize_4bit

    name = settings.lora.adapter_name
    bare: Any = model.base_model.model
    with open_checkpoint(locate_model(settings.finetune.model_path)) as checkpoint, torch.no_grad():
        for module_name, module in bare.named_modules():
            if not (hasattr(module, "lora_A") and name in module.lora_A):
                continue
            base = module.get_base_layer().weight
            original = checkpoint.read(f"{module_name}.weight").to(base.device, torch.float32)
            error = original - dequantize_4bit(base.data, base.quant_state).float()
            u, sigma, vh = torch.linalg.svd(error, full_matrices=False)
            rank = module.r[name]
            root = (sigma[:rank] / module.scaling[name]).sqrt()
            module.lora_A[name].weight.copy_(root[:, None] * vh[:rank])
            module.lora_B[name].weight.copy_(u[:, :rank] * root)
            checkpoint.release(f"{module_name}.weight")


def changes_base(settings: Any) -> bool:
    """Whether the factors do not start at a zero update of the base as it is on disk (PiSSA and OLoRA take
    them out of it, LoftQ makes up for its quantisation), so that what training changed can only be told with
    the start kept."""
    start = settings.lora.init_lora_weights
    return isinstance(start, str) and start.startswith(("pissa", "olora", "loftq"))


def trainable_by_type(model: PeftModel) -> dict[str, int]:
    """Trainable parameters of each matrix type (the last part of the module's name), most first."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.split(".lora_")[0].split(".modules_to_save")[0]
            leaf = module.rpartition(".")[2]
            counts[leaf] = counts.get(leaf, 0) + parameter.numel()
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def flops_parameters(model: Any) -> int:
    """N of "4 N flops a token": weights of the linear layers, the output layer's too; an embedding is only
    looked up."""
    from torch import nn

    total = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            state = getattr(module.weight, "quant_state", None)
            total += module.weight.numel() if state is None else state.shape.numel()
    return total


def enable_checkpointing(model: Any, arguments: dict[str, Any] | None = None) -> None:
    """Recompute each layer's activations in backward. Not re-entrant, so a frozen embedding needs no hook;
    under either name that transformers has for it."""
    arguments = {"use_reentrant": False, **(arguments or {})}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def _whole(value: float) -> float | int:
    """24 for 24.0, as PEFT's files have it."""
    return int(value) if float(value).is_integer() else value


def first_line(error: Exception) -> str:
    """The first line of an error's text, with the one that it announces; its class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__
