"""Triton kernels that begin while the one before them ends: Hopper's programmatic dependent launch.

A step of decoding is some 250 kernels of a few microseconds, and between any two of them a GPU idles for two more
while one drains and the next starts. Launched early, a kernel is in place by then and waits for what it needs.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.kernels import INTERPRETED


@triton.jit
def wait_for_earlier(EARLY: tl.constexpr):
    """Let the next kernel start, and wait until all earlier ones have written what they write.

    To be called before anything is read that an earlier kernel writes, and by every kernel that is launched early: the
    next one waits for this one alone.
    """
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@cache
def early(device: torch.device) -> dict[str, bool]:
    """Launch arguments of a kernel that calls `wait_for_earlier(EARLY)`; it starts early where the device can."""
    can = device.type == "cuda" and not INTERPRETED and hasattr(tl.extra.cuda, "gdc_wait")
    if can and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}
