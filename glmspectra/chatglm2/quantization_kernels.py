"""Triton kernels over packed int4/int8 weights: product with few tokens, product with one, widening.

Decoding one token at a time is bound by memory: each weight is read once and used once. The kernels read the
packed bytes, widen them in registers, and multiply by the row's scale after the sum, which is in float32.
(The torch path rounds scale times whole number to the model's precision first; the two agree within that
rounding.)

Two int4 numbers of a row share a byte, the even column in its high half. Inputs are therefore read as even
and odd columns apart, and no number is moved in registers.

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Rows a program, packed bytes a step, warps, steps in flight. Tuned once for each shape of weight, when it is
# first met; the interpreter has no clock to tune by.
_VECTOR_SHAPES = [
    (4, 512, 4, 3),
    (8, 512, 4, 3),
    (8, 256, 4, 4),
    (16, 256, 4, 3),
    (4, 1024, 4, 3),
    (16, 512, 8, 3),
]
_MATRIX_SHAPES = [(32, 64, 4, 4), (64, 64, 4, 4), (32, 128, 4, 3), (64, 128, 4, 3), (16, 128, 4, 4), (128, 64, 8, 3)]


def _configs(shapes: list[tuple[int, int, int, int]]) -> list[triton.Config]:
    if INTERPRETED:
        shapes = shapes[:1]
    return [
        triton.Config({"ROWS": rows, "STEP": step}, num_warps=warps, num_stages=stages)
        for rows, step, warps, stages in shapes
    ]


def _tuned(shapes: list[tuple[int, int, int, int]], key: list[str]) -> Any:
    return triton.autotune(configs=_configs(shapes), key=key)


@triton.jit
def _high(byte):
    """The signed number in the high half of a byte: int8 shifts right arithmetically."""
    return byte >> 4


@triton.jit
def _low(byte):
    """The signed number in the low half of a byte: moved up, then down."""
    return (byte << 4).to(tl.int8) >> 4


@_tuned(_VECTOR_SHAPES, ["rows", "width", "BITS"])
@triton.jit
def _vector_kernel(x, packed, scale, y, rows, width, BITS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """y[r] = scale[r] * sum_c q[r, c] x[c].

    x (columns,), packed (rows, width) int8, scale (rows,), y (rows,).
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = r < rows
    base = packed + r.to(tl.int64)[:, None] * width
    total = tl.zeros((ROWS, STEP), dtype=tl.float32)
    for start in range(0, width, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < width
        q = tl.load(base + c[None, :], mask=in_rows[:, None] & inside[None, :], other=0, eviction_policy="evict_first")
        if BITS == 4:
            even = tl.load(x + 2 * c, mask=inside, other=0).to(tl.float32)
            odd = tl.load(x + 2 * c + 1, mask=inside, other=0).to(tl.float32)
            total += _high(q).to(tl.float32) * even[None, :] + _low(q).to(tl.float32) * odd[None, :]
        else:
            total += q.to(tl.float32) * tl.load(x + c, mask=inside, other=0).to(tl.float32)[None, :]
    result = tl.sum(total, axis=1) * tl.load(scale + r, mask=in_rows, other=0).to(tl.float32)
    tl.store(y + r, result.to(y.dtype.element_ty), mask=in_rows)


@_tuned(_MATRIX_SHAPES, ["rows", "width", "TOKENS", "BITS"])
@triton.jit
def _matrix_kernel(
    x, packed, scale, y, tokens, rows, width,
    TOKENS: tl.constexpr, BITS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """y[t, r] = scale[r] * sum_c x[t, c] q[r, c] for up to TOKENS tokens (a power of two, 16 at least).

    x (tokens, columns), packed (rows, width) int8, scale (rows,), y (tokens, rows), all contiguous. Whole
    numbers up to 127 are exact in fp16 and bf16, so only the inputs' own precision counts.
    """
    t = tl.arange(0, TOKENS)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_tokens, in_rows = t < tokens, r < rows
    kind = x.dtype.element_ty
    columns = width * 8 // BITS
    left = x + t[:, None] * columns
    right = packed + r.to(tl.int64)[None, :] * width
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for start in range(0, width, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < width
        q = tl.load(right + c[:, None], mask=inside[:, None] & in_rows[None, :], other=0)
        mask = in_tokens[:, None] & inside[None, :]
        if BITS == 4:
            even = tl.load(left + 2 * c[None, :], mask=mask, other=0)
            odd = tl.load(left + 2 * c[None, :] + 1, mask=mask, other=0)
            total = tl.dot(even, _high(q).to(kind), total, input_precision=PRECISION)
            total = tl.dot(odd, _low(q).to(kind), total, input_precision=PRECISION)
        else:
            total = tl.dot(tl.load(left + c[None, :], mask=mask, other=0), q.to(kind), total, input_precision=PRECISION)
    total *= tl.load(scale + r, mask=in_rows, other=0).to(tl.float32)[None, :]
    where = y + t[:, None] * rows + r[None, :]
    tl.store(where, total.to(y.dtype.element_ty), mask=in_tokens[:, None] & in_rows[None, :])


@triton.jit
def _widen_kernel(packed, scale, weight, width, BITS: tl.constexpr, STEP: tl.constexpr):
    """weight[r, c] = scale[r] * q[r, c], rounded once; one program a row and STEP packed bytes."""
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * STEP + tl.arange(0, STEP)
    inside = c < width
    kind = weight.dtype.element_ty
    s = tl.load(scale + r).to(tl.float32)
    q = tl.load(packed + r * width + c, mask=inside, other=0)
    if BITS == 4:
        pair = tl.interleave((_high(q).to(tl.float32) * s).to(kind), (_low(q).to(tl.float32) * s).to(kind))
        d = tl.program_id(1) * 2 * STEP + tl.arange(0, 2 * STEP)
        tl.store(weight + r * 2 * width + d, pair, mask=d < 2 * width)
    else:
        tl.store(weight + r * width + c, (q.to(tl.float32) * s).to(kind), mask=inside)


def product(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """x W^T: (..., columns) to (..., rows), of x's dtype, without widening W in memory.

    x float16, bfloat16 or float32, at most some dozens of rows; packed int8 (rows, columns * bits / 8) and
    scale (rows,) contiguous, on x's device.
    """
    rows, width = packed.shape
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.empty(flat.shape[0], rows, dtype=x.dtype, device=x.device)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(rows, meta["ROWS"]),)

    with _on(x.device):
        if flat.shape[0] == 1:
            _vector_kernel[grid](flat, packed, scale, y, rows, width, BITS=bits)
        else:
            tokens = max(16, triton.next_power_of_2(flat.shape[0]))
            precision = "ieee" if x.dtype == torch.float32 else "tf32"
            _matrix_kernel[grid](
                flat, packed, scale, y, flat.shape[0], rows, width, TOKENS=tokens, BITS=bits, PRECISION=precision
            )
    return y.reshape(*x.shape[:-1], rows)


def dequantize(packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight of `dtype`, (rows, columns). Products are rounded once, as the torch path's are."""
    rows, width = packed.shape
    weight = torch.empty(rows, width * 8 // bits, dtype=dtype, device=packed.device)
    step = 1024
    with _on(packed.device):
        _widen_kernel[(rows, triton.cdiv(width, step))](packed, scale, weight, width, BITS=bits, STEP=step)
    return weight


def _on(device: torch.device) -> Any:
    """Triton launches on the current device, which must be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
