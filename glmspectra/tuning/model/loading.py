"""A model's configuration, tokenizer and weights from a local folder or GGUF file, for training and for answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import glmspectra.chatglm2  # noqa: F401 - registers the native model with the Auto classes
from glmspectra.checkpoint.foreign import read_by_library
from glmspectra.checkpoint.loadable import check_loadable, check_taken
from glmspectra.embedded import locate_model
from glmspectra.errors import CheckpointError, ConfigError, RequestError
from glmspectra.json_files import read_object
from glmspectra.tuning.model.four_bit import check_four_bit, four_bit_config, keep_layout

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig

    from glmspectra.tuning.model.precision import Precision
    from glmspectra.tuning.settings.load import Settings


def _load_arguments(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and keyword arguments that the Auto classes take, for a folder or a GGUF file."""
    if path.is_file():
        return path.parent, {"gguf_file": path.name, "local_files_only": True}
    quantized = sorted(path.glob("*.gguf"))
    if quantized and not (path / "config.json").exists():
        if len(quantized) > 1:
            raise RequestError(f"{path}: {len(quantized)} GGUF files lie here; name one of them as model_path.")
        return path, {"gguf_file": quantized[0].name, "local_files_only": True}
    return path, {"local_files_only": True}


def load_config(model_path: str | Path) -> Any:
    """The configuration of the model at a path. Raises CheckpointError when it cannot be read."""
    from transformers import AutoConfig

    folder, arguments = _load_arguments(locate_model(model_path))
    with read_by_library(folder, "its configuration cannot be read"):
        if (folder / "config.json").is_file():
            read_object(folder / "config.json", allow_nan=True)  # bounds what transformers would take
        return AutoConfig.from_pretrained(str(folder), **arguments)


def positions_of(config: PreTrainedConfig) -> int | None:
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
    with read_by_library(folder, "its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **arguments)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    model_path: str | Path,
    precision: Precision,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
    attention: str = "sdpa",
) -> Any:
    """A causal language model of any family that transformers knows, frozen, in evaluation mode, on one device.

    quantization: a `BitsAndBytesConfig` or None. Raises ConfigError when a packed folder is to be quantized again,
    CheckpointError when the folder cannot be loaded, or its tensors are not those of the model, TrainingError when a
    4-bit load did not quantize what it should.
    """
    from transformers import AutoModelForCausalLM

    folder, arguments = _load_arguments(locate_model(model_path))
    check_loadable(folder / arguments["gguf_file"] if "gguf_file" in arguments else folder)
    if quantization is not None:
        check_not_packed(load_config(model_path), model_path)
        arguments["quantization_config"] = quantization
        arguments["device_map"] = {"": device}
    with read_by_library(folder, "cannot be loaded as a causal language model"):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=precision.weights,
                attn_implementation=attention,
                output_loading_info=True,
                **arguments,
            )
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise CheckpointError(
                f"{folder}: weights have other shapes than its config.json asks for; the two are of different models."
            ) from error
    model, report = loaded
    check_taken(folder, report["unexpected_keys"], report["missing_keys"])
    model.requires_grad_(False)
    if "gguf_file" in arguments:
        _forget_gguf(model)
    if quantization is not None:
        keep_layout(model)
        check_four_bit(model)
    else:
        model.to(device)
    return model.eval()


def check_not_packed(config: PreTrainedConfig, model_path: str | Path) -> None:
    """Stop before weights that are whole numbers on disk already are quantized again. Raises ConfigError."""
    if bits := getattr(config, "quantization_bit", 0):
        raise ConfigError(
            f"{model_path} is stored in {bits} bits already and is used as it is: set method to lora or adalora "
            "(load_in_4bit false), and leave out --4bit."
        )


def _forget_gguf(model: Any) -> None:
    """A GGUF file's weights are dequantized as they are read.

    The model is a plain one from then on, but it is still marked as quantized by a method that cannot be trained, which
    the Trainer would refuse.
    """
    model.is_quantized = False
    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def load_for_settings(settings: Settings, precision: Precision, device: torch.device) -> Any:
    """The base model that the settings name, in 4 bits where the method says so."""
    finetune = settings.finetune
    quantization = four_bit_config(finetune, precision.compute) if settings.quantized else None
    return load_base(finetune.model_path, precision, device, quantization, finetune.attn_implementation)
