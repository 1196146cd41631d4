"""Which floating-point types a run uses, decided once from the settings and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from glmspectra.errors import RequestError


@dataclass(frozen=True)
class Precision:
    """weights: of what is not quantised. compute: of products with a 4-bit base. autocast: bf16, fp16 (with
    loss scaling) or None. Adapters are float32 always: bfloat16 has three digits, too few to add an update of
    2e-5 to, and float16 gradients cannot be unscaled."""

    weights: torch.dtype
    compute: torch.dtype
    autocast: str | None

    def trainer_arguments(self) -> dict[str, bool]:
        return {"bf16": self.autocast == "bf16", "fp16": self.autocast == "fp16"}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `--device auto|cpu|cuda|cuda:N` means for this process. Raises RequestError when it is
    not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"--device {name}: write auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise RequestError(
                f"--device {name}: this machine has {count} CUDA devices; write cpu, or a number below {count}."
            )
        return torch.device("cuda", index)
    return device


def choose_precision(finetune: Any, train: Any, quantized: bool, device: torch.device) -> Precision:
    """Resolve dtype, bnb_4bit_compute_dtype, bf16 and fp16 of the settings.

    What is given counts. "auto" means bfloat16 on GPUs that have it (Ampere on), float16 with loss scaling on
    older ones, float32 on a CPU; a compute type that is given decides the other weights too, so that the
    original study's files (float32) mean what they meant.
    """
    autos = {"bf16": torch.bfloat16, "fp16": torch.float16}
    asked = next((autos[key] for key in ("bf16", "fp16") if getattr(train, key)), None)
    automatic = asked or best_dtype(device)
    weights = _dtype(finetune.dtype)
    compute = _dtype(finetune.bnb_4bit_compute_dtype) if quantized else None
    weights = weights or asked or compute or automatic
    compute = compute or (asked or weights)
    given = train.given()
    if asked is not None:
        autocast = "bf16" if asked is torch.bfloat16 else "fp16"
    elif weights is torch.bfloat16 and given.get("bf16") is None:
        autocast = "bf16"
    elif weights is torch.float16 and device.type == "cuda" and given.get("fp16") is None:
        autocast = "fp16"
    else:
        autocast = None
    return Precision(weights, compute, autocast)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has it, else float16 on a GPU, float32 on a CPU."""
    if device.type != "cuda":
        return torch.float32
    # is_bf16_supported() counts emulation; only compute capability 8 on multiplies bfloat16 in hardware.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _dtype(name: str) -> torch.dtype | None:
    return None if name == "auto" else getattr(torch, name)
