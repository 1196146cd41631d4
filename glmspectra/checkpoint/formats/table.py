"""The table of formats: which one a stored tensor is the first of, and what is no weight at all.

A format is a module of this package with one function, `recognize(name, files)`: the weight that the stored tensor
`name` begins, or None. The first in the table that knows a tensor takes it and its companions.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from glmspectra.checkpoint.formats import (
    bitsandbytes,
    chatglm_int,
    compressed_tensors,
    fp8,
    gguf_file,
    gptq,
    hqq,
    microscaling,
    quanto,
    reparametrized,
    torch_types,
    torchao,
)
from glmspectra.checkpoint.formats.logical import Files, Logical, Read
from glmspectra.checkpoint.formats.settings import read_settings
from glmspectra.checkpoint.geometry import EXPERTS
from glmspectra.checkpoint.records import StoredTensor

Recognize = Callable[[str, Files], Logical | None]

FORMATS: dict[str, Recognize] = {
    "bitsandbytes": bitsandbytes.recognize,
    "GPTQ, AWQ": gptq.recognize,
    "compressed-tensors, packed": compressed_tensors.recognize_packed,
    "HQQ": hqq.recognize,
    "optimum-quanto": quanto.recognize,
    "torchao": torchao.recognize,
    "MXFP4, NVFP4": microscaling.recognize,
    "compressed-tensors, int8": compressed_tensors.recognize_int8,
    "ChatGLM int4, int8": chatglm_int.recognize,
    "fp8, MXFP8": fp8.recognize,
    "GGUF": gguf_file.recognize,
    "weight norm, spectral norm, pruning": reparametrized.recognize,
    "torch": torch_types.recognize,
}

# Last words of names that are never a weight: scales, zero points, maxima, packed words, indices, codebooks. One that
# is left when every format has taken its own belongs to a weight that was not recognized.
COMPANIONS = frozenset(
    [
        "scale",
        "scales",
        "scale_weight",
        "scale_input",
        "scale_inv",
        "scale_2",
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "weight_scales",
        "weight_global_scale",
        "input_scale",
        "input_scale_inv",
        "input_global_scale",
        "output_scale",
        "activation_scale",
        "k_scale",
        "v_scale",
        "q_scale",
        "prob_output_scale",
        "zero",
        "zeros",
        "zero_point",
        "zero_points",
        "weight_zero_point",
        "input_zero_point",
        "qzeros",
        "qweight",
        "qscales",
        "weight_packed",
        "weight_shape",
        "g_idx",
        "weight_g_idx",
        "perm",
        "W_q",
        "SCB",
        "weight_format",
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_state",
        "_data",
        "_scale",
        "_shift",
        "_qdata",
        "_weight_qdata",
        "_weight_scale",
        "_weight_zero_point",
        "codebooks",
        "codes",
        "lut",
        "lookup_table",
        "centroids",
        "indices",
        "res_centroids",
        "outlier_centroids",
        "meta_scale",
        "meta_zero",
        "scaled_fp8",
        "row_offsets",
        "compressed",
        "bitmask",
        "weight_int8pack_mm",
        "qzeros_and_scales",
        "w_bit",
        "scaling_factor",
        "zp",
        "w_zp",
        "wscales",
        "smooth_factor",
        "smooth_scale",
        "hessian",
        "amax",
    ]
)
COMPANION_ENDINGS = ("_scale", "_scales", "_scale_inv", "_blocks", "_zero_point", "_zeros", "_absmax", "_scale_2")

# In whatever writer's own name: `weight_quantizer_scale`, `wq_scales_1`, `quant_zero_points`.
COMPANION_WORDS = re.compile(
    r"(^|_)(quant|qparams|quantizer|zeropoints?|zero_points?|absmax)(_|$)|(weight|^w?q|quant\w*)_\w*scales?(_|$)"
)
# Scales that belong to a weight's stored numbers, not to a layer's inputs, outputs or cache.
OF_STORED_NUMBERS = (
    *("scale", "scales", "scale_weight", "weight_scale", "weight_scale_inv", "weight_scales", "weight_scale_2"),
    *("weight_global_scale", "qscales", "wscales", "SCB", "absmax", "g_idx", "qzeros", "zero_point", "zeros"),
)
# Parts of a weight by their own names (`weight_sparse`, `weight_residual`); an RNN's matrices are none.
PART_OF_A_WEIGHT = re.compile(r"^weight_(?!(ih|hh|hr)_l\d)")
PACKED = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
COPY = ".modules_to_save."  # PEFT's trained copy of a module, which it keeps as `original_module`
FACTORS = re.compile(r"\.lora_(A|B|E|embedding_[AB])(\.|$)")


def assemble(
    stored: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    read: Read,
    origin: str,
    metadata: Mapping[str, str],
) -> dict[str, Logical]:
    """Group stored tensors into the weights that they make up, by the weights' names.

    Args:
        stored: Every tensor of the files.
        config: config.json as a dictionary.
        read: Reads a stored tensor; it is called for tensors of a few hundred bytes only.
        origin: Path of config.json, for messages.
        metadata: What the headers of the files say beside the tensors.

    Raises:
        CheckpointError: The configuration names a method of quantization, or a setting, that is not understood. What is
            wrong with one weight alone is its `fault`.
    """
    method, settings = read_settings(config, origin)
    files = Files(stored, config, method, settings, read, metadata)
    logical: dict[str, Logical] = {}
    used: set[str] = set()
    dequantized: set[str] = set()
    for name in stored:
        found = next((weight for recognize in FORMATS.values() if (weight := recognize(name, files))), None)
        if found is not None:
            logical[weight_name(name)] = found
            used.update(found.components)
            if found.dequantize is not None:
                dequantized.add(weight_name(name).rpartition(".")[0])
    modules = {name.removesuffix(".weight") for name in (*stored, *logical) if name.endswith(".weight")}
    trained = {name.partition(COPY)[0] for name in stored if COPY in name}
    # Scales of a quantized layer's inputs and outputs, and the like, mean nothing beside its dequantized weight.
    used |= {name for name in stored if is_companion(name) and name.rpartition(".")[0] in dequantized}
    for name, entry in stored.items():
        if name not in used:
            logical[name] = Logical(
                entry.shape,
                entry.dtype,
                entry.nbytes,
                entry.file,
                (name,),
                fault=_fault(name, entry, files, modules, trained),
            )
    return logical


def weight_name(first: str) -> str:
    """The weight's name by that of its first stored tensor: `X.qweight` holds `X.weight`."""
    module, dot, word = first.rpartition(".")
    if word in ("qweight", "weight_packed", "W_q"):
        return f"{module}{dot}weight"
    if found := torchao.NAME.match(first):
        return f"{found[1]}{found[2]}"
    if word == "_data":
        return module.removesuffix("._data")
    if (whole := reparametrized.weight_of(first)) is not None:
        return whole
    return first.removesuffix("_blocks")


def is_companion(name: str) -> bool:
    """Whether a tensor of this name is a scale, a zero point, packed words or another companion of a weight."""
    word = name.rpartition(".")[2]
    return word in COMPANIONS or word.endswith(COMPANION_ENDINGS) or bool(COMPANION_WORDS.search(word))


def _fault(
    name: str, entry: StoredTensor, files: Files, modules: Collection[str], trained: Collection[str]
) -> str | None:
    """Why a tensor that no format took is no matrix of numbers; None when it may be one.

    modules: those that have a weight, whatever format it is stored in. trained: those of which PEFT trained a copy.
    """
    if len(entry.shape) < 2:
        return None
    module, _, word = name.rpartition(".")
    if entry.dtype == "float8_e8m0fnu":
        return "it holds powers of two (E8M0), which are scales and no weight"
    if is_companion(name):
        return "by its name it is a scale or packed part of a quantized weight, of no format that is known here"
    scales = [f"{module}.{scale}" for scale in OF_STORED_NUMBERS] if module and word == "weight" else []
    scales = [scale for scale in (f"{name}_scale", f"{name}_scale_inv", *scales) if scale in files.stored]
    if scales and name.endswith("weight"):
        return f"it holds {entry.dtype} beside the scale {scales[0]}: whether that is in it already cannot be known"
    if "peft_type" not in files.config and FACTORS.search(name):
        return (
            "it is a factor of LoRA, and the files hold base and adapter side by side; save the adapter by "
            "save_pretrained, or the model after merge_and_unload"
        )
    if ".original_module." in name and name.partition(".original_module.")[0] in trained:
        return "PEFT keeps it beside a trained copy (modules_to_save), which takes its place"
    inside = word not in ("weight", "bias") and (module in files.stored or module in modules)
    if entry.dtype.startswith(("float", "bfloat")) and (inside or PART_OF_A_WEIGHT.search(word)):
        whole = module if module in files.stored else f"{module}.weight"
        return f"by its name it is a part of {whole}, of no format that is known here, and no matrix of its own"
    weight = word == "weight" or (len(entry.shape) == 3 and EXPERTS.search(name))
    if weight and entry.dtype in PACKED:
        of = f" of {files.method}" if files.method else ""
        return f"it holds {entry.dtype} numbers{of}, and no scale that belongs to it is in the files"
    return None
