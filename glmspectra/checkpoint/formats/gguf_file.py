"""GGUF, by the `gguf` package (an extra).

Its reader maps the file, its tables dequantise every published block form.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from glmspectra.checkpoint.formats.chatglm_int import row_chunks
from glmspectra.checkpoint.formats.logical import Files, Logical, Tensors
from glmspectra.checkpoint.records import StoredTensor
from glmspectra.errors import CheckpointError, MissingExtraError

# GGUF types that are torch dtypes as they stand; all others are blocks of quantised numbers.
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


def recognise(name: str, files: Files) -> Logical | None:
    """The weight of a tensor of quantised blocks."""
    entry = files.stored[name]
    if not entry.dtype.startswith("gguf:"):
        return None
    kind, shape = entry.dtype.removeprefix("gguf:"), entry.shape

    def blocks(tensors: Tensors) -> torch.Tensor:
        return dequantize(tensors[name], kind, shape[-2:])  # of a stack, one expert

    return Logical(shape, "uint8", entry.nbytes, entry.file, (name,), entry.dtype, blocks)


class GgufFile:
    """One GGUF file. Shapes are as torch counts them (rows first; GGUF writes columns first).

    Attributes:
        entries: by GGUF's own names (`blk.0.attn_q.weight`); the dtype of a quantised one is such as
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
            kind = tensor.tensor_type.name
            shape = tuple(int(n) for n in reversed(tensor.shape))
            if int(tensor.data_offset) + int(tensor.n_bytes) > size:
                raise CheckpointError(
                    f"{path} is truncated: tensor {tensor.name} ends after the file does; fetch it again."
                )
            dtype = PLAIN.get(kind, f"gguf:{kind}")
            self.entries[tensor.name] = StoredTensor(tensor.name, shape, dtype, int(tensor.n_bytes), path.name)
            self._index[tensor.name] = index
        self.config = _config(self._reader)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, mapped.

        Of its own dtype and shape, or the bytes of quantised blocks row by row.
        """
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
        raise MissingExtraError("gguf", "gguf", f"Reading {path.name}") from None
    try:
        return GGUFReader(path, "c")  # a private mapping: torch wants one that could be written to
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no sound GGUF file ({error}): fetch it again.") from error


def _config(reader: Any) -> dict[str, Any]:
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        return {}
    name = architecture.contents()
    config: dict[str, Any] = {"model_type": name}
    for key, word in CONFIG_WORDS.items():
        field = reader.get_field(f"{name}.{key}")
        if field is not None:
            config[word] = field.contents()
    return config


def dequantize(blocks: torch.Tensor, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Float32 of `shape` from the bytes of quantised blocks.

    CheckpointError for a type the gguf package cannot undo.
    """
    from gguf import GGMLQuantizationType, quants

    rows = blocks.reshape(-1, blocks.shape[-1]).numpy()
    result = torch.empty(rows.shape[0], shape[-1], dtype=torch.float32)
    try:
        for piece in row_chunks(result.shape):
            result[piece] = torch.from_numpy(quants.dequantize(rows[piece], GGMLQuantizationType[kind]))
    except NotImplementedError as error:
        raise CheckpointError(
            f"The gguf package cannot dequantise {kind} ({error}): take another quantisation."
        ) from None
    return result.reshape(shape)
