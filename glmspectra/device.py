"""What `--device` means for a process, and which floating-point type a device computes in best."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from glmspectra.errors import RequestError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device that `wanted` means for this process, as `device_name` tells it."""
    import torch

    return torch.device(device_name(wanted, local_rank))


def device_name(wanted: str, local_rank: int = 0) -> str:
    """The name of the device that `wanted` means for this process: `cpu` or `cuda:N`.

    "auto" is CUDA where there is a device. "auto" and "cuda" give each process of a host the device of its local
    rank, going round where there are more processes than devices.

    Args:
        wanted: "auto", "cpu", "cuda" or "cuda:N".
        local_rank: Number of this process on its host, from 0.

    Raises:
        RequestError: The device is not there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::([0-9]{1,4}))?", wanted)
    if match is None:
        raise RequestError(f"--device {wanted} is not a device: say auto, cpu, cuda or cuda:N.")
    if wanted == "cpu" or (wanted == "auto" and not _has_driver()):
        return "cpu"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and wanted == "auto":
        return "cpu"
    if count == 0:
        raise RequestError(
            f"--device {wanted}: this machine has no CUDA device that torch can use; leave it at auto or cpu."
        )
    index = int(match[1]) if match[1] else local_rank % count
    if index >= count:
        raise RequestError(f"--device {wanted}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}.")
    return f"cuda:{index}"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype as configurations write it: "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _has_driver() -> bool:
    """Whether torch could find a GPU: without a driver of NVIDIA or AMD it need not be imported to be asked."""
    if "torch" in sys.modules or not sys.platform.startswith("linux"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has it, else float16 on a GPU, float32 on a CPU."""
    import torch

    if device.type != "cuda":
        return torch.float32
    # is_bf16_supported() counts emulation; only compute capability 8 on multiplies bfloat16 in hardware.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
