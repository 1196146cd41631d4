"""CUDA kernels over NF4 weights of bitsandbytes (`nf4.cu`), compiled when they are first asked for.

Triton cannot look numbers up in shared memory nor hand registers to the tensor cores as they lie, which is what makes
them fast (docs/measured.md). NVIDIA's cuda.core compiles and launches them; it comes with `pip install
'glmspectra[cuda]'`. Without it, or on a GPU older than Ampere, bitsandbytes' and Triton's kernels stand in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

THREADS = 256
TILE = 16  # rows of a block of nf4_product_N
RESIDENT = (2, 3)  # blocks of nf4_product_N on a multiprocessor at a time
WIDENING = 4  # those of nf4_widen

Launch = Callable[..., None]


@cache
def nf4_kernels(device: torch.device) -> Nf4Kernels | None:
    """The kernels on a CUDA device, named by its index; None where they cannot be compiled or run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        with torch.cuda.device(device):
            return Nf4Kernels(device)
    except ImportError:
        return None
    except Exception as error:  # of the compiler, the driver: cuda.core's errors have no common class. Slower, as right
        logging.getLogger(__name__).warning("NF4 kernels could not be compiled: %s", error)
        return None


class Nf4Kernels:
    """The compiled kernels, and the tables of codes that they look up."""

    def __init__(self, device: torch.device):
        from bitsandbytes.functional import get_4bit_type
        from cuda.core import Device, Program, ProgramOptions

        Device(device.index).set_current()
        major, minor = torch.cuda.get_device_capability(device)
        source = Path(__file__).with_name("nf4.cu").read_text(encoding="utf-8")
        options = ProgramOptions(std="c++17", arch=f"sm_{major}{minor}")
        compiled = Program(source, code_type="c++", options=options).compile("cubin")
        self._products = {count: compiled.get_kernel(f"nf4_product_{count}") for count in RESIDENT}
        self._widen = compiled.get_kernel("nf4_widen")
        self._multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._device, self._early = device, major >= 9
        # Both numbers of each byte, the earlier column's first: float32 [256, 2], and bfloat16 in a word [256].
        code, byte = get_4bit_type("nf4", device=device), torch.arange(256, device=device)
        self._both = torch.stack([code[byte >> 4], code[byte & 15]], 1).contiguous()
        halves = self._both.to(torch.bfloat16).view(torch.int16).to(torch.int32) & 0xFFFF
        self._words = (halves[:, 0] | halves[:, 1] << 16).contiguous()

    def product(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        scales: torch.Tensor,
        rows: int,
        bias: torch.Tensor | None = None,
        gated: bool = False,
    ) -> torch.Tensor:
        """W x + b, (..., columns) to (..., rows), for one token in bfloat16; or, `gated`, its SwiGLU, (..., rows / 2).

        W is `packed`: uint8 of two codes each; `scales`: float32, one for each 64 numbers; columns a multiple of 64.
        Codes are rounded to bfloat16 before they are multiplied, sums are float32.
        """
        columns = x.shape[-1]
        flat = x.reshape(-1)
        if flat.data_ptr() % 16:
            flat = flat.clone()
        y = x.new_empty(*x.shape[:-1], rows // 2 if gated else rows)
        tiles = -(-rows // TILE)
        resident = next((count for count in RESIDENT if tiles <= count * self._multiprocessors), RESIDENT[-1])
        grid = min(resident * self._multiprocessors, tiles)
        operands = (flat, packed, scales, self._words, bias, y, y.shape[-1], columns, int(gated))
        self._launch(self._products[resident], grid, self._early, *operands)
        return y

    def widened(self, packed: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The weight in bfloat16: code times scale in float32, rounded once, as bitsandbytes does to the bit."""
        out = torch.empty(shape, dtype=torch.bfloat16, device=packed.device)
        words = out.numel() // 8
        grid = min(WIDENING * self._multiprocessors, -(-words // THREADS))
        self._launch(self._widen, grid, False, packed, scales, self._both, out, words)
        return out

    def _launch(self, kernel: Any, grid: int, early: bool, *arguments: Any) -> None:
        from cuda.core import launch

        with torch.cuda.device(self._device):
            handle = torch.cuda.current_stream(self._device).cuda_stream
            passed = (
                value.data_ptr() if isinstance(value, torch.Tensor) else 0 if value is None else np.int32(value)
                for value in arguments
            )
            launch(_stream(handle), _config(grid, early), kernel, *passed)


@cache
def _stream(handle: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)


@cache
def _config(grid: int, early: bool) -> Any:
    """Launched `early`, a kernel begins while the one before it ends, and waits for it where it has to."""
    from cuda.core import LaunchConfig

    try:
        return LaunchConfig(grid=grid, block=THREADS, programmatic_stream_serialization=early)
    except TypeError:  # cuda.core before 1.1
        return LaunchConfig(grid=grid, block=THREADS)
