"""Rewrites a checkpoint as sharded safetensors with an index, without holding the model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from glmspectra.checkpoint.formats.reparametrized import REFUSED_PARTS, REMADE
from glmspectra.checkpoint.formats.settings import BESIDE, STATED
from glmspectra.checkpoint.locate import INDEXES, NOT_WEIGHTS, SUFFIXES
from glmspectra.checkpoint.reader import Checkpoint
from glmspectra.checkpoint.writing.casting import cast
from glmspectra.checkpoint.writing.folder import PROGRESS, Tensors, Written, write_checkpoint
from glmspectra.checkpoint.writing.shards import SHARD_BYTES, Planned
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.json_files import read_object, write_json

FLOATING = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

# Formats whose meaning stands beside the tensors: in the header's metadata, or as Python's values in a pickle.
BOUND_TO_FILE = {"safetensors": ("torchao",), "bin": ("hqq",)}


def convert(
    checkpoint: Checkpoint,
    out: Path,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Written:
    """Rewrite an opened checkpoint into the folder `out`; interrupted, the same call goes on.

    Args:
        checkpoint: Of format `safetensors` or `bin`.
        out: A folder that does not exist yet, or is empty.
        dtype: None writes every tensor as stored, bit for bit, quantized ones in their packed format;
            `float16`, `bfloat16` or `float32` dequantizes, and casts every floating point tensor.
        shard_bytes: A shard holds no more, unless one tensor alone does.
        on_bytes: Called with the number of bytes just written.

    Raises:
        RequestError: `out` holds something, another process writes it, or the format cannot be converted.
        CheckpointError: A tensor cannot be read, does not fit `dtype`, or was not written as it is, or its file changed
            meanwhile.
        StoreError: The file system refuses; finished shards are kept.
    """
    _check_request(checkpoint, out, dtype)
    request = {"source": checkpoint.fingerprint, "to": "safetensors", "dtype": dtype}
    return write_checkpoint(
        out,
        _sources(checkpoint, dtype),
        shard_bytes,
        lambda folder: _copy_others(checkpoint, folder, dtype),
        "convert",
        request,
        on_bytes,
    )


def _check_request(checkpoint: Checkpoint, out: Path, dtype: str | None) -> None:
    if checkpoint.format not in ("safetensors", "bin"):
        raise RequestError(
            f"{checkpoint.path} is of format {checkpoint.format}; only safetensors and .bin are converted."
        )
    if dtype is not None and dtype not in FLOATING:
        raise RequestError(f"--dtype {dtype} is none of {', '.join(FLOATING)}.")
    labels = (record.quantization or "" for record in checkpoint.tensors.values())
    bound = next((label for label in labels if label.startswith(BOUND_TO_FILE[checkpoint.format])), None)
    if dtype is None and bound is not None:
        raise RequestError(
            f"{checkpoint.path} is stored as {bound}, which only its own kind of file holds whole; name a --dtype, "
            "which dequantizes it."
        )
    if out.resolve() == checkpoint.folder.resolve():
        raise RequestError(f"{out} is the checkpoint itself: name another folder.")


def _sources(checkpoint: Checkpoint, dtype: str | None) -> Tensors:
    """What is to be written, in depth order, and how it is read."""
    if dtype is None:
        order = {name: i for i, name in enumerate(checkpoint.tensors)}
        planned = [
            Planned(name, entry.shape, getattr(torch, entry.dtype), entry.nbytes)
            for name, entry in sorted(checkpoint.stored.items(), key=lambda item: order.get(item[0], len(order)))
        ]
        return Tensors(planned, checkpoint.read_stored, checkpoint.release, checkpoint.check_unchanged)
    wanted = FLOATING[dtype]

    def read(name: str) -> torch.Tensor:
        tensor = checkpoint.read(name)
        return cast(tensor, wanted, name) if checkpoint.tensors[name].floating else tensor

    planned = []
    for record in checkpoint.tensors.values():
        if record.quantization in REMADE:
            raise CheckpointError(f"{record.name}: {REFUSED_PARTS.format(record.quantization)}")
        target = wanted if record.floating else getattr(torch, record.dtype)
        planned.append(Planned(record.name, record.shape, target, _count(record.shape) * target.itemsize))
    return Tensors(planned, read, checkpoint.release, checkpoint.check_unchanged)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _copy_others(checkpoint: Checkpoint, target: Path, dtype: str | None) -> list[str]:
    """Copy configuration, tokenizer and other files that are no weights; config.json states a new dtype."""
    weights = {index for index, _ in INDEXES} | set(checkpoint.file_sizes)
    copied = []
    for path in sorted(checkpoint.folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.name in weights or path.name == PROGRESS:
            continue
        if path.suffix in SUFFIXES or NOT_WEIGHTS.match(path.name) or (dtype is not None and path.name in BESIDE):
            continue  # another format of the same weights, a trainer's state, or that they were quantized
        shutil.copyfile(path, target / path.name)
        copied.append(path.name)
    config = target / "config.json"
    if dtype is not None and config.is_file():
        content = read_object(config)
        for part in (content, *(value for value in content.values() if isinstance(value, dict))):
            for key in STATED:
                part.pop(key, None)
        content.pop("quantization_bit", None)
        content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
        write_json(config, content)
    return copied
