"""`quantization_config` of config.json, method by method: what is understood, and what has no effect on a weight.

A key that stands in neither is refused by its name: it could change what the stored numbers mean.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glmspectra.errors import CheckpointError
from glmspectra.json_files import read_object, validate

# Which modules were left alone is seen from the tensors themselves.
MODULES = {
    "modules_to_not_convert",
    "modules_to_convert",
    "ignore",
    "ignored_layers",
    "exclude_modules",
    "skip_modules",
}
OF_LOADING = {"backend", "dequantize", "run_compressed", "use_exllama", "disable_exllama", "exllama_config"}
OF_ACTIVATIONS = {"activation_scheme", "activation_scale_ub", "kv_cache_scheme", "kv_cache_quant_algo"}


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    quant_method: str | None = None


class Gptq(_Settings):
    """GPTQ. `group_size` -1 is one group of all inputs."""

    bits: int
    group_size: int = 128
    desc_act: bool = False
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    format: Literal["gptq", "gptq_v2"] | None = None
    dynamic: dict[str, Any] | None = None
    pack_dtype: Literal["int32"] | None = None
    is_marlin_format: Literal[False] = False

    @property
    def second_format(self) -> bool:
        """Whether zero points are stored as they are, not less one."""
        return "gptq_v2" in (self.checkpoint_format, self.format)

    def size(self, inputs: int) -> int:
        """Inputs that share a scale."""
        return self.group_size if self.group_size > 0 else inputs


class Awq(_Settings):
    """AWQ; `version` is the rule of packing."""

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    version: str | None = None
    format: str | None = None


class WeightArguments(BaseModel):
    """How compressed-tensors quantized the weights of one group of modules."""

    model_config = ConfigDict(extra="forbid")
    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    block_structure: list[int] | str | None = None
    actorder: str | bool | None = None
    # What was done while quantizing, and the types that the tensors' own headers give.
    dynamic: bool | str = False
    observer: str | None = None
    observer_kwargs: dict[str, Any] | None = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    is_mx: bool | None = None


class Group(BaseModel):
    """One of compressed-tensors' `config_groups`."""

    model_config = ConfigDict(extra="forbid")
    targets: list[str] = Field(default_factory=list)
    weights: WeightArguments | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class Sparsity(BaseModel):
    """compressed-tensors' `sparsity_config`: weights that are stored dense, whatever was pruned of them."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["dense"] = "dense"
    global_sparsity: float | None = None
    sparsity_structure: str | None = None
    targets: list[str] | None = None
    ignore: list[str] | None = None
    registry_requires_subclass: bool = False


class CompressedTensors(_Settings):
    """compressed-tensors; sparse formats and rotated weights are refused."""

    config_groups: dict[str, Group] = Field(default_factory=dict)
    format: Literal[
        "dense",
        "naive-quantized",
        "int-quantized",
        "float-quantized",
        "pack-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "mixed-precision",
        None,
    ] = None
    sparsity_config: Sparsity | None = None
    transform_config: dict[str, Any] | None = Field(None, max_length=0)

    @property
    def _weights(self) -> list[WeightArguments]:
        return [group.weights for group in self.config_groups.values() if group.weights is not None]

    @property
    def bits(self) -> set[int]:
        """Bits of a whole number, in any group of modules."""
        return {weights.num_bits for weights in self._weights if weights.type == "int"}

    @property
    def asymmetric(self) -> bool:
        """Whether every group of modules has zero points."""
        return bool(self._weights) and not any(weights.symmetric for weights in self._weights)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Blocks of rows and columns, of groups that have such."""
        found = [weights.block_structure for weights in self._weights if weights.block_structure]
        sides = [block.split("x") if isinstance(block, str) else block for block in found]
        whole = [(int(block[0]), int(block[1])) for block in sides if len(block) == 2]
        return [block for block in whole if min(block) > 0]


class Fp8(_Settings):
    """fp8 of transformers, DeepSeek, FBGEMM, vLLM."""

    weight_block_size: list[int] | None = Field(None, min_length=2, max_length=2)
    fmt: str | None = None
    scale_fmt: str | None = None
    expert_dtype: Literal["fp8"] | None = None
    weights: str | None = None

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Rows and columns that share a scale."""
        size = self.weight_block_size
        return [(size[0], size[1])] if size and min(size) > 0 else []


class ModelOpt(_Settings):
    """NVIDIA's ModelOpt; the stored tensors tell float8 and NVFP4 apart."""

    quant_algo: Literal["FP8", "NVFP4", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "MXFP4"] | None = None


class Other(_Settings):
    """A method of which all that a weight needs stands beside it in the files."""


_GPTQ_PAST = {
    *(
        "true_sequential",
        "damp_percent",
        "damp_auto_increment",
        "static_groups",
        "dataset",
        "tokenizer",
        "model_seqlen",
    ),
    *("block_name_to_quantize", "module_name_preceding_first_block", "modules_in_block_to_quantize", "batch_size"),
    *("pad_token_id", "max_input_length", "cache_block_outputs", "use_cuda_fp16", "model_name_or_path", "mse"),
    *("model_file_base_name", "act_group_aware", "hyb_act", "lm_head", "meta", "quantizer", "nsamples", "seqlen"),
    *("offload_to_disk", "parallel_packing", "method", "gptaq"),
}
_BITSANDBYTES = {
    *("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_threshold", "llm_int8_skip_modules"),
    *("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "bnb_4bit_compute_dtype", "bnb_4bit_quant_type"),
    *("bnb_4bit_use_double_quant", "bnb_4bit_quant_storage", "bnb_4bit_blocksize"),
}
_COMPRESSED = {"quantization_status", "global_compression_ratio", "version", "use_optimized_inference"}
_MODELOPT = {"producer", "config_groups", "group_size", "quantization", "exclude_modules"}
_TORCHAO = {"quant_type", "quant_type_kwargs", "include_input_output_embeddings", "untie_embedding_weights"}
_HQQ = {"quant_config", "nbits", "group_size", "view_as_float", "axis", "dynamic_config"}

# Method -> its settings, and the keys that have no effect on what a stored weight means.
METHODS: dict[str, tuple[type[_Settings], set[str]]] = {
    "gptq": (Gptq, _GPTQ_PAST | MODULES | OF_LOADING),
    "awq": (
        Awq,
        _GPTQ_PAST | {"do_fuse", "fuse_max_seq_len", "modules_to_fuse", "sym", "desc_act"} | MODULES | OF_LOADING,
    ),
    "compressed-tensors": (CompressedTensors, _COMPRESSED | MODULES | OF_LOADING | OF_ACTIVATIONS),
    "fp8": (Fp8, MODULES | OF_LOADING | OF_ACTIVATIONS),
    "fbgemm_fp8": (Fp8, MODULES | OF_LOADING | OF_ACTIVATIONS),
    "modelopt": (ModelOpt, _MODELOPT | MODULES | OF_LOADING | OF_ACTIVATIONS),
    "mxfp4": (Other, MODULES | OF_LOADING),
    "hqq": (Other, _HQQ | MODULES | OF_LOADING),
    "quanto": (Other, {"weights", "activations"} | MODULES | OF_LOADING),
    "torchao": (Other, _TORCHAO | MODULES | OF_LOADING),
    "bitsandbytes": (Other, _BITSANDBYTES | MODULES | OF_LOADING),
    "gguf": (Other, MODULES | OF_LOADING),
}

STATED = ("quantization_config", "compression_config")  # the key, and its name of before

# Methods that are known and not read.
REFUSED = {
    "aqlm": "its weights are sums of codebooks",
    "vptq": "its weights are vectors of a codebook",
    "higgs": "its weights are rotated and lie on a lattice",
    "quip": "its weights are rotated and lie on a lattice",
    "spqr": "its weights are tiles beside sparse outliers",
    "eetq": "its int8 weights lie in an order of one GPU",
    "bitnet": "its weights are of three values, packed for a kernel of its own",
    "quark": "its packing depends on the version of Quark that wrote it",
    "fp_quant": "its weights are rotated",
    "sinq": "its weights have scales of both sides",
    "metal": "it is packed for Apple's GPUs",
    "fouroversix": "its scales are chosen block by block",
    "auto-round": "its packing depends on the backend that exported it",
    "intel/auto-round": "its packing depends on the backend that exported it",
    "exl2": "it is packed for ExLlamaV2's kernels",
    "exl3": "it is packed for ExLlamaV3's kernels",
    "marlin": "it is packed for Marlin's kernels",
    "qqq": "it is packed for QQQ's kernels",
    "deepspeedfp": "its weights are quantized while loading",
    "fp6": "its weights are packed in six bits",
}


def read_settings(config: Mapping[str, Any], origin: str) -> tuple[str | None, BaseModel | None]:
    """Method and validated settings of a config.json; (None, None) where it does not say that it is quantized.

    Raises:
        CheckpointError: The method is unknown or not read here, or a key or value is not understood.
    """
    content, origin = _stated(config, origin)
    if not content:
        return None, None
    if not isinstance(content, dict):
        raise CheckpointError(f"{origin}: quantization_config is no JSON object; fetch the file again.")
    method = content.get("quant_method")
    if method is None and ({"load_in_4bit", "load_in_8bit"} & content.keys()):
        method = "bitsandbytes"  # as transformers reads the files of before quant_method
    method = str(method).lower() if method is not None else None
    if method in REFUSED:
        raise CheckpointError(
            f"{origin}: the weights are quantized by {method}, which is not read here ({REFUSED[method]}); take the "
            "model in its original precision, or in one of " + ", ".join(METHODS) + "."
        )
    if method not in METHODS:
        raise CheckpointError(
            f"{origin}: quantization_config has the quant_method {method!r}, which is unknown here; known are "
            + ", ".join(METHODS)
            + "."
        )
    model, harmless = METHODS[method]
    kept = {key: value for key, value in content.items() if key not in harmless}
    return method, validate(kept, model, f"{origin}, quantization_config ({method})")


def _stated(config: Mapping[str, Any], origin: str) -> tuple[Any, str]:
    """What is said of quantization, and where: in config.json, a part of it (text_config), or a file beside it."""
    parts = {origin: config} | {f"{origin}, {key}": part for key, part in config.items() if isinstance(part, dict)}
    stated = {key_path: part[key] for key_path, part in parts.items() for key in STATED if part.get(key)}
    if stated:
        key_path, content = next(iter(stated.items()))
        if other := next((key_path for key_path in stated if stated[key_path] != content), None):
            raise CheckpointError(f"{key_path} and {other} say different things of quantization; leave one of the two.")
        return content, key_path
    folder = Path(origin).parent
    for name, standard in BESIDE.items():
        if Path(origin).name == "config.json" and (folder / name).is_file():
            return standard(read_object(folder / name)), str(folder / name)
    return None, origin


def _auto_gptq(content: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "gptq"} | content


def _auto_awq(content: dict[str, Any]) -> dict[str, Any]:
    names = {"w_bit": "bits", "q_group_size": "group_size"}
    return {"quant_method": "awq"} | {names.get(key, key): value for key, value in content.items()}


def _modelopt(content: dict[str, Any]) -> dict[str, Any]:
    inner = content.get("quantization")
    return {"quant_method": "modelopt"} | (inner if isinstance(inner, dict) else content)


# Files of their own that writers of before `quantization_config` put the same settings into.
BESIDE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "quantize_config.json": _auto_gptq,
    "quant_config.json": _auto_awq,
    "hf_quant_config.json": _modelopt,
}
