"""Bringing a weight to the device where it is measured."""

from __future__ import annotations

import torch

# Two page-locked buffers of this size: one fills from the (perhaps memory-mapped) weight while the other travels.
STAGING_BYTES = 32 * 2**20


def to_device(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The weight on `device` in its stored dtype, shape (rows, cols); the same tensor when it is there already.

    To CUDA it goes in row blocks through page-locked memory, so that host memory beyond the weight stays at
    2 x 32 MiB and copying from a mapped file overlaps the transfer.
    """
    if weight.device == device or (device.index is None and weight.device.type == device.type):
        return weight
    if device.type != "cuda":
        return weight.to(device)
    rows, cols = weight.shape
    target = torch.empty((rows, cols), dtype=weight.dtype, device=device)
    height = max(1, min(rows, STAGING_BYTES // (weight.element_size() * cols)))
    buffers = [torch.empty((height, cols), dtype=weight.dtype, pin_memory=True) for _ in range(2)]
    stream = torch.cuda.current_stream(device)
    arrived = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
    for step, start in enumerate(range(0, rows, height)):
        stop = min(start + height, rows)
        turn = step % 2
        arrived[turn].synchronize()  # an event never recorded is already complete
        staged = buffers[turn][: stop - start]
        staged.copy_(weight[start:stop])
        target[start:stop].copy_(staged, non_blocking=True)
        arrived[turn].record(stream)
    stream.synchronize()  # the buffers are freed on return
    return target
