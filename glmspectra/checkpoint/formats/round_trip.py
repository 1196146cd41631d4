"""A weight through a quantized format and back: what NF4, int8 and ChatGLM2's int4 keep of it."""

from types import ModuleType

import torch

from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, quantize_rows
from glmspectra.errors import MissingExtraError, RequestError

NF4_BLOCK = 64  # bitsandbytes' and QLoRA's block size
QUANTIZATIONS = ("nf4", "fp4", "int8", "int4")


def quantized_copy(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    """Q(W): the weight as it is computed with after it was stored so; float32, the shape of weight (rows, cols).

    nf4, fp4: bitsandbytes, blocks of 64 along the rows, scales not compressed (QLoRA, Dettmers et al. 2023).
    int8, int4: ChatGLM's own format, one scale a row, in the weight's own dtype: the numbers that `chatglm_int` stores.
    A weight that holds NaN or infinity comes back as NaN.
    Raises RequestError for another one, MissingExtraError without bitsandbytes for nf4 and fp4.
    """
    if quantization not in QUANTIZATIONS:
        raise RequestError(f"{quantization!r} is not known here: choose one of {', '.join(QUANTIZATIONS)}.")
    if quantization in ("nf4", "fp4"):
        return _through_bitsandbytes(weight.to(torch.float32), quantization)
    if not bool(torch.isfinite(weight).all()):
        return torch.full(weight.shape, float("nan"), device=weight.device)
    bits, columns = (8 if quantization == "int8" else 4), weight.shape[1]
    even = torch.nn.functional.pad(weight, (0, columns % 2))  # int4 pairs columns; a zero changes no row's scale
    packed, scale = quantize_rows(even, bits)
    return dequantize_rows(packed, scale.float(), bits)[:, :columns]


def _int8_rows(weight: torch.Tensor) -> torch.Tensor:
    """Through int8 by rows as bitsandbytes' Int8Params does it: rounded to float16 first."""
    functional = _bitsandbytes("int8")
    packed, scale, _ = functional.int8_vectorwise_quant(weight.half().contiguous())
    restored: torch.Tensor = functional.int8_vectorwise_dequant(packed, scale)
    return restored.to(torch.float32)


def _bitsandbytes(quantization: str) -> ModuleType:
    try:
        from bitsandbytes import functional
    except ImportError:
        raise MissingExtraError("bitsandbytes", f"quantizing to {quantization}") from None
    return functional


def _through_bitsandbytes(weight: torch.Tensor, quantization: str) -> torch.Tensor:
    functional = _bitsandbytes(quantization)
    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type=quantization
    )
    restored: torch.Tensor = functional.dequantize_4bit(packed, state)
    return restored.to(torch.float32).reshape(weight.shape)


def loftq_base(weight: torch.Tensor, bits: int, rank: int, iterations: int) -> torch.Tensor:
    """The quantized base that LoftQ starts from, dequantized: float32 (rows, cols).

    Li et al. 2023 (arXiv 2310.08659), algorithm 1: Q_t = q(W - L R of the last round), then L R = the best
    rank-`rank` fit of W - Q_t; PEFT keeps the last Q. The steps are deterministic, so the base can be made
    again from W.
    """
    if bits not in (4, 8):
        raise RequestError(f"LoftQ with {bits} bits is not known here: PEFT knows 4 and 8.")
    weight = weight.to(torch.float32)
    target = weight
    for iteration in range(iterations):
        quantized = quantized_copy(target, "nf4") if bits == 4 else _int8_rows(target)
        if iteration + 1 < iterations:
            u, sigma, vh = torch.linalg.svd(weight - quantized, full_matrices=False)
            target = weight - (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    return quantized
