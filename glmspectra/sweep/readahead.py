"""Reads the next matrix while the current one is computed, within a ceiling of memory."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from glmspectra.spectra.transfer import to_device

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint, Part, TensorRecord

# Anonymous bytes that the current and the next matrix may hold together. What is stored plainly is mapped from its file
# and counts nothing; what is quantized is dequantized into memory of its own, and two of the largest (ChatGLM2's
# embedding in float32 is 1.07 GB) would leave no room for the Gram matrix and its eigensolver below the promised 2 GiB.
READ_AHEAD_CEILING = 768 * 2**20

_PAGE = 4096


def read_ahead(
    checkpoint: "Checkpoint", records: Sequence["TensorRecord"], device: str = "cpu"
) -> Iterator[tuple["TensorRecord", "Part", torch.Tensor]]:
    """Yield (record, matrix, tensor on `device`) in order, one thread reading the next matrix meanwhile.

    A record has one matrix, `whole`; a stack of experts has one an expert, each read alone. The tensor is valid until
    the next one is asked for; its mapped pages are given back then. Errors of reading (CheckpointError) are raised
    where the tensor would have been yielded, after those before it.
    """
    reader = ThreadPoolExecutor(1, thread_name_prefix="glmspectra-read")
    # Its own stream lets the next matrix travel to the device while the current one is computed there.
    stream = torch.cuda.Stream(device) if device != "cpu" else None
    matrices = [(record, index) for record in records for index in range(max(1, record.experts))]
    try:
        coming: Future[torch.Tensor] | None = None
        for position, (record, index) in enumerate(matrices):
            tensor = (coming or reader.submit(_read, checkpoint, record, index, device, stream)).result()
            coming = None
            if position + 1 < len(matrices):
                following = matrices[position + 1]
                if anonymous_bytes(record) + anonymous_bytes(following[0]) <= READ_AHEAD_CEILING:
                    coming = reader.submit(_read, checkpoint, *following, device, stream)
            yield record, record.matrix_parts[index], tensor
            del tensor
            checkpoint.release(record.name, index if record.experts else None)
    finally:
        reader.shutdown(wait=True, cancel_futures=True)


def anonymous_bytes(record: "TensorRecord") -> int:
    """Bytes of own memory that a matrix takes once read: float32 for a quantized one, none for a mapped one."""
    return 0 if record.quantization is None else 4 * record.rows * record.columns


def _read(
    checkpoint: "Checkpoint", record: "TensorRecord", index: int, device: str, stream: torch.cuda.Stream | None
) -> torch.Tensor:
    tensor = checkpoint.read_matrix(record, index)
    if stream is not None:
        with torch.cuda.stream(stream):
            return to_device(tensor, torch.device(device))  # complete on return: it waits for the stream
    if record.quantization is None and tensor.is_contiguous() and tensor.numel():
        # A mapped tensor is not read yet: touching one byte a page brings it in, outside the interpreter's
        # lock.
        tensor.view(-1).view(torch.uint8)[::_PAGE].max()
    return tensor
