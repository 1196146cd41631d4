"""Where an adapter's factors start, when that needs more than their shapes: EVA looks at data, LoftQ at the base."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.checkpoint import open_checkpoint
from glmspectra.embedded import locate_model

if TYPE_CHECKING:
    from peft import PeftModel

    from glmspectra.tuning.settings.load import Settings


def initialize_from_data(model: PeftModel, settings: Settings, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    """The starts that need more than shapes.

    EVA looks at the inputs of layers over `batches` (dicts of tensors), LoftQ at what quantizing the base lost.
    """
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


def fit_quantization_error(model: PeftModel, settings: Settings) -> None:
    """LoftQ: scale * B A starts as the best approximation of W - Q of the adapter's rank, Q being the 4-bit base.

    Li et al. 2023, https://arxiv.org/abs/2310.08659, algorithm 1 with the base as bitsandbytes quantized it.
    """
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


def changes_base(settings: Settings) -> bool:
    """Whether the factors do not start at a zero update of the base as it is on disk.

    PiSSA and OLoRA take them out of it, LoftQ makes up for its quantization; what training changed can then only be
    with the start kept.
    """
    start = settings.lora.init_lora_weights
    return isinstance(start, str) and start.startswith(("pissa", "olora", "loftq"))
