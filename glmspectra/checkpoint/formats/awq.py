"""AWQ's packed words of four bits: `X.qweight`, `X.qzeros`, `X.scales`, by the rule that `version` names.

W[o, i] = scales[g, o] * (q[o, i] - z[g, o]) with groups g of equal size of the inputs i. AutoAWQ's versions:

- gemm: q (inputs, outputs / 8) and z (groups, outputs / 8), eight to a word in the order 0 2 4 6 1 3 5 7;
- gemv: q (outputs, inputs / 8) and z (outputs, groups / 8), eight to a word in their own order; groups are padded;
- gemv_fast: q (outputs / 4, inputs) in int16, of four outputs each, 64 inputs at a time; `qzeros` holds -scales z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.bits import unpack_words
from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.checkpoint.formats.settings import Awq

if TYPE_CHECKING:
    import torch

GEMM_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where number i of eight stands in its word
OUTPUTS, STRIDE = 4, 64  # of gemv_fast: outputs that share int16 words, and inputs that they alternate after


def awq_weight(parts: list[str], files: Files) -> Logical:
    """The weight of a qweight, qzeros and scales, each of two dimensions."""
    settings = files.settings_of(Awq)
    version = ((settings.version or settings.format or "gemm") if settings else "gemm").lower()
    rule = RULES.get(version)
    if rule is None:
        fault = f"AWQ's version {version!r} packs it by a rule that is not read; take a model of {', '.join(RULES)}"
        return files.weight(files.stored[parts[0]].shape, f"awq:{version}", parts, fault=fault)
    floating = files.stored[parts[2]].dtype.startswith(("float", "bfloat"))
    found = rule(parts, files, settings or Awq()) if floating and (settings is None or settings.bits == 4) else None
    if found is None:
        fault = unlike(f"AWQ ({version}, four bits)", files, *parts)
        return files.weight(files.stored[parts[0]].shape, "awq", parts, fault=fault)
    return found


def _gemm(parts: list[str], files: Files, settings: Awq) -> Logical | None:
    qweight, qzeros, scales = (files.stored[part].shape for part in parts)
    fit = (
        scales[1] == 8 * qweight[1]
        and qzeros == (scales[0], qweight[1])
        and scales[0] > 0
        and qweight[0] % scales[0] == 0
        and all(files.stored[part].dtype == "int32" for part in parts[:2])
    )
    if not fit:
        return None
    shape, size = (scales[1], qweight[0]), qweight[0] // scales[0]

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        words, zeros, scale = (tensors[part] for part in parts)
        zero, scale = _gemm_numbers(zeros), scale.float()
        result = torch.empty(shape, dtype=torch.float32)
        for inputs in row_chunks((qweight[0], scales[1])):
            group = torch.arange(inputs.start, inputs.stop) // size
            result[:, inputs] = ((_gemm_numbers(words[inputs]) - zero[group]) * scale[group]).t()
        return result

    return files.weight(shape, "awq:4bit", parts, dequantize)


def _gemm_numbers(words: torch.Tensor) -> torch.Tensor:
    eights = unpack_words(words, 4, 8 * words.shape[1]).reshape(words.shape[0], -1, 8)
    found: torch.Tensor = eights[..., list(GEMM_ORDER)].flatten(1)
    return found


def _gemv(parts: list[str], files: Files, settings: Awq) -> Logical | None:
    qweight, qzeros, scales = (files.stored[part].shape for part in parts)
    shape = (qweight[0], 8 * qweight[1])
    size = settings.group_size if settings.group_size > 0 else shape[1]
    groups = shape[1] // size
    fit = (
        shape[1] % size == 0
        and qzeros[0] == scales[0] == shape[0]
        and scales[1] == 8 * qzeros[1] >= groups
        and all(files.stored[part].dtype == "int32" for part in parts[:2])
    )
    if not fit:
        return None

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        words, zeros, scale = (tensors[part] for part in parts)
        group = torch.arange(shape[1]) // size
        result = torch.empty(shape, dtype=torch.float32)
        for rows in row_chunks(shape):
            zero = unpack_words(zeros[rows], 4, groups)[:, group]
            numbers = unpack_words(words[rows], 4, shape[1]) - zero
            torch.mul(numbers, scale[rows].float()[:, group], out=result[rows])
        return result

    return files.weight(shape, "awq:4bit", parts, dequantize)


def _gemv_fast(parts: list[str], files: Files, settings: Awq) -> Logical | None:
    qweight, qzeros, scales = (files.stored[part].shape for part in parts)
    shape = (OUTPUTS * qweight[0], qweight[1])
    size = settings.group_size if settings.group_size > 0 else shape[1]
    fit = (
        shape[1] % STRIDE == 0
        and shape[1] % size == 0
        and qzeros == scales
        and scales[1] == shape[0]
        and scales[0] >= shape[1] // size
        and files.stored[parts[0]].dtype == "int16"
        and files.stored[parts[1]].dtype == files.stored[parts[2]].dtype
    )
    if not fit:
        return None

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        words, shifts, scale = (tensors[part] for part in parts)
        group = torch.arange(shape[1]) // size
        scale, shift = scale.float().t()[:, group], shifts.float().t()[:, group]
        return _fast_numbers(words).float().mul_(scale).add_(shift)

    return files.weight(shape, "awq:4bit", parts, dequantize)


def _fast_numbers(words: torch.Tensor) -> torch.Tensor:
    """Numbers (outputs, inputs) of int16 words (outputs / 4, inputs), undoing AutoAWQ's `pack_intweight`."""
    import torch

    quarter, inputs = words.shape
    numbers = (words.to(torch.int32).unsqueeze(-1) >> torch.arange(0, 16, 4)) & 0xF
    rows = (
        numbers.reshape(quarter, inputs // STRIDE, OUTPUTS, STRIDE).transpose(1, 2).reshape(-1, inputs // 32, 4, 2, 4)
    )
    eights = rows.transpose(3, 4)  # in each eight the even ones came first
    pairs = eights.reshape(-1, inputs // 32, 4, 4, 2).transpose(2, 3)
    found: torch.Tensor = pairs.reshape(4 * quarter, inputs)
    return found


RULES = {"gemm": _gemm, "gemv": _gemv, "gemv_fast": _gemv_fast}
