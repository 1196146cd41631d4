"""What `--device` means for a process, and which floating-point type a device computes in best."""

import re

import torch

from glmspectra.errors import RequestError


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device that `wanted` means for this process.

    "auto" is CUDA where there is a device. "auto" and "cuda" give each process of a host the device of its local
    rank, going round where there are more processes than devices.

    Args:
        wanted: "auto", "cpu", "cuda" or "cuda:N".
        local_rank: Number of this process on its host, from 0.

    Raises:
        RequestError: The device is not there.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    match = re.fullmatch(r"auto|cuda(?::([0-9]{1,4}))?", wanted)
    if match is None:
        raise RequestError(f"--device {wanted} is not a device: say auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise RequestError(
            f"--device {wanted}: this machine has no CUDA device that torch can use; leave it at auto or cpu."
        )
    index = int(match[1]) if match[1] else local_rank % count
    if index >= count:
        raise RequestError(f"--device {wanted}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", index)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has it, else float16 on a GPU, float32 on a CPU."""
    if device.type != "cuda":
        return torch.float32
    # is_bf16_supported() counts emulation; only compute capability 8 on multiplies bfloat16 in hardware.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
