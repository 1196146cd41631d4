"""Tokens a second (all, and those that are not padding), the share of the device's peak in use, peak memory."""

from __future__ import annotations

import torch
from torch import nn

# Dense bfloat16/float16 tensor-core peak, flop/s, from NVIDIA's data sheets; the first name contained in the
# device's counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak of a known GPU in half precision, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def flops_parameters(model: nn.Module) -> int:
    """N of "4 N flops a token": weights of the linear layers, the output layer's too.

    An embedding is only looked up.
    """
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            state = getattr(module.weight, "quant_state", None)
            total += module.weight.numel() if state is None else state.shape.numel()
    return total


class Throughput:
    """Counts tokens between two logs.

    parameters: N of "4 N flops a token" (2 N forward, 2 N for the gradient of activations; frozen weights
    need no gradient, and what checkpointing computes again is no model flop). Utilisation is given for half
    precision only.
    """

    def __init__(self, device: torch.device, parameters: int, half: bool, processes: int = 1):
        self.device = device
        self.parameters = parameters
        self.peak = peak_flops(device) if half else None
        self.processes = processes
        self.real = torch.zeros((), dtype=torch.int64, device=device)
        self.all = 0
        self.since: float | None = None

    def start(self, now: float) -> None:
        """Begin to count at time `now` (seconds)."""
        self.since, self.all = now, 0
        self.real.zero_()

    def count(self, real: torch.Tensor | None, input_ids: torch.Tensor) -> None:
        """Add a micro-batch: `real` tokens (int64 [1]) of `input_ids` [b, s]; no synchronisation."""
        self.all += input_ids.numel()
        self.real += input_ids.numel() if real is None else real.sum()

    def measure(self, now: float) -> dict[str, float]:
        """Rates since the last measurement, over all processes (those of this one times their number)."""
        if self.since is None:
            self.start(now)
            return {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = now - self.since
        if seconds <= 0 or self.all == 0:
            return {}
        rates = {
            "tokens_per_second": float(self.real) / seconds * self.processes,
            "padded_tokens_per_second": self.all / seconds * self.processes,
        }
        if self.peak:
            rates["mfu"] = 4 * self.parameters * self.all / seconds / self.peak
        if self.device.type == "cuda":
            rates["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.start(now)
        return rates
