"""Safetensors: the header checked here, sentence by sentence; the tensors read by the safetensors package.

The header is read by itself because listing must not open gigabytes, and because every way a file can be bad
is to be said in one clear sentence. The format: 8 bytes little-endian length, that many bytes of JSON, then the
data.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError
from glmspectra.files import utf8_path
from glmspectra.json_files import explain

if TYPE_CHECKING:
    import torch

# Types of the format's specification: torch's name and the bits of a number. Those that torch has not are named
# and not read.
DTYPES = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),  # torch has it since 2.7
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F32": ("float32", 32),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
    "C128": ("safetensors:C128", 128),
    "F4": ("safetensors:F4", 4),
    "F6_E2M3": ("safetensors:F6_E2M3", 6),
    "F6_E3M2": ("safetensors:F6_E3M2", 6),
    "F8_E4M3FNUZ": ("safetensors:F8_E4M3FNUZ", 8),
    "F8_E5M2FNUZ": ("safetensors:F8_E5M2FNUZ", 8),
}
MAXIMUM_ELEMENTS = 2**48  # of one tensor; the largest matrix of a published model has 2^32
MAXIMUM_HEADER = 100_000_000  # bytes; the limit of the safetensors package itself


class SafetensorsFile:
    """One `.safetensors` file: `entries` and `metadata` from its header; `read` maps a tensor, copying nothing."""

    def __init__(self, path: Path):
        self.path = path
        header, self.metadata = read_header(path)
        self.entries = {
            name: StoredTensor(name, shape, DTYPES[dtype][0], stop - start, path.name)
            for name, (dtype, shape, start, stop) in header.items()
        }
        self._handle: Any = None

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, of its own dtype and shape, on the CPU, mapped from the file."""
        try:
            if self._handle is None:
                with utf8_path(self.path) as path:
                    self._handle = safe_open(path, framework="pt", device="cpu")
            found: torch.Tensor = self._handle.get_tensor(name)
            return found
        except AttributeError as error:  # of torch
            raise CheckpointError(
                f"Tensor {name} of {self.path} is of type {self.entries[name].dtype}, which this torch has not: "
                "install torch 2.7 or later."
            ) from error
        except SafetensorError as error:
            raise CheckpointError(
                f"Tensor {name} of {self.path} cannot be read ({error}): fetch the file again."
            ) from error

    def close(self) -> None:
        self._handle = None


def read_header(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], dict[str, str]]:
    """Read and check a header: name -> (dtype as written, shape, first and past-the-last byte within the data).

    Its metadata too, of which only texts are kept.

    Raises CheckpointError when the file is truncated, is no safetensors file, lists a tensor twice, or states
    a dtype or an extent that cannot be.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAXIMUM_HEADER):
            if size >= 8 and length <= MAXIMUM_HEADER:
                raise CheckpointError(
                    f"{path} is truncated: its header takes {length + 8} bytes, the file has {size}; fetch it again."
                )
            raise CheckpointError(
                f"{path} is not a safetensors file: its first 8 bytes are no header length; fetch it again."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_distinct)
    except _ListedTwice as error:
        raise CheckpointError(
            f"{path} lists the tensor {error} twice in its header: which one counts cannot be known."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header is no JSON ({error}); fetch it again."
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is no JSON object; fetch it again.")
    metadata = header.pop("__metadata__", None)
    entries = {name: _checked_entry(path, name, entry) for name, entry in header.items()}
    end = 8 + length + max((stop for *_, stop in entries.values()), default=0)
    if size < end:
        raise CheckpointError(
            f"{path} is truncated: its header promises {end} bytes and the file has {size}; fetch it again."
        )
    if size > end:
        raise CheckpointError(f"{path} has {size - end} bytes after its last tensor: it is not sound; fetch it again.")
    stated = metadata.items() if isinstance(metadata, dict) else ()
    return entries, {name: value for name, value in stated if isinstance(value, str)}


def _checked_entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        checked = _Entry.model_validate(entry, strict=True)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: the header entry of tensor {name} is malformed ({explain(error, 2)}): fetch the file again."
        ) from None
    dtype, shape, (start, stop) = checked.dtype, tuple(checked.shape), checked.data_offsets
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype}, which is not one of {', '.join(DTYPES)}.")
    count = math.prod(shape)
    if count > MAXIMUM_ELEMENTS:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(shape)} has more than 2^48 numbers: fetch it again."
        )
    due = -(-count * DTYPES[dtype][1] // 8)
    if stop - start != due:
        raise CheckpointError(
            f"{path}: tensor {name} of shape {list(shape)} and dtype {dtype} takes {due} bytes, "
            f"but the header gives it {stop - start}: shape or dtype is wrong there."
        )
    return dtype, shape, start, stop


class _Entry(BaseModel):
    """One tensor of a header."""

    model_config = ConfigDict(extra="forbid")
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class _ListedTwice(Exception):
    pass


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _ListedTwice(key)
        found[key] = value
    return found
