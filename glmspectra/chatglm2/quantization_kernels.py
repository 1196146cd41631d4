"""A Triton kernel that widens packed int4/int8 weights to half or single precision.

Two int4 numbers of a row share a byte, the even column in its high half. Under TRITON_INTERPRET=1 the same code runs on
a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.kernels import launching_on


@triton.jit
def _high(byte):
    """The signed number in the high half of a byte: int8 shifts right arithmetically."""
    return byte >> 4


@triton.jit
def _low(byte):
    """The signed number in the low half of a byte: moved up, then down."""
    return (byte << 4).to(tl.int8) >> 4


@triton.jit
def _widen_kernel(packed, scale, weight, width, BITS: tl.constexpr, STEP: tl.constexpr):
    """weight[r, c] = scale[r] * q[r, c], rounded once; one program a row and STEP packed bytes."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = c < width
    dtype = weight.dtype.element_ty
    s = tl.load(scale + r).to(tl.float32)
    q = tl.load(packed + r * width + c, mask=inside, other=0)
    if BITS == 4:
        pair = tl.interleave((_high(q).to(tl.float32) * s).to(dtype), (_low(q).to(tl.float32) * s).to(dtype))
        d = tl.program_id(1) * 2 * STEP + tl.arange(0, 2 * STEP)
        tl.store(weight + r * 2 * width + d, pair, mask=d < 2 * width)
    else:
        tl.store(weight + r * width + c, (q.to(tl.float32) * s).to(dtype), mask=inside)


def dequantize(packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight of `dtype`, (rows, columns). Products are rounded once, as the torch path's are."""
    rows, width = packed.shape
    weight = torch.empty(rows, width * 8 // bits, dtype=dtype, device=packed.device)
    step = 1024
    with launching_on(packed.device):
        _widen_kernel[(rows, triton.cdiv(width, step))](packed, scale, weight, width, BITS=bits, STEP=step)
    return weight
