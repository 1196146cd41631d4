"""GGUF, by the `gguf` package (an extra).

Its reader maps the file, its tables dequantize every published block format.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors
from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    import torch

# GGUF types that are torch dtypes as they stand; all others are blocks of quantized numbers.
PLAIN = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
# What the metadata call by the architecture's name and config.json by these words.
CONFIG_WORDS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
}


def recognize(name: str, files: Files) -> Logical | None:
    """The weight of a tensor of quantized blocks."""
    entry = files.stored[name]
    if not entry.dtype.startswith("gguf:"):
        return None
    ggml_type, shape = entry.dtype.removeprefix("gguf:"), entry.shape

    def blocks(tensors: Tensors) -> torch.Tensor:
        return dequantize(tensors[name], ggml_type, shape[-2:])  # of a stack, one expert

    return Logical(shape, "uint8", entry.nbytes, entry.file, (name,), entry.dtype, blocks)


class GgufFile:
    """One GGUF file. Shapes are as torch counts them (rows first; GGUF writes columns first).

    Attributes:
        entries: by GGUF's own names (`blk.0.attn_q.weight`); the dtype of a quantized one is such as
            `gguf:Q4_1`.
        config: `model_type` and sizes from the metadata, in the words of a config.json.
    """

    def __init__(self, path: Path):
        self.path = path
        self._reader = _open(path)
        size = path.stat().st_size
        self.entries: dict[str, StoredTensor] = {}
        self._index: dict[str, int] = {}
        for index, tensor in enumerate(self._reader.tensors):
            ggml_type = tensor.tensor_type.name
            shape = tuple(int(n) for n in reversed(tensor.shape))
            if int(tensor.data_offset) + int(tensor.n_bytes) > size:
                raise CheckpointError(
                    f"{path} is truncated: tensor {tensor.name} ends after the file does; fetch it again."
                )
            dtype = PLAIN.get(ggml_type, f"gguf:{ggml_type}")
            self.entries[tensor.name] = StoredTensor(tensor.name, shape, dtype, int(tensor.n_bytes), path.name)
            self._index[tensor.name] = index
        try:
            self.config = _config(self._reader)
        except (ValueError, TypeError, IndexError) as error:  # UnicodeDecodeError among them
            raise CheckpointError(f"{path} holds facts that cannot be read ({error}): fetch it again.") from error

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, mapped.

        Of its own dtype and shape, or the bytes of quantized blocks row by row.
        """
        import torch

        data = self._reader.tensors[self._index[name]].data
        tensor = torch.from_numpy(np.asarray(data))
        if self.entries[name].dtype == "bfloat16":
            tensor = tensor.view(torch.bfloat16)
        if self.entries[name].dtype.startswith("gguf:"):
            return tensor
        return tensor.reshape(self.entries[name].shape)

    def close(self) -> None:
        """The mapping goes when the last tensor over it does.

        The reader is kept, since reading on is allowed.
        """


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtraError("gguf", f"Reading {path.name}") from None
    check_header(path)
    try:
        return GGUFReader(path, "c")  # a private mapping: torch wants one that could be written to
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no sound GGUF file ({error}): fetch it again.") from error


# Bytes of a value by GGUF's number of its type; 8 is a string, 9 an array (github.com/ggml-org/ggml, docs/gguf.md).
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_SMALLEST_TENSOR = 24  # bytes that the entry of one tensor takes at least


def check_header(path: Path) -> None:
    """See that no count in the header promises more than the file's size can hold.

    The gguf package believes them, and would loop over 2^60 elements that are not there.

    Raises:
        CheckpointError: One does.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
        if len(start) < 24 or start[:4] != b"GGUF" or start[4:6] == b"\0\0":
            return  # no GGUF file, or one of a big-endian machine: the package says so
        tensors, pairs = struct.unpack("<QQ", start[8:])
        if tensors * _SMALLEST_TENSOR > size or pairs * 13 > size:
            raise CheckpointError(
                f"{path} promises {tensors:,} tensors and {pairs:,} facts in {size:,} bytes: fetch it again."
            )
        for _ in range(pairs):
            _skip(file, _number(file, 8, path, size), path, size)
            _skip_value(file, _number(file, 4, path, size), path, size)


def _skip_value(file: BinaryIO, ggml_type: int, path: Path, size: int) -> None:
    if ggml_type == _STRING:
        _skip(file, _number(file, 8, path, size), path, size)
    elif ggml_type == _ARRAY:
        inner, count = _number(file, 4, path, size), _number(file, 8, path, size)
        if inner == _ARRAY:
            raise CheckpointError(f"{path} holds an array of arrays, which no GGUF file needs: fetch it again.")
        if inner != _STRING:
            _skip(file, count * _WIDTHS.get(inner, 1), path, size)
            return
        if count * 8 > size:
            _skip(file, count * 8, path, size)
        for _ in range(count):
            _skip(file, _number(file, 8, path, size), path, size)
    elif ggml_type in _WIDTHS:
        _skip(file, _WIDTHS[ggml_type], path, size)
    else:
        raise CheckpointError(f"{path} holds a value of the unknown type {ggml_type}: it is no sound GGUF file.")


def _number(file: BinaryIO, width: int, path: Path, size: int) -> int:
    content = file.read(width)
    if len(content) < width:
        raise CheckpointError(f"{path} is truncated: its header goes on after its {size:,} bytes; fetch it again.")
    return int.from_bytes(content, "little")


def _skip(file: BinaryIO, count: int, path: Path, size: int) -> None:
    if count > size - file.tell():
        raise CheckpointError(
            f"{path} is truncated, or no sound GGUF file: its header promises {count:,} bytes where {size:,} are all."
        )
    file.seek(count, 1)


def _config(reader: Any) -> dict[str, Any]:
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        return {}
    name = _contents(architecture, "general.architecture")
    config: dict[str, Any] = {"model_type": name}
    for key, word in CONFIG_WORDS.items():
        field = reader.get_field(f"{name}.{key}")
        if field is not None:
            config[word] = _contents(field, key)
    return config


def _contents(field: Any, key: str) -> Any:
    try:
        return field.contents()
    except (ValueError, IndexError, TypeError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(f"The key {key} of the GGUF header is damaged ({error}): fetch the file again.") from None


def dequantize(blocks: torch.Tensor, ggml_type: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Float32 of `shape` from the bytes of quantized blocks.

    CheckpointError for a type the gguf package cannot undo.
    """
    import torch
    from gguf import GGMLQuantizationType, quants

    rows = blocks.reshape(-1, blocks.shape[-1]).numpy()
    result = torch.empty(rows.shape[0], shape[-1], dtype=torch.float32)
    try:
        for piece in row_chunks(result.shape):
            result[piece] = torch.from_numpy(quants.dequantize(rows[piece], GGMLQuantizationType[ggml_type]))
    except NotImplementedError as error:
        raise CheckpointError(
            f"The gguf package cannot dequantize {ggml_type} ({error}): take another quantization."
        ) from None
    return result.reshape(shape)
