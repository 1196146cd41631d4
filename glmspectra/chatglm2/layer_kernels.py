"""Triton kernels for what lies between a layer's matrix products: SwiGLU, and rotary embedding with its split.

Each is bound by memory: it reads its inputs once and writes its outputs once, where torch's operations go through
memory three to five times. Sums and products are in float32 and rounded once. liger-kernel's SwiGLU takes gate and up
as two contiguous tensors, which ChatGLM2's fused `dense_h_to_4h` does not give, and its rotary kernel turns halves of a
head where ChatGLM2 turns neighbours (benchmarks/layer_kernels.py compares them).

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from glmspectra.chatglm2.early_start import wait_for_earlier
from glmspectra.chatglm2.kernels import launching_on

COLUMNS = 1024  # of a row that one program works on


@triton.jit
def _swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    """out[r, c] = silu(gate_up[r, c]) gate_up[r, width + c]; gate_up (rows, 2 width), out (rows, width)."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    gate = tl.load(gate_up + row * 2 * width + c, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + c, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * width + c, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(gate_up, of_out, of_gate_up, width, BLOCK: tl.constexpr):
    """Gradient (rows, 2 width) from that of the output (rows, width); silu'(x) = s (1 + x (1 - s)), s = sigmoid(x)."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < width
    here = row * 2 * width + c
    gate = tl.load(gate_up + here, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + here + width, mask=inside, other=0).to(tl.float32)
    given = tl.load(of_out + row * width + c, mask=inside, other=0).to(tl.float32)
    s = tl.sigmoid(gate)
    of_gate = given * up * s * (1 + gate * (1 - s))
    dtype = of_gate_up.dtype.element_ty
    tl.store(of_gate_up + here, of_gate.to(dtype), mask=inside)
    tl.store(of_gate_up + here + width, (given * gate * s).to(dtype), mask=inside)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate_and_up = gate_and_up.contiguous()
        ctx.save_for_backward(gate_and_up)
        width = gate_and_up.shape[-1] // 2
        out = gate_and_up.new_empty(*gate_and_up.shape[:-1], width)
        with launching_on(out.device):
            _swiglu_kernel[_grid(out)](gate_and_up, out, width, BLOCK=COLUMNS)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gate_and_up,) = ctx.saved_tensors
        given = gradients[0].contiguous()
        found = torch.empty_like(gate_and_up)
        with launching_on(found.device):
            _swiglu_backward_kernel[_grid(given)](gate_and_up, given, found, given.shape[-1], BLOCK=COLUMNS)
        return found


def _grid(rows_of_width: torch.Tensor) -> tuple[int, int]:
    width = rows_of_width.shape[-1]
    return rows_of_width.numel() // width, triton.cdiv(width, COLUMNS)


def swiglu(gate_and_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up: [..., 2 f], gate first, to [..., f]. Only the input is kept for the way back."""
    product: torch.Tensor = _SwiGLU.apply(gate_and_up)
    return product


@triton.jit
def _turn(pairs, cos, sin, BACKWARD: tl.constexpr):
    """Rotate pairs [heads, d] by cos and signed sin [d], as `layers.rotate` does; BACKWARD by the opposite angle."""
    heads: tl.constexpr = pairs.shape[0]
    size: tl.constexpr = pairs.shape[1]
    x0, x1 = tl.split(tl.reshape(pairs, (heads, size // 2, 2)))
    cos0, cos1 = tl.split(tl.reshape(cos, (1, size // 2, 2)))
    sin0, sin1 = tl.split(tl.reshape(sin, (1, size // 2, 2)))
    if BACKWARD:
        sin0, sin1 = sin1, sin0
    return tl.reshape(tl.join(x0 * cos0 + x1 * sin0, x1 * cos1 + x0 * sin1), (heads, size))


@triton.jit
def _rotary_kernel(mixed, cos, sin, out, positions, turned, heads, SIZE: tl.constexpr, HEADS: tl.constexpr):
    """Turn the first `turned` of `heads` heads of a token and copy the others.

    mixed, out (tokens, heads, SIZE); cos, sin (positions, SIZE), used again from their start for every row of tokens.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, SIZE)
    here = token * heads * SIZE + head[:, None] * SIZE + d[None, :]
    mask = head[:, None] < heads
    x = tl.load(mixed + here, mask=mask, other=0)
    angle = (token % positions) * SIZE + d
    y = _turn(x.to(tl.float32), tl.load(cos + angle).to(tl.float32), tl.load(sin + angle).to(tl.float32), False)
    tl.store(out + here, tl.where(head[:, None] < turned, y.to(x.dtype), x), mask=mask)


@triton.jit
def _rotary_backward_kernel(
    of_query, of_key, of_value, cos, sin, of_mixed, positions, length, query_heads, groups,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    SIZE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Gradient of mixed (tokens, query_heads + 2 groups, SIZE) from those of query, key and value.

    Those have strides of their own (batch, head, token; 1 within a head).
    """
    token = tl.program_id(0).to(tl.int64)
    batch, step = token // length, token % length
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    heads = query_heads + 2 * groups
    d = tl.arange(0, SIZE)
    is_query = head < query_heads
    is_value = head >= query_heads + groups
    key_head, value_head = head - query_heads, head - query_heads - groups
    from_query = of_query + batch * q_batch + step * q_token + head * q_head
    from_key = of_key + batch * k_batch + step * k_token + key_head * k_head
    from_value = of_value + batch * v_batch + step * v_token + value_head * v_head
    source = tl.where(is_query, from_query, tl.where(is_value, from_value, from_key))
    mask = (head < heads)[:, None]
    given = tl.load(source[:, None] + d[None, :], mask=mask, other=0)
    angle = (token % positions) * SIZE + d
    y = _turn(given.to(tl.float32), tl.load(cos + angle).to(tl.float32), tl.load(sin + angle).to(tl.float32), True)
    result = tl.where(is_value[:, None], given, y.to(given.dtype))
    tl.store(of_mixed + token * heads * SIZE + head[:, None] * SIZE + d[None, :], result, mask=mask)


class _SplitRotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, query_heads: int, groups: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixed, cos, sin = mixed.contiguous(), cos.contiguous(), sin.contiguous()
        batch, length, heads, size = mixed.shape
        out = torch.empty_like(mixed)
        rows = min(16, triton.next_power_of_2(heads))
        positions = cos.numel() // size
        with launching_on(mixed.device):
            _rotary_kernel[batch * length, triton.cdiv(heads, rows)](
                mixed, cos, sin, out, positions, query_heads + groups, heads, SIZE=size, HEADS=rows
            )
        ctx.save_for_backward(cos, sin)
        ctx.shape, ctx.query_heads, ctx.groups = mixed.shape, query_heads, groups
        query, key, value = out.split([query_heads, groups, groups], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        batch, length, heads, size = ctx.shape
        given = [gradient if gradient.stride(-1) == 1 else gradient.contiguous() for gradient in gradients]
        strides = [gradient.stride()[:3] for gradient in given]
        found = torch.empty(ctx.shape, dtype=given[0].dtype, device=given[0].device)
        rows = min(16, triton.next_power_of_2(heads))
        with launching_on(found.device):
            _rotary_backward_kernel[batch * length, triton.cdiv(heads, rows)](
                *given, cos, sin, found, cos.numel() // size, length, ctx.query_heads, ctx.groups,
                *(stride for three in strides for stride in three), SIZE=size, HEADS=rows,
            )  # fmt: skip
        return found, None, None, None, None


def split_rotated(
    mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, query_heads: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [b, H, s, d], keys and values [b, G, s, d] of `mixed` [b, s, H + 2 G, d], the first two turned by RoPE.

    `cos` and signed `sin` [b or 1, s, 1, d] as of `RotaryEmbedding`; d a power of two.
    """
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _SplitRotated.apply(mixed, cos, sin, query_heads, groups)
    return parts


@triton.jit
def _add_norm_kernel(x, y, weight, total, normed, size, eps, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """`total` = x + y, rounded; `normed` = total / rms(total) * weight. All (rows, size), but weight (size,)."""
    wait_for_earlier(EARLY)
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < size
    here = row * size + c
    dtype = total.dtype.element_ty
    left = tl.load(x + here, mask=inside, other=0).to(tl.float32)
    added = (left + tl.load(y + here, mask=inside, other=0).to(tl.float32)).to(dtype)
    tl.store(total + here, added, mask=inside)
    wide = added.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
    factor = tl.load(weight + c, mask=inside, other=0).to(tl.float32)
    tl.store(normed + here, (wide * scale * factor).to(dtype), mask=inside)


@triton.jit
def _add_norm_backward_kernel(total, weight, of_total, of_normed, of_x, size, eps, BLOCK: tl.constexpr):
    """Gradient of x, and of y, from those of the sum and its norm; all (rows, size), but weight (size,).

    With s = 1 / rms(total), n = total s: of_total + s (w g - n mean(w g n)) for the gradient g of the norm.
    """
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < size
    here = row * size + c
    wide = tl.load(total + here, mask=inside, other=0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
    factor = tl.load(weight + c, mask=inside, other=0).to(tl.float32)
    given = tl.load(of_normed + here, mask=inside, other=0).to(tl.float32) * factor
    unit = wide * scale
    through = scale * (given - unit * (tl.sum(given * unit, axis=0) / size))
    found = tl.load(of_total + here, mask=inside, other=0).to(tl.float32) + through
    tl.store(of_x + here, found.to(of_x.dtype.element_ty), mask=inside)


def launch_add_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float, **options: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum x + y and its RMSNorm, both [..., e] of x's dtype; no gradients. `options`: of the launch."""
    x, y = x.contiguous(), y.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    size = x.shape[-1]
    with launching_on(x.device):
        _add_norm_kernel[(x.numel() // size,)](
            x, y, weight, total, normed, size, eps, BLOCK=triton.next_power_of_2(size), num_warps=8, **options,
        )  # fmt: skip
    return total, normed


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total, normed = launch_add_norm(x, y, weight, eps, EARLY=False)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        total, weight = ctx.saved_tensors
        of_total, of_normed = (gradient.contiguous() for gradient in gradients)
        found = torch.empty_like(total)
        size = total.shape[-1]
        with launching_on(found.device):
            _add_norm_backward_kernel[(total.numel() // size,)](
                total, weight, of_total, of_normed, found, size, ctx.eps,
                BLOCK=triton.next_power_of_2(size), num_warps=8,
            )  # fmt: skip
        return found, found, None, None


def add_and_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum x + y and its RMSNorm, both [..., e] of x's dtype; `weight` is a constant."""
    both: tuple[torch.Tensor, torch.Tensor] = _AddNorm.apply(x, y, weight, eps)
    return both
