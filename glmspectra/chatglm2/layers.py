"""The layers of ChatGLM2 that transformers has no ready class for: RoPE on interleaved pairs, RMSNorm, SwiGLU."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.kernels import decode_kernels, layer_kernels

LAST_NORM = "final_layernorm"  # ChatGLM2's name of the norm after the last block


class RotaryEmbedding(nn.Module):
    """cos and sin of the RoPE angles, for heads of `kv_channels` of which the first half is turned.

    `inv_freq` is here because the published checkpoint holds it: it is loaded, saved and never read, since a
    cast of the model would round it. The frequencies in use are float32, one copy a device.
    """

    inv_freq: torch.Tensor

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.turned = config.kv_channels // 2  # channels of a head that RoPE turns
        self.kv_channels = config.kv_channels
        self.theta = config.rope_theta
        self.position_divisor = config.rope_position_divisor
        self.register_buffer("inv_freq", self.frequencies())
        self._signed: dict[torch.device, torch.Tensor] = {}

    def frequencies(self, device: torch.device | None = None) -> torch.Tensor:
        """theta^(-2i / turned) of each pair i: float32 [turned / 2], in radians a position."""
        exponents = torch.arange(0, self.turned, 2, dtype=torch.float32, device=device) / self.turned
        return 1.0 / (self.theta**exponents)

    def _signed_frequencies(self, device: torch.device) -> torch.Tensor:
        """(-f0, f0, -f1, f1, ..., 0, 0, ...): float32 [d].

        With them cos(angle) and sin(angle) are what each channel and its partner in the pair are multiplied
        by, and the second half of a head, at frequency 0, is multiplied by 1 and 0: one rule for the whole
        head.
        """
        if device not in self._signed:
            pairs = self.frequencies(device) / self.position_divisor
            signed = torch.zeros(self.kv_channels, dtype=torch.float32, device=device)
            signed[0 : self.turned : 2] = -pairs
            signed[1 : self.turned : 2] = pairs
            self._signed[device] = signed
        return self._signed[device]

    def forward(self, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """`position_ids` [b or 1, s] to cos and signed sin of float32 angles, both [b or 1, s, 1, d] in `dtype`."""
        angles = position_ids[:, :, None, None].float() * self._signed_frequencies(position_ids.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn interleaved pairs: `heads` [b, s, any, d] by the `cos` and signed `sin` [b, s, 1, d] of the angles.

    (x0, x1) becomes (x0 cos - x1 sin, x1 cos + x0 sin), without a fused multiply-add: float32 results are then the
    published code's to the bit.
    """
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    partners = pairs.flip(-1).view(heads.shape)  # channels 1, 0, 3, 2, ...: the other one of each pair
    return heads * cos + partners * sin


def split_rotated(
    mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, query_heads: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [b, H, s, d], keys and values [b, G, s, d] of `mixed` [b, s, H + 2 G, d], the first two turned."""
    kernels = layer_kernels(mixed)
    if kernels is not None and is_power_of_two(mixed.shape[-1]):
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = kernels.split_rotated(
            mixed, cos, sin, query_heads, groups
        )
        return parts
    turned = rotate(mixed[:, :, : query_heads + groups], cos, sin)  # queries and keys in one go
    query, key = turned.split([query_heads, groups], dim=2)
    value = mixed[:, :, query_heads + groups :].clone()  # a view would keep the whole of `mixed` alive
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def is_power_of_two(size: int) -> bool:
    """Whether Triton can hold a row of this size as one block."""
    return size > 0 and size & (size - 1) == 0


class RMSNorm(nn.Module):
    """x / rms(x) * weight, [..., e] to [..., e]; in float32 and rounded once, as in the published code."""

    # A sum and its norm, where the block that made the sum has made both by one kernel.
    made: tuple[torch.Tensor, torch.Tensor] | None = None

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.made is not None:
            (total, normed), self.made = self.made, None
            if total is hidden_states:
                return normed
        if hidden_states.dtype == self.weight.dtype:  # one kernel, float32 inside
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
        normed = F.rms_norm(hidden_states.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(hidden_states.dtype)

    def after_adding(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum x + y and its norm, both [..., e]."""
        if x.dtype == y.dtype == self.weight.dtype and not (self.weight.requires_grad and torch.is_grad_enabled()):
            kernels = decode_kernels(x) if not y.requires_grad else layer_kernels(x)
            if kernels is not None:
                both: tuple[torch.Tensor, torch.Tensor] = kernels.add_and_norm(x, y, self.weight, self.eps)
                return both
        total = x + y
        return total, self(total)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def norms_after_blocks(model: nn.Module) -> list[tuple[nn.Module, RMSNorm]]:
    """Each block of ChatGLM2 with the norm that its output goes through next; none of another model.

    Named as a block's `following`, the norm is made with the sum before it, by one kernel.
    """
    blocks: list[Any] = [module for module in model.modules() if hasattr(type(module), "following")]
    norms = [block.input_layernorm for block in blocks[1:]]
    norms += [module for name, module in model.named_modules() if name.endswith(LAST_NORM)]
    return list(zip(blocks, norms, strict=True)) if len(norms) == len(blocks) else []


def swiglu(gate_and_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202): [..., 2 f], gate first, to [..., f]."""
    kernels = layer_kernels(gate_and_up)
    if kernels is not None:
        fused: torch.Tensor = kernels.swiglu(gate_and_up)
        return fused
    if gate_and_up.requires_grad and torch.is_grad_enabled():
        kept: torch.Tensor = _SwiGLU.apply(gate_and_up)
        return kept
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone for the way back.

    Left to autograd, silu(gate) is kept too, which is half as much again: 3 GiB for 8 rows of 512 tokens in
    ChatGLM2-6B.
    """

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        of_gate = torch.ops.aten.silu_backward(gradients[0] * up, gate)
        return torch.cat([of_gate, gradients[0] * F.silu(gate)], dim=-1)
