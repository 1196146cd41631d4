"""bitsandbytes' serialized 4-bit (NF4, FP4, double quantization) and 8-bit weights, dequantized in plain torch.

4 bits: the weight, flattened row by row, is cut into blocks (64 numbers, usually). Number i is `code[q_i] *
absmax[i // blocksize]`, with a code of 16 values and two q in a byte, the first in its high half. With double
quantization absmax itself is stored in 8 bits: `nested_code[a_j] * nested_absmax[j // nested_blocksize] +
offset` (Dettmers et al. 2023, QLoRA, section 3). 8 bits (LLM.int8): `q * SCB[row] / 127`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from glmspectra.checkpoint.formats.chatglm_int import CHUNK, row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors, unlike
from glmspectra.errors import CheckpointError
from glmspectra.json_files import parse_json, validate

if TYPE_CHECKING:
    import torch

STATE_PREFIX = ".quant_state.bitsandbytes__"
CODES = {"quant_map": 16, "nested_quant_map": 256}  # values of each code
MAXIMUM_STATE = 1 << 16  # bytes; some 200 are usual
STATE_SUFFIXES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True)
class State4bit:
    """What the serialized quant_state of a 4-bit weight says."""

    quant_type: str  # nf4 or fp4
    shape: tuple[int, ...]
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float


class _StoredState(BaseModel):
    """The JSON of a quant_state; its types of numbers (`dtype`, `nested_dtype`) are those of its tensors."""

    quant_type: str
    shape: list[int]
    blocksize: int
    nested_blocksize: int | None = None
    nested_offset: float | None = None


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of four bits with its quant_state, or of eight with its row maxima `SCB`."""
    if not name.endswith("weight"):
        return None
    for quant_type in ("nf4", "fp4"):
        if name + STATE_PREFIX + quant_type in files.stored:
            return _four_bits(name, name + STATE_PREFIX + quant_type, files)
    if files.stored[name].dtype == "int8" and name.removesuffix("weight") + "SCB" in files.stored:
        return _eight_bits(name, name.removesuffix("weight"), files)
    if files.method == "bitsandbytes" and files.stored[name].dtype in ("uint8", "int8"):
        what = "its quant_state" if files.stored[name].dtype == "uint8" else f"{name.removesuffix('weight')}SCB"
        fault = f"it is quantized by bitsandbytes and {what} is missing; save the model again"
        return files.weight(files.stored[name].shape, "bitsandbytes", [name], fault=fault)
    return None


def _four_bits(name: str, state_name: str, files: Files) -> Logical:
    needed = [name + suffix for suffix in STATE_SUFFIXES]
    parts = [name, *(part for part in needed if part in files.stored), state_name]
    try:
        if math.prod(files.stored[state_name].shape) > MAXIMUM_STATE:
            raise CheckpointError(f"the quantization state of {name} is larger than any that bitsandbytes writes")
        state = parse_state(name, files.read(state_name))
    except CheckpointError as error:
        return files.weight(files.stored[name].shape, "bitsandbytes", parts, fault=str(error))
    needed = needed[:2] if state.nested_blocksize is None else needed
    absent = [part for part in needed if part not in files.stored]
    fault = f"it is a bitsandbytes {state.quant_type} weight and {absent[0]} is missing" if absent else None
    count = math.prod(state.shape)
    if not absent and (
        min(state.shape, default=0) < 0
        or math.prod(files.stored[name].shape) != -(-count // 2)
        or math.prod(files.stored[name + ".absmax"].shape) != -(-count // state.blocksize)
        or any(math.prod(files.stored[part].shape) != CODES[part.rpartition(".")[2]] for part in needed[1::2])
    ):
        apart = unlike(f"bitsandbytes {state.quant_type}", files, name, name + ".absmax")
        fault = f"{apart}; its state says {list(state.shape)}"

    def dequantize(tensors: Tensors) -> torch.Tensor:
        return dequantize_4bit(name, state, tensors)

    return files.weight(state.shape, state.quant_type, parts, None if fault else dequantize, fault)


def _eight_bits(name: str, module: str, files: Files) -> Logical:
    parts = [name, module + "SCB", *(part for part in (module + "weight_format",) if part in files.stored)]
    shape, fault = files.stored[name].shape, None
    if len(parts) == 3 and files.number(parts[2]) != 0:
        fault = (
            "it is stored in an 8-bit order of an old GPU, not row by row: save it again "
            "with a bitsandbytes of 0.45 or later"
        )
    elif len(shape) != 2 or math.prod(files.stored[parts[1]].shape) != shape[0]:
        fault = unlike("bitsandbytes' int8 (one maximum a row)", files, *parts[:2])

    def dequantize(tensors: Tensors) -> torch.Tensor:
        return dequantize_8bit(tensors[name], tensors[parts[1]])

    return files.weight(shape, "llm_int8", parts, None if fault else dequantize, fault)


def parse_state(name: str, raw: torch.Tensor) -> State4bit:
    """Read the JSON that bitsandbytes stores as a uint8 tensor.

    Raises CheckpointError when it is malformed.
    """
    origin = f"the quantization state of {name}"
    import torch

    if raw.dtype != torch.uint8 or raw.ndim != 1:
        raise CheckpointError(f"{origin} is no row of bytes: save the model again")
    found = parse_json(bytes(raw.tolist()), origin)
    if not isinstance(found, dict):
        raise CheckpointError(f"{origin} is no JSON object: save the model again")
    state = validate(found, _StoredState, origin)
    nested = state.nested_blocksize
    if state.blocksize < 1 or min(state.shape, default=0) < 0 or (nested is not None and nested < 1):
        raise CheckpointError(f"{origin} has a size that cannot be: save the model again")
    return State4bit(state.quant_type, tuple(state.shape), state.blocksize, nested, state.nested_offset or 0.0)


def dequantize_4bit(name: str, state: State4bit, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Float32 of the state's shape, from the tensors stored under the weight's name and STATE_SUFFIXES.

    Raises CheckpointError when the stored sizes do not fit the shape.
    """
    import torch

    packed = stored[name].reshape(-1)
    absmax = _absmax(name, state, stored)
    code = stored[name + ".quant_map"].float()
    count = math.prod(state.shape)
    if (
        packed.dtype != torch.uint8
        or packed.numel() != -(-count // 2)
        or absmax.numel() != -(-count // state.blocksize)
    ):
        raise CheckpointError(
            f"Tensor {name} has {packed.numel()} packed bytes and {absmax.numel()} block maxima, which do "
            f"not fit its shape {list(state.shape)} in blocks of {state.blocksize}: save the model again."
        )
    weight = torch.empty(count, dtype=torch.float32)
    # Whole blocks a piece, and an even number of numbers.
    step = max(1, CHUNK // (2 * state.blocksize)) * 2 * state.blocksize
    for start in range(0, count, step):
        stop = min(start + step, count)
        bytes_ = packed[start // 2 : -(-stop // 2)]
        piece = code[torch.stack((bytes_ >> 4, bytes_ & 0x0F), dim=-1).flatten().int()][: stop - start]
        scales = absmax[start // state.blocksize : -(-stop // state.blocksize)]
        weight[start:stop] = piece * scales.repeat_interleave(state.blocksize)[: stop - start]
    return weight.reshape(state.shape)


def _absmax(name: str, state: State4bit, stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
    absmax = stored[name + ".absmax"]
    if state.nested_blocksize is None:
        return absmax.float()
    code, scales = stored[name + ".nested_quant_map"].float(), stored[name + ".nested_absmax"].float()
    blocks = scales.repeat_interleave(state.nested_blocksize)[: absmax.numel()]
    return code[absmax.int()] * blocks + state.nested_offset


def dequantize_8bit(weight: torch.Tensor, row_maxima: torch.Tensor) -> torch.Tensor:
    """Float32 (rows, columns) from int8 (rows, columns) and the rows' maxima `SCB` (rows,)."""
    import torch

    scale = row_maxima.float().reshape(-1, 1) / 127.0
    result = torch.empty(weight.shape, dtype=torch.float32)
    for rows in row_chunks(weight.shape):
        torch.mul(weight[rows], scale[rows], out=result[rows])
    return result
