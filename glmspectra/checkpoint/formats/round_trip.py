"""A weight through a quantised form and back: what NF4, int8 and ChatGLM2's int4 keep of it."""

import torch

from glmspectra.errors import MissingExtraError, RequestError

NF4_BLOCK = 64  # bitsandbytes' and QLoRA's block size
FORMS = ("nf4", "fp4", "int8", "int4")


def quantized_copy(weight: torch.Tensor, form: str) -> torch.Tensor:
    """Q(W): the weight as it is computed with after storing it as `form`; float32, the shape of weight (rows,
    cols).

    nf4, fp4: bitsandbytes, blocks of 64 along the rows, scales not compressed (QLoRA, Dettmers et al. 2023).
    int8: symmetric, one scale a row (LLM.int8(), Dettmers et al. 2022, without its outlier columns).
    int4: ChatGLM2's own form, symmetric, one scale a row, levels -7..7.
    Raises RequestError for another form, MissingExtraError without bitsandbytes for nf4 and fp4.
    """
    if form not in FORMS:
        raise RequestError(f"{form!r} is no quantised form known here: choose one of {', '.join(FORMS)}.")
    weight = weight.to(torch.float32)
    if form in ("nf4", "fp4"):
        return _through_bitsandbytes(weight, form)
    levels = 127 if form == "int8" else 7
    scale = weight.abs().amax(dim=1, keepdim=True) / levels
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / safe).clamp(-levels, levels) * scale


def _through_bitsandbytes(weight: torch.Tensor, form: str) -> torch.Tensor:
    try:
        from bitsandbytes import functional
    except ImportError:
        raise MissingExtraError("bitsandbytes", "qlora", f"quantising to {form}") from None
    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type=form
    )
    return functional.dequantize_4bit(packed, state).to(torch.float32).reshape(weight.shape)


def loftq_base(weight: torch.Tensor, bits: int, rank: int, iterations: int) -> torch.Tensor:
    """The quantised base that LoftQ starts from, dequantised: float32 (rows, cols).

    Li et al. 2023 (arXiv 2310.08659), algorithm 1: Q_t = q(W - L R of the last round), then L R = the best
    rank-`rank` fit of W - Q_t; PEFT keeps the last Q. The steps are deterministic, so the base can be made
    again from W.
    """
    if bits not in (4, 8):
        raise RequestError(f"LoftQ with {bits} bits is not known here: PEFT knows 4 and 8.")
    weight = weight.to(torch.float32)
    target = weight
    for iteration in range(iterations):
        quantized = quantized_copy(target, "nf4" if bits == 4 else "int8")
        if iteration + 1 < iterations:
            u, sigma, vh = torch.linalg.svd(weight - quantized, full_matrices=False)
            target = weight - (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    return quantized
