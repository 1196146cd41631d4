"""HQQ: `X.W_q` with its meta-data as tensors beside it (`X.scale`, `X.zero`, `X.nbits`, `X.shape` ...).

The weight, reshaped to groups along one axis, is (q - zero) * scale. Numbers are packed along the first axis: the first
half of the rows of 4 bits in the high halves of the bytes, the second half in the low ones, and so on (mobiusml/hqq,
core/bitpack.py); three bits go ten to an int32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmspectra.checkpoint.formats.logical import Dequantize, Files, Logical, Tensors, unlike

if TYPE_CHECKING:
    import torch

# Bits of a number -> dtype of the packed tensor, numbers in one of its elements, and the bits that each takes there.
PACKING = {
    8: ("uint8", 1, 8),
    6: ("uint8", 1, 8),
    5: ("uint8", 1, 8),
    4: ("uint8", 2, 4),
    3: ("int32", 10, 3),
    2: ("uint8", 4, 2),  # 1.58 bits too
    1: ("uint8", 8, 1),
}
WORDS = ("scale", "zero", "nbits", "group_size", "shape", "axis", "packing")
# What HQQ writes beside them, and what has no effect on the weight.
REST = ("view_as_float", "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero", "channel_wise", "optimize")
FURTHER = ("round_zero", "offload_meta", "encoded_state_dict", "stores_quant_config", "scale_q", "zero_q")
# Scales and zero points that are quantized in their turn (HQQ of before 0.2.8) have meta-data of the same words.
NESTED = ("meta_scale.", "meta_zero.")
NEEDED = ("nbits", "shape", "axis")


@dataclass(frozen=True)
class _Part:
    """Numbers of a weight, or its scales: their shape, and how they are read."""

    shape: tuple[int, ...]
    read: Dequantize


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a `W_q`."""
    if name != "W_q" and not name.endswith(".W_q"):
        return None
    module = name.removesuffix("W_q")
    words = [*WORDS, *REST, *FURTHER, *(nested + word for nested in NESTED for word in (*WORDS, *REST))]
    parts = [name, *(module + word for word in words if module + word in files.stored)]
    entry = files.stored[name]
    if absent := _absent(files, module):
        fault = f"it is packed by HQQ and {absent} is missing; fetch the model again"
        return files.weight(entry.shape, "hqq", parts, fault=fault)
    whole = _part(files, module, name)
    shape, label = _shape(files, module), f"hqq:{_bits(files, module):g}bit"
    if whole is None or len(shape) != 2:
        return files.weight(shape, label, parts, fault=unlike("HQQ", files, *parts[:6]))
    return files.weight(shape, label, parts, whole.read)


def flat(layers: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of HQQ's own file, `qmodel.pt`, under the names that its safetensors have.

    The file holds a dictionary a layer, with meta-data as Python's numbers, which become tensors as HQQ itself encodes
    them (core/utils.py).

    Args:
        layers: Layer -> its dictionary.
    """
    found: dict[str, Any] = {}
    for layer, content in layers.items():
        meta = content.get("meta")  # a dictionary of its own in hqq of before 0.2
        for key, value in _pairs(content | meta if isinstance(meta, dict) else content):
            if (encoded := _encoded(value)) is not None:
                found[f"{layer}.{key}" if layer else key] = encoded
    return found


def is_own_file(loaded: Mapping[Any, Any]) -> bool:
    """Whether these are the layers of a `qmodel.pt`."""
    dictionaries = all(isinstance(layer, dict) for layer in loaded.values())
    return dictionaries and any("W_q" in layer for layer in loaded.values())


def _pairs(layer: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of what a layer holds, without the nesting of quantized scales."""
    for key, value in layer.items():
        if f"{key}." in NESTED and isinstance(value, dict):
            yield from ((f"{key}.{inner}", number) for inner, number in value.items())
        elif key == "zero_scale" and hasattr(value, "is_floating_point") and len(value) == 2:
            # Both in one tensor, to be moved to a GPU at once.
            ending = "_q" if not value.is_floating_point() else ""
            yield from ((f"zero{ending}", value[0]), (f"scale{ending}", value[1]))
        else:
            yield str(key), value


def _encoded(value: Any) -> torch.Tensor | None:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, bool):
        return torch.tensor(int(value), dtype=torch.uint8)
    if isinstance(value, int | float) and abs(value) < 2**31:
        return torch.tensor(value, dtype=torch.int32 if isinstance(value, int) else torch.float32)
    if isinstance(value, tuple | list) and all(isinstance(side, int) and 0 <= side < 2**48 for side in value):
        return torch.tensor(list(value), dtype=torch.int64)
    return None  # names of types and of packings, which the numbers tell


def _absent(files: Files, module: str) -> str | None:
    """The first part that is missing, by its whole name."""
    for word in ("scale", "zero"):
        if module + word in files.stored:
            continue
        if f"{module}{word}_q" not in files.stored:
            return module + word
        needed = [f"{module}meta_{word}.{key}" for key in (*NEEDED, "scale", "zero")]
        if absent := next((key for key in needed if key not in files.stored), None):
            return absent
    return next((module + word for word in NEEDED if module + word not in files.stored), None)


def _bits(files: Files, module: str) -> float:
    return round(files.number(module + "nbits"), 2)


def _shape(files: Files, module: str) -> tuple[int, ...]:
    return tuple(int(side) for side in files.numbers(module + "shape"))


def _part(files: Files, module: str, packed: str) -> _Part | None:
    """The numbers that `packed` holds, dequantized by the meta-data of `module`; None where these do not fit."""
    entry, shape = files.stored[packed], _shape(files, module)
    count, axis = math.prod(shape), int(files.number(module + "axis"))
    storage, share, width = PACKING.get(math.ceil(_bits(files, module)), ("", 1, 8))
    scale, zero = (_scales(files, module, word) for word in ("scale", "zero"))
    if scale is None or zero is None or scale.shape != zero.shape or axis not in (0, 1):
        return None
    viewed = f"{module}view_as_float" in files.stored and files.number(f"{module}view_as_float") == 1
    whole = bool(storage) and (entry.dtype.startswith(("float", "bfloat")) if viewed else entry.dtype == storage)
    single = math.prod(scale.shape) == 1
    fit = whole and len(entry.shape) == len(shape) == 2 and (single or len(scale.shape) == 2)
    if not fit or (not single and (scale.shape[axis] != 1 or not scale.shape[1 - axis])):
        return None
    rows = shape[0] if single and count else 0
    if not single:
        rows = scale.shape[0] if axis == 1 else count // scale.shape[1]
    held = entry.nbytes // (4 if storage == "int32" else 1) * share  # numbers that are packed, padding included
    if not rows or count % rows or entry.shape[0] != -(-rows // share) or held < count:
        return None

    def read(tensors: Tensors) -> torch.Tensor:
        import torch

        words = tensors[packed].contiguous().view(getattr(torch, storage)) if viewed else tensors[packed]
        numbers = _unpack(words, share, width)[:rows]
        return ((numbers - zero.read(tensors)) * scale.read(tensors)).reshape(shape)

    return _Part(shape, read)


def _scales(files: Files, module: str, word: str) -> _Part | None:
    """Scales or zero points: stored as numbers, or quantized in their turn."""
    if (entry := files.stored.get(module + word)) is not None:
        floating = entry.dtype.startswith(("float", "bfloat"))
        return _Part(entry.shape, lambda tensors: tensors[entry.name].float()) if floating else None
    return _part(files, f"{module}meta_{word}.", f"{module}{word}_q")


def _unpack(packed: torch.Tensor, share: int, width: int) -> torch.Tensor:
    """Float32 numbers; piece k of the rows lies in the k-th bits from the top."""
    import torch

    if share == 1:
        return packed.float()
    mask = 2**width - 1
    pieces = [(packed >> (width * (share - 1 - piece))) & mask for piece in range(share)]
    return torch.cat(pieces).float()
