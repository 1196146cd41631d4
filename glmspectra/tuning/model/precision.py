"""Which floating-point types a run uses, decided once from the settings and the device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glmspectra.device import best_dtype

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings


@dataclass(frozen=True)
class Precision:
    """The number types of a run.

    Adapters are float32 always: bfloat16 has three digits, too few to add an update of 2e-5 to, and float16 gradients
    cannot be unscaled.

    With a bfloat16 base there is no autocast where it can be helped: on a GPU it computes each norm in
    float32 and keeps its input and output so. The base computes in its own type, and adapters follow it
    (`adapter_products.py`).

    Attributes:
        weights: of what is not quantized.
        compute: of products with a 4-bit base.
        autocast: bf16, fp16 (with loss scaling) or None.
    """

    weights: torch.dtype
    compute: torch.dtype
    autocast: str | None

    def trainer_arguments(self) -> dict[str, bool]:
        return {"bf16": self.autocast == "bf16", "fp16": self.autocast == "fp16"}

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast as the run uses it, for a forward outside of the Trainer."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.autocast or "")
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_precision(settings: Settings, device: torch.device) -> Precision:
    """Resolve dtype, bnb_4bit_compute_dtype, bf16 and fp16 of the settings.

    What is given counts. "auto" means bfloat16 on GPUs that have it (Ampere on), float16 with loss scaling on
    older ones, float32 on a CPU; a compute type that is given decides the other weights too, so that the
    original study's files (float32) mean what they meant.
    """
    finetune, train, lora = settings.finetune, settings.train, settings.lora
    asked = torch.bfloat16 if train.bf16 else torch.float16 if train.fp16 else None
    compute = _dtype(finetune.bnb_4bit_compute_dtype) if settings.quantized else None
    weights = _dtype(finetune.dtype) or asked or compute or best_dtype(device)
    compute = compute or asked or weights
    refused = {key for key in ("bf16", "fp16") if train.given().get(key) is False}
    half = asked or (weights if weights is not torch.float32 else None)
    if half is torch.float16 and "fp16" not in refused and (asked is not None or device.type == "cuda"):
        return Precision(weights, compute, "fp16")
    # Float32 parameters inside the base's own layers (biases, whole modules, DoRA's norms) need autocast's
    # casts.
    mixed = weights is not half or lora.bias != "none" or bool(lora.modules_to_save) or lora.use_dora
    if half is torch.bfloat16 and "bf16" not in refused and mixed:
        return Precision(weights, compute, "bf16")
    return Precision(weights, compute, None)


def _dtype(name: str) -> torch.dtype | None:
    return None if name == "auto" else getattr(torch, name)
