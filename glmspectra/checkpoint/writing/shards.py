"""Writes safetensors shards tensor by tensor, from mapped files, holding none of them.

The safetensors package writes a file from tensors that are all in memory at once; the form is simple enough
to be streamed: a length, a JSON header known beforehand, then the tensors' bytes. What is written is read
back through the package and compared.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open

from glmspectra.checkpoint.formats.safetensors_file import DTYPES
from glmspectra.errors import CheckpointError

_HEADER_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# A write() may take less than it is given, and at most 2 GiB; pieces also let mapped pages go as they are
# written.
PIECE = 64 << 20


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


def plan_shards(tensors: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Cut tensors, in their order, into shards of at most `limit` bytes.

    A larger tensor gets a shard of its own.
    """
    shards: list[list[Planned]] = []
    size = 0
    for tensor in tensors:
        if not shards or (size + tensor.nbytes > limit and shards[-1]):
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_shard(
    path: Path,
    tensors: Iterable[Planned],
    read: Callable[[str], torch.Tensor],
    release: Callable[[str], None],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write one safetensors file; it is complete under its name or not there at all.

    Args:
        path: the file; it is written under a name with `.part` first, synced, and renamed.
        tensors: what to write.
        read: gives a tensor by name, contiguous, of the planned shape and dtype.
        release: is called with the name after its bytes are written.
        on_bytes: is told how many bytes were just written.

    Raises:
        CheckpointError: `read` gives another shape or dtype than planned.
        OSError: the disk is full or not writable; the part file is removed.
    """
    # By falling size of a number, so that every tensor lies on a multiple of its own: readers map them in
    # place.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": _HEADER_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for planned in ordered:
                _write_tensor(file, planned, read(planned.name), on_bytes)
                release(planned.name)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_tensor(file: BinaryIO, planned: Planned, tensor: torch.Tensor, on_bytes: Callable[[int], None]) -> None:
    if tuple(tensor.shape) != planned.shape or tensor.dtype != planned.dtype:
        raise CheckpointError(
            f"Tensor {planned.name} was read as {list(tensor.shape)} {tensor.dtype} where "
            f"{list(planned.shape)} {planned.dtype} stood in the header: the file changed meanwhile; begin again."
        )
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, data.numel(), PIECE):
        piece = data[start : start + PIECE]
        file.write(piece.numpy().data)
        on_bytes(piece.numel())


def verify_shard(
    path: Path,
    tensors: Iterable[Planned],
    read: Callable[[str], torch.Tensor],
    release: Callable[[str], None],
) -> None:
    """Read a shard back through the safetensors package and compare every tensor bit for bit.

    Raises CheckpointError naming the first tensor that differs.
    """
    from glmspectra.checkpoint.formats import mapped

    with safe_open(path, framework="pt", device="cpu") as file:
        for planned in tensors:
            written = file.get_tensor(planned.name)
            source = read(planned.name)
            same = written.dtype == source.dtype and written.shape == source.shape and _same_bits(written, source)
            mapped.release(written)
            release(planned.name)
            if not same:
                raise CheckpointError(f"Tensor {planned.name} of {path} is not what was to be written: check the disk.")


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equality of bytes: NaN equals itself, and -0 is not 0."""
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))
