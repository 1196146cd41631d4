"""One weight as a stream of float64 blocks of its longer side, on the CPU or on a CUDA device.

All the linear algebra of this package sees a matrix `A` of shape (long, short) with long >= short: the weight itself
when it is tall, its transpose when it is wide. Singular values are the same; memory is bounded by one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

# 1024 x 4096 float64 is 32 MiB: large enough for level-3 speed, small beside the 128 MiB Gram matrix of ChatGLM2.
BLOCK_BYTES = 32 * 2**20


class LongView:
    """A weight of shape (rows, cols), or a range of its rows, seen as A of shape (long, short)."""

    def __init__(self, weight: torch.Tensor):
        """`weight`: 2-D, any floating dtype, on the device where the work is to be done."""
        self.weight = weight
        self.tall = weight.shape[0] >= weight.shape[1]
        self.long, self.short = (weight.shape[0], weight.shape[1]) if self.tall else (weight.shape[1], weight.shape[0])

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def block_length(self, dtype: torch.dtype = torch.float64) -> int:
        return max(1, min(self.long, BLOCK_BYTES // (dtype.itemsize * max(1, self.short))))

    def blocks(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (start, stop, A[start:stop]) with the block converted to `dtype`.

        The block is a view of one buffer that the next step overwrites.
        """
        length = self.block_length(dtype)
        shape = (length, self.short) if self.tall else (self.short, length)
        buffer = torch.empty(shape, dtype=dtype, device=self.device)
        for start in range(0, self.long, length):
            stop = min(start + length, self.long)
            if self.tall:
                block = buffer[: stop - start]
                block.copy_(self.weight[start:stop])
            else:
                # A strided sub-block would make BLAS copy, so the last, narrower block takes the head of the buffer.
                block = buffer.view(-1)[: self.short * (stop - start)].view(self.short, stop - start)
                block.copy_(self.weight[:, start:stop])
                block = block.T
            yield start, stop, block

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """A @ right for `right` of shape (short, p): shape (long, p), in the dtype of `right`."""
        product = torch.empty((self.long, right.shape[1]), dtype=right.dtype, device=self.device)
        for start, stop, block in self.blocks(right.dtype):
            torch.mm(block, right, out=product[start:stop])
        return product

    def transposed_times(self, left: torch.Tensor) -> torch.Tensor:
        """A^T @ left for `left` of shape (long, p): shape (short, p), in the dtype of `left`."""
        product = torch.zeros((self.short, left.shape[1]), dtype=left.dtype, device=self.device)
        for start, stop, block in self.blocks(left.dtype):
            product.addmm_(block.T, left[start:stop])
        return product

    def gram_times(self, right: torch.Tensor) -> torch.Tensor:
        """A^T (A @ right) in one pass over the weight: shape (short, p), in the dtype of `right`."""
        product = torch.zeros_like(right)
        for _, _, block in self.blocks(right.dtype):
            product.addmm_(block.T, block @ right)
        return product
