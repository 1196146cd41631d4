"""A 4-bit base by bitsandbytes, with the checks that make it one in fact.

Two silent failures are guarded against. Loaders have left every weight in half precision while reporting
success, so the 4-bit modules are counted. And on CPUs with AVX512_BF16 the first forward in evaluation mode
repacks the weights in place, after which gradients are lost and dequantizing gives wrong numbers, so that
repacking is switched off.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glmspectra.errors import MissingExtraError, TrainingError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from glmspectra.tuning.settings.models import FinetuneArgs


def four_bit_config(finetune: FinetuneArgs, compute: torch.dtype) -> BitsAndBytesConfig:
    """The `BitsAndBytesConfig` of the settings. Raises MissingExtraError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "A 4-bit base")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=finetune.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=finetune.bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=getattr(torch, finetune.bnb_4bit_quant_storage),
    )


def four_bit_modules(model: nn.Module) -> dict[str, Any]:
    """Name -> bitsandbytes' Linear4bit, of all in the model."""
    from bitsandbytes.nn.modules import Linear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def expected_four_bit(model: Any) -> set[str]:
    """Names of the layers that a 4-bit load should have quantized: every linear layer but the output layer.

    Counted on a twin of the model that holds no weights, so that the loaded model does not vouch for itself.
    """
    with torch.device("meta"):
        twin = type(model)(model.config)
    head = twin.get_output_embeddings()
    return {name for name, module in twin.named_modules() if isinstance(module, nn.Linear) and module is not head}


def check_four_bit(model: nn.Module) -> int:
    """Stop unless exactly the expected layers are 4-bit and hold quantized weights; returns their number.

    Raises TrainingError naming the first layer that is not.
    """
    expected, found = expected_four_bit(model), four_bit_modules(model)
    missing = sorted(expected - found.keys())
    bare = sorted(name for name, module in found.items() if getattr(module.weight, "quant_state", None) is None)
    if missing or bare or not expected:
        where = f", {(missing or bare)[0]} among those that are not" if missing or bare else ""
        raise TrainingError(
            f"{len(found) - len(bare)} of {len(expected)} linear layers came out in 4 bits{where}; the base is not "
            "what load_in_4bit asks for, and training it would take the memory of half precision: check the "
            "versions of bitsandbytes and transformers, or set method to lora."
        )
    return len(found)


def keep_layout(model: nn.Module) -> int:
    """Stop bitsandbytes from repacking 4-bit weights for AVX512_BF16 in place; returns the number of layers so marked.

    Its flag is per module and set by what the CPU can do; on a GPU it has no effect. Call right after
    loading.
    """
    modules = four_bit_modules(model)
    for module in modules.values():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    check_layout(model)
    return len(modules)


def check_layout(model: nn.Module) -> None:
    """Raise TrainingError when a 4-bit weight has been repacked, since its gradients would be lost without a sign."""
    for name, module in four_bit_modules(model).items():
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise TrainingError(
                f"{name} was repacked for inference on this CPU, after which gradients through it are lost; load the "
                "model anew and evaluate it only by glmspectra's own functions."
            )
