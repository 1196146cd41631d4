"""Which stored tensors make up one logical weight, and how it is dequantised.

| form | stored beside `X.weight` |
|---|---|
| official ChatGLM2 int4, int8 | `X.weight_scale`, one a row; bits from the configuration |
| bitsandbytes 4-bit | `X.weight.absmax`, `.quant_map`, `.quant_state.bitsandbytes__nf4` (or fp4), nested ones
| | bitsandbytes 8-bit | `X.SCB`, `X.weight_format` | | fp8, by blocks or by rows | `X.weight_scale_inv` (a
block) or `X.weight_scale` (a row, or one) |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glmspectra.checkpoint.formats import bitsandbytes as bnb
from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows
from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError

Read = Callable[[str], torch.Tensor]
Dequantize = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Logical:
    """A tensor as a reader of the model means it.

    `components` are the stored tensors it is made of, its own name first; `dequantize` takes them by name and
    gives float32; None when the tensor is stored as it is.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    components: tuple[str, ...]
    quantization: str | None = None
    dequantize: Dequantize | None = None

    @property
    def floating(self) -> bool:
        return self.dequantize is not None or self.dtype.startswith(("float", "bfloat"))


def assemble(stored: Mapping[str, StoredTensor], config: Mapping[str, Any], read: Read) -> dict[str, Logical]:
    """Group stored tensors into logical ones, by name; `read` is called for tensors of a few hundred bytes
    only.

    Raises CheckpointError when the parts of a quantised weight are incomplete, or its bits cannot be told.
    """
    logical: dict[str, Logical] = {}
    used: set[str] = set()
    for name in stored:
        found = _quantized(name, stored, config, read)
        if found is not None:
            logical[name] = found
            used.update(found.components)
    for name, entry in stored.items():
        if name not in used:
            logical[name] = _gguf(entry) if entry.dtype.startswith("gguf:") else _plain(entry)
    return logical


def _quantized(name: str, stored: Mapping[str, StoredTensor], config: Mapping[str, Any], read: Read) -> Logical | None:
    if not name.endswith("weight"):
        return None
    for kind in ("nf4", "fp4"):
        if name + bnb.STATE_PREFIX + kind in stored:
            return _bitsandbytes_4bit(name, name + bnb.STATE_PREFIX + kind, stored, read)
    module = name.removesuffix("weight")
    entry = stored[name]
    if entry.dtype == "int8" and module + "SCB" in stored:
        return _bitsandbytes_8bit(name, module, stored, read)
    if entry.dtype == "int8" and name + "_scale" in stored:
        return _glm_packed(name, stored, config)
    if entry.dtype.startswith("float8"):
        return _fp8(name, stored, config)
    return None


def _logical(
    name: str,
    parts: list[str],
    shape: tuple[int, ...],
    quantization: str,
    dequantize: Dequantize,
    stored: Mapping[str, StoredTensor],
) -> Logical:
    entry = stored[name]
    nbytes = sum(stored[part].nbytes for part in parts)
    return Logical(shape, entry.dtype, nbytes, entry.file, tuple(parts), quantization, dequantize)


def _bitsandbytes_4bit(name: str, state_name: str, stored: Mapping[str, StoredTensor], read: Read) -> Logical:
    state = bnb.parse_state(name, read(state_name))
    needed = [name + suffix for suffix in bnb.STATE_SUFFIXES]
    if state.nested_blocksize is None:
        needed = needed[:2]
    absent = [part for part in needed if part not in stored]
    if absent:
        raise CheckpointError(f"Tensor {name} is a bitsandbytes {state.kind} weight and {absent[0]} is missing.")

    def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return bnb.dequantize_4bit(name, state, tensors)

    return _logical(name, [name, *needed, state_name], state.shape, state.kind, dequantize, stored)


def _bitsandbytes_8bit(name: str, module: str, stored: Mapping[str, StoredTensor], read: Read) -> Logical:
    parts = [name, module + "SCB"]
    if module + "weight_format" in stored:
        parts.append(module + "weight_format")
        if int(read(parts[-1])) != 0:
            raise CheckpointError(
                f"Tensor {name} is stored in an 8-bit order of an old GPU, not row by row: save it again "
                "with a bitsandbytes of 0.45 or later."
            )

    def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return bnb.dequantize_8bit(tensors[name], tensors[module + "SCB"])

    return _logical(name, parts, stored[name].shape, "llm_int8", dequantize, stored)


def _glm_packed(name: str, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Logical:
    entry, scale = stored[name], stored[name + "_scale"]
    bits = _packed_bits(name, entry, config)
    rows, columns = entry.shape[0], entry.shape[-1] * 8 // bits
    if len(entry.shape) != 2 or scale.shape not in ((rows,), (rows, 1)):
        raise CheckpointError(
            f"Tensor {name} of shape {list(entry.shape)} and its scales of shape {list(scale.shape)} do not "
            "belong together: the packed form has one scale a row."
        )

    def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return dequantize_rows(tensors[name], tensors[name + "_scale"].float(), bits)

    return _logical(name, [name, name + "_scale"], (rows, columns), f"int{bits}", dequantize, stored)


def _packed_bits(name: str, entry: StoredTensor, config: Mapping[str, Any]) -> int:
    """4 or 8, as the configuration says.

    Else the one by which the width is one that the configuration knows.
    """
    if config.get("quantization_bit") in (4, 8):
        return int(config["quantization_bit"])
    if config.get("quantization_config", {}).get("quant_method") == "compressed-tensors":
        return 8  # there int4 has another name, weight_packed
    heads, size = config.get("num_attention_heads"), config.get("kv_channels")
    widths = {
        config.get("hidden_size"),
        config.get("ffn_hidden_size"),
        heads * size if heads and size else None,
    }
    fitting = [bits for bits in (8, 4) if entry.shape[-1] * 8 // bits in widths]
    if len(fitting) != 1:
        raise CheckpointError(
            f"Tensor {name} is packed in int8, and whether it holds 4 or 8 bits a number cannot be told: "
            'give "quantization_bit" in config.json.'
        )
    return fitting[0]


def _fp8(name: str, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Logical | None:
    scale_name = next((name + end for end in ("_scale_inv", "_scale") if name + end in stored), None)
    entry = stored[name]
    if scale_name is None or len(entry.shape) != 2:
        return None
    scale = stored[scale_name]
    block = tuple((config.get("quantization_config") or {}).get("weight_block_size") or (128, 128))
    by_row = scale.shape in ((), (1,), (entry.shape[0],), (entry.shape[0], 1))
    if not by_row and scale.shape != tuple(-(-n // b) for n, b in zip(entry.shape, block, strict=True)):
        raise CheckpointError(
            f"Tensor {name} of shape {list(entry.shape)} and its scales of shape {list(scale.shape)} do not "
            f"belong together: neither one a row nor one a block of {block[0]} x {block[1]}."
        )

    def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weight, scales = tensors[name].float(), tensors[scale_name].float()
        if by_row:
            return weight.mul_(scales.reshape(-1, 1))
        for i, row in enumerate(range(0, weight.shape[0], block[0])):
            columns = scales[i].repeat_interleave(block[1])[: weight.shape[1]]
            weight[row : row + block[0]].mul_(columns)
        return weight

    return _logical(name, [name, scale_name], entry.shape, "fp8", dequantize, stored)


def _plain(entry: StoredTensor) -> Logical:
    return Logical(entry.shape, entry.dtype, entry.nbytes, entry.file, (entry.name,))


def _gguf(entry: StoredTensor) -> Logical:
    from glmspectra.checkpoint.formats.gguf_file import dequantize

    name, shape, kind = entry.name, entry.shape, entry.dtype.removeprefix("gguf:")

    def blocks(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return dequantize(tensors[name], kind, shape)

    return Logical(shape, "uint8", entry.nbytes, entry.file, (name,), entry.dtype, blocks)
