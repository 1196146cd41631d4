"""GPTQ's packed words: `X.qweight`, `X.qzeros`, `X.scales` and `X.g_idx`; AWQ's have the same names (`awq.py`).

GPTQ (AutoGPTQ, GPTQModel): column j of the weight has the group g = g_idx[j], and W[i, j] = scales[g, i] *
(q[j, i] - z[g, i]). Numbers q are packed along the inputs, z along the outputs, in one string of bits. Format 1
(`checkpoint_format` "gptq", the usual one) stores z - 1, format 2 ("gptq_v2") stores z.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glmspectra.checkpoint.formats.awq import awq_weight
from glmspectra.checkpoint.formats.bits import unpack_words, words_for
from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.checkpoint.formats.settings import Gptq
from glmspectra.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # weights of (inputs, outputs)


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a `qweight`, GPTQ's or AWQ's, whichever its shapes are."""
    module, word = name[:-7], name[-7:]
    if word != "qweight" or not (module == "" or module.endswith(".")):
        return None
    parts = [name, module + "qzeros", module + "scales"]
    if files.method not in (None, "gptq", "awq"):
        fault = f"{files.method} packs it in words (qweight) by a rule that is not known here"
        return files.weight(files.stored[name].shape, str(files.method), _present(files, parts), fault=fault)
    absent = [part for part in parts if part not in files.stored]
    if absent:
        label = (files.method or "gptq or awq").upper()
        fault = f"it is packed as {label} and {absent[0]} is missing; fetch the model again"
        return files.weight(files.stored[name].shape, files.method or "gptq", _present(files, parts), fault=fault)
    if any(len(files.stored[part].shape) != 2 for part in parts):
        fault = unlike("GPTQ or AWQ", files, *parts)
        return files.weight(files.stored[name].shape, files.method or "gptq", parts, fault=fault)
    if module + "g_idx" in files.stored:
        parts.append(module + "g_idx")
    rows, outputs = files.stored[name].shape[0], files.stored[module + "scales"].shape[-1]
    if files.method == "awq" or (files.method is None and files.stored[name].shape == (rows, outputs // 8)):
        return awq_weight(parts[:3], files)
    return _gptq(parts, files)


def _gptq(parts: list[str], files: Files) -> Logical:
    qweight, qzeros, scales = (files.stored[part].shape for part in parts[:3])
    settings = files.settings_of(Gptq)
    bits = settings.bits if settings else (32 * qzeros[-1] // scales[-1] if scales[-1:] != (0,) and qzeros else 0)
    fit = (
        len(qweight) == len(qzeros) == len(scales) == 2
        and bits in (2, 3, 4, 8)
        and qweight[1] == scales[1]
        and qzeros == (scales[0], words_for(scales[1], bits))
        and 32 * qweight[0] % bits == 0
    )
    inputs = 32 * qweight[0] // bits if fit else 0
    fit = fit and (len(parts) == 3 or files.stored[parts[3]].shape == (inputs,))
    dtypes = [files.stored[part].dtype for part in parts]
    if not fit or dtypes[:2] != ["int32", "int32"] or not dtypes[2].startswith(("float", "bfloat")):
        return files.weight(qweight, "gptq", parts, fault=unlike("GPTQ", files, *parts))
    name, shape = f"gptq:{bits}bit", (scales[1], inputs)
    if settings is None:
        fault = "it is packed as GPTQ, and no quantization_config says by checkpoint_format how zero points are stored"
        return files.weight(shape, name, parts, fault=fault)
    if settings.dynamic:
        return files.weight(shape, name, parts, fault="GPTQ's `dynamic` gives each module settings of its own")
    if len(parts) == 3 and (settings.desc_act or -(-inputs // settings.size(inputs)) != scales[0]):
        return files.weight(shape, name, parts, fault="it is packed as GPTQ and its g_idx is missing")
    less_one = 0 if settings.second_format else 1
    transposed = files.config.get("model_type") in CONV1D_MODELS

    def dequantize(tensors: Tensors) -> torch.Tensor:
        import torch

        words, zeros, scale = (tensors[part] for part in parts[:3])
        scale = scale.float()
        zero = (unpack_words(zeros, bits, shape[0]) + less_one) & (2**bits - 1)  # as the library: 15 + 1 is 0
        group = tensors[parts[3]].long() if len(parts) == 4 else torch.arange(inputs) // settings.size(inputs)
        if bool(((group < 0) | (group >= scale.shape[0])).any()):
            raise CheckpointError(f"{parts[-1]} names a group beyond its {scale.shape[0]} groups: fetch it again.")
        result = torch.empty(shape, dtype=torch.float32)
        for rows in row_chunks(shape):
            numbers = unpack_words(words[:, rows].t(), bits, inputs) - zero[:, rows].t()[:, group]
            torch.mul(numbers, scale[:, rows].t()[:, group], out=result[rows])
        return result.t().contiguous() if transposed else result

    return files.weight(shape[::-1] if transposed else shape, name, parts, dequantize)


def _present(files: Files, parts: list[str]) -> list[str]:
    return [part for part in parts if part in files.stored]
