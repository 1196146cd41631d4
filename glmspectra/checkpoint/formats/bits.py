"""Whole numbers of a few bits inside bytes and words, and the tables of the small floating types."""

from __future__ import annotations

from typing import TYPE_CHECKING

# The 16 values of E2M1 (sign, two bits of exponent, one of mantissa), OCP Microscaling Formats v1.0, section 5.3.3.

if TYPE_CHECKING:
    import torch
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` unsigned numbers of `bits` bits along the last axis of int32 `words`, as int32.

    Number i takes the bits from i * bits of one little-endian string, so that one may begin in a word and end in the
    next (GPTQ's three bits, compressed-tensors' odd widths).
    """
    import torch

    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        numbers = (words.to(torch.int32).unsqueeze(-1) >> shifts) & (2**bits - 1)
        found: torch.Tensor = numbers.flatten(-2)[..., :count]
        return found
    start = torch.arange(count) * bits
    word, offset = start // 32, start % 32
    wide = words.to(torch.int64) & 0xFFFFFFFF
    low = wide[..., word] >> offset
    high = wide[..., (word + 1).clamp(max=words.shape[-1] - 1)] << (32 - offset)
    values: torch.Tensor = ((low | high) & (2**bits - 1)).to(torch.int32)
    return values


def words_for(count: int, bits: int) -> int:
    """Int32 words that `count` numbers of `bits` bits take in one string."""
    return -(-count * bits // 32)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Numbers 0 to 15 from uint8 bytes along the last axis, the low half first; the last axis doubles."""
    import torch

    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2)


def e8m0(exponents: torch.Tensor) -> torch.Tensor:
    """Float32 powers of two from E8M0 exponents: 2^(e - 127), NaN for 255 (OCP Microscaling Formats, section 5.4.1)."""
    import torch

    if exponents.dtype != torch.uint8:
        return exponents.to(torch.float32)  # torch's own float8_e8m0fnu
    powers = torch.ldexp(torch.ones(exponents.shape), exponents.to(torch.int32) - 127)
    return torch.where(exponents == 255, torch.full_like(powers, float("nan")), powers)


def spread(scales: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> torch.Tensor:
    """Scales of blocks of (rows, columns), repeated to `shape` (rows, columns); the last blocks may be cut short."""
    rows, columns = shape
    if scales.shape[0] not in (1, rows):
        scales = scales.repeat_interleave(block[0], dim=0)[:rows]
    if scales.shape[1] not in (1, columns):
        scales = scales.repeat_interleave(block[1], dim=1)[:, :columns]
    return scales
