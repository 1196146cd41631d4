"""A Triton kernel for the loss of a row of logits and its gradient, which takes the logits' place.

Left to torch, softmax in float32 of half-precision logits goes through memory some ten times (a float32 copy, the
largest, its index, a sum of exponents, the difference, its exponent, rounding): here logits are read twice and written
once.

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.kernels import launching_on

COLUMNS = 4096  # of a row that are worked on at a time


@triton.jit
def _loss_kernel(logits, targets, nll, correct, SIZE: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    """nll[r] = log sum_c exp(logits[r, c]) - logits[r, target]; logits (rows, SIZE) become softmax - onehot(target)."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    base = logits + row * SIZE
    due = tl.load(base + target).to(tl.float32)  # before any thread writes here: the sums below wait for all of them
    peak = tl.full((BLOCK,), -1e38, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    index = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, SIZE, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(base + c, mask=c < SIZE, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, x)
        total = total * tl.exp(peak - higher) + tl.exp(x - higher)
        index = tl.where(x > peak, c, index)
        peak = higher
    highest = tl.max(peak, axis=0)
    total_ = tl.sum(total * tl.exp(peak - highest), axis=0)
    first = tl.min(tl.where(peak == highest, index, SIZE), axis=0)  # as argmax, the first of several
    normalizer = highest + tl.log(total_)
    tl.store(nll + row, normalizer - due)
    tl.store(correct + row, (first == target).to(tl.int8))
    if GRADIENT:
        for start in range(0, SIZE, BLOCK):
            c = start + tl.arange(0, BLOCK)
            x = tl.load(base + c, mask=c < SIZE, other=0).to(tl.float32)
            share = tl.exp(x - normalizer) - tl.where(c == target, 1.0, 0.0)
            tl.store(base + c, share.to(logits.dtype.element_ty), mask=c < SIZE)


def losses_in_place(
    logits: torch.Tensor, targets: torch.Tensor, nll: torch.Tensor, correct: torch.Tensor, gradient: bool
) -> None:
    """Fill `nll` float32 [n] and `correct` bool [n] from `logits` [n, V], contiguous, and `targets` int64 [n].

    With `gradient`, `logits` become the gradient of nll with respect to themselves, in their own type.
    """
    with launching_on(logits.device):
        _loss_kernel[(logits.shape[0],)](
            logits,
            targets,
            nll,
            correct.view(torch.int8),
            logits.shape[1],
            GRADIENT=gradient,
            BLOCK=COLUMNS,
            num_warps=8,
        )
