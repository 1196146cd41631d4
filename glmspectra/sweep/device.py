"""Which device a process computes on."""

import re

import torch

from glmspectra.errors import RequestError


def choose_device(wanted: str, local_rank: int = 0) -> str:
    """'cpu' or 'cuda:N' for `wanted` ('auto', 'cpu', 'cuda' or 'cuda:N').

    'auto' is CUDA where there is a device. 'auto' and 'cuda' give each process of a host the device of its
    local rank, going round where there are more processes than devices. Raises RequestError for a device that
    is not there.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    match = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?", wanted)
    if match is None or wanted.startswith("auto:"):
        raise RequestError(f"--device {wanted} is not a device: say auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise RequestError(
            f"--device {wanted}: this machine has no CUDA device that torch can use; leave it at auto or cpu."
        )
    index = int(match[1]) if match[1] else local_rank % count
    if index >= count:
        raise RequestError(f"--device {wanted}: there are {count} CUDA devices here, cuda:0 to cuda:{count - 1}.")
    return f"cuda:{index}"
