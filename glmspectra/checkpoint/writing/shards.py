"""Writes safetensors shards tensor by tensor, from mapped files, holding none of them.

The safetensors package writes a file from tensors that are all in memory at once; the format is simple enough to be
streamed: a length, a JSON header known beforehand, then the tensors' bytes. What is written is read back through the
package and compared by a checksum of each tensor.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.formats import mapped
from glmspectra.checkpoint.formats.safetensors_file import DTYPES
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import utf8_path, write_atomically

INDEX = "model.safetensors.index.json"
_HEADER_NAMES = {getattr(torch, name): written for written, (name, _) in DTYPES.items() if hasattr(torch, name)}
# A write() may take less than it is given, and at most 2 GiB; pieces also let mapped pages go as they are written.
PIECE = 64 << 20
GIGABYTE = 10**9  # of --shard-size, as huggingface counts; not 2^30
SHARD_BYTES = 5 * GIGABYTE


def shard_bytes(gigabytes: float) -> int:
    """Bytes of `--shard-size`. Raises RequestError where it is no size."""
    if not 0 < gigabytes < float("inf"):
        raise RequestError(f"--shard-size {gigabytes:g} is no size: give gigabytes above 0.")
    return max(1, round(gigabytes * GIGABYTE))


@dataclass(frozen=True)
class Planned:
    """A tensor to write: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


def plan_shards(tensors: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Cut tensors, in their order, into shards of at most `limit` bytes; a larger tensor gets one of its own.

    Raises:
        CheckpointError: A name or a dtype that a safetensors file cannot hold.
    """
    shards: list[list[Planned]] = []
    size = 0
    for tensor in tensors:
        _check(tensor)
        if not shards or (size + tensor.nbytes > limit and shards[-1]):
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _check(tensor: Planned) -> None:
    if tensor.dtype not in _HEADER_NAMES:
        raise CheckpointError(f"Tensor {tensor.name} is {tensor.dtype}, which a safetensors file cannot hold.")
    try:
        tensor.name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"The name {tensor.name!r} of a tensor is not text that UTF-8 can hold.") from None
    if tensor.name == "__metadata__":
        raise CheckpointError("A tensor is called __metadata__, which a safetensors file keeps for itself.")


def shard_names(count: int) -> list[str]:
    """The names that transformers gives the shards of a model of so many."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_shard(
    path: Path,
    tensors: Iterable[Planned],
    read: Callable[[str], torch.Tensor],
    release: Callable[[str], None],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> dict[str, bytes]:
    """Write one safetensors file; it is complete under its name or not there at all.

    Args:
        path: The file.
        tensors: What to write.
        read: Gives a tensor by name, of the planned shape and dtype; called once for each.
        release: Called with the name after its bytes are written.
        on_bytes: Called with the number of bytes just written.

    Returns:
        A checksum of the bytes of each tensor, for `verify_shard`.

    Raises:
        CheckpointError: `read` gives another shape or dtype than planned.
        StoreError: The disk is full or not writable; nothing is left of the file.
    """
    # By falling size of a number, so that every tensor lies on a multiple of its own: readers map them in place.
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
    checksums: dict[str, bytes] = {}

    def write(file: BinaryIO) -> None:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for planned in ordered:
            checksums[planned.name] = _write_tensor(file, planned, read(planned.name), on_bytes)
            release(planned.name)

    write_atomically(path, write)
    return checksums


def _write_tensor(file: BinaryIO, planned: Planned, tensor: torch.Tensor, on_bytes: Callable[[int], None]) -> bytes:
    if tuple(tensor.shape) != planned.shape or tensor.dtype != planned.dtype:
        raise CheckpointError(
            f"Tensor {planned.name} was read as {list(tensor.shape)} {tensor.dtype} where "
            f"{list(planned.shape)} {planned.dtype} stood in the header: the file changed meanwhile; begin again."
        )
    checksum = hashlib.blake2b(digest_size=16)
    for piece in _pieces(tensor):
        file.write(piece)
        checksum.update(piece)
        on_bytes(len(piece))
    return checksum.digest()


def _pieces(tensor: torch.Tensor) -> Iterable[memoryview]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, data.numel(), PIECE):
        yield data[start : start + PIECE].numpy().data


def verify_shard(path: Path, tensors: Iterable[Planned], checksums: Mapping[str, bytes]) -> None:
    """Read a shard back through the safetensors package and compare every tensor with what `write_shard` wrote.

    Raises:
        CheckpointError: The file cannot be read, or a tensor differs; the first one is named.
    """
    try:
        with utf8_path(path) as name, safe_open(name, framework="pt", device="cpu") as file:
            for planned in tensors:
                written = file.get_tensor(planned.name)
                checksum = hashlib.blake2b(digest_size=16)
                for piece in _pieces(written):
                    checksum.update(piece)
                mapped.release(written)
                found = (written.dtype, tuple(written.shape), checksum.digest())
                if found != (planned.dtype, planned.shape, checksums[planned.name]):
                    raise CheckpointError(
                        f"Tensor {planned.name} of {path} is not what was to be written: check the disk."
                    )
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read back ({error}): check the disk.") from error
