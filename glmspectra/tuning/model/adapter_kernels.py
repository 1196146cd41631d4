"""Triton kernels for LoRA's two products, dropout before the first and the sum after the second, and for gradients.

Left to torch, a layer's input goes through memory six times more for its adapter: dropout writes a copy and a mask,
the product with A reads the copy, and on the way back the gradient of the copy is made, masked, and added to that of
the frozen product. Here it is read once in each direction of a step and its gradient written once. Which numbers
dropout keeps is drawn anew where it is wanted, from a seed, by Philox4x32-7 (Salmon et al. 2011: 7 rounds pass all
their tests; 16 bits a number), so that the input itself is all that is kept for the way back.

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.kernels import launching_on
from glmspectra.tuning.model.adapter_products import SHARE

ROUNDS = tl.constexpr(7)
DRAWN = 1 << 16  # dropout keeps a number where 16 random bits are at least DRAWN * p
# Rows and columns of the input that one program works on at a time, and its warps.
DOWN, OF_DOWN, SUM = (32, 256, 8), (64, 128, 8), (32, 128, 4)


@triton.jit
def _drawn(seed, row, first, columns, COLUMNS: tl.constexpr):
    """16 random bits for each number of a tile: rows `row` (R, 1), COLUMNS from `first` on; int32 (R, COLUMNS).

    Numbers 8 e .. 8 e + 7 of a row share a call of Philox, so that every tile of whole eights finds the same bits.
    """
    rows: tl.constexpr = row.shape[0]
    eighth = first // 8 + tl.arange(0, COLUMNS // 8)[None, :]
    one, two, three, four = tl.randint4x(seed, row * (columns // 8 + 1) + eighth, n_rounds=ROUNDS)
    words = tl.reshape(tl.join(tl.join(one, two), tl.join(three, four)), (rows, COLUMNS // 2))
    return tl.reshape(tl.join(words & 0xFFFF, (words >> 16) & 0xFFFF), (rows, COLUMNS)).to(tl.int32)


@triton.jit(do_not_specialize=["seed"])
def _down_kernel(
    x, down, inner, tokens, columns: tl.constexpr, rank, seed, least, gain,
    DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """inner[t, r] = gain sum_c kept x[t, c] down[r, c]; x (tokens, columns), down (rank, columns)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    r = tl.arange(0, RANK)
    total = tl.zeros((ROWS, RANK), tl.float32)
    for first in range(0, columns, COLUMNS):
        c = first + tl.arange(0, COLUMNS)[None, :]
        here = row.to(tl.int64) * columns + c
        tile = tl.load(x + here, mask=(row < tokens) & (c < columns), other=0)
        if DROPS:
            tile = tl.where(_drawn(seed, row, first, columns, COLUMNS) >= least, tile, 0.0).to(tile.dtype)
        factor = tl.load(down + r[:, None] * columns + c, mask=(r[:, None] < rank) & (c < columns), other=0)
        total += tl.dot(tile, tl.trans(factor))
    there = row * rank + r[None, :]
    tl.store(inner + there, (total * gain).to(inner.dtype.element_ty), mask=(row < tokens) & (r[None, :] < rank))


@triton.jit(do_not_specialize=["seed"])
def _of_down_kernel(
    x, of_inner, of_down, tokens, columns: tl.constexpr, rank, seed, least, gain,
    SHARE: tl.constexpr, DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """of_down[s, r, c] = gain sum_t of_inner[t, r] kept x[t, c] over the s-th SHARE of the tokens."""
    own = tl.program_id(1)
    begin = tl.program_id(0) * COLUMNS
    c = begin + tl.arange(0, COLUMNS)[None, :]
    r = tl.arange(0, RANK)
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    for first in range(0, SHARE, ROWS):
        row = (own * SHARE + first + tl.arange(0, ROWS))[:, None]
        inside = row < tokens
        tile = tl.load(x + row.to(tl.int64) * columns + c, mask=inside & (c < columns), other=0)
        if DROPS:
            tile = tl.where(_drawn(seed, row, begin, columns, COLUMNS) >= least, tile, 0.0).to(tile.dtype)
        given = tl.load(of_inner + row * rank + r[None, :], mask=inside & (r[None, :] < rank), other=0)
        total += tl.dot(tl.trans(given), tile)
    there = (own * rank + r[:, None]).to(tl.int64) * columns + c
    tl.store(of_down + there, total * gain, mask=(r[:, None] < rank) & (c < columns))


@triton.jit(do_not_specialize=["seed"])
def _sum_kernel(
    x, inner, factor, found, tokens, columns: tl.constexpr, rank, seed, least, gain,
    DROPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """found[t, c] = x[t, c] + gain kept sum_r inner[t, r] factor[r, c]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    begin = tl.program_id(1) * COLUMNS
    c = begin + tl.arange(0, COLUMNS)[None, :]
    r = tl.arange(0, RANK)
    left = tl.load(inner + row * rank + r[None, :], mask=(row < tokens) & (r[None, :] < rank), other=0)
    right = tl.load(factor + r[:, None] * columns + c, mask=(r[:, None] < rank) & (c < columns), other=0)
    more = tl.dot(left, right) * gain
    if DROPS:
        more = tl.where(_drawn(seed, row, begin, columns, COLUMNS) >= least, more, 0.0)
    here = row.to(tl.int64) * columns + c
    inside = (row < tokens) & (c < columns)
    total = tl.load(x + here, mask=inside, other=0).to(tl.float32) + more
    tl.store(found + here, total.to(found.dtype.element_ty), mask=inside)


def drawn_seed() -> int:
    """A seed from torch's own generator on the CPU, which recomputation and resuming set back."""
    return int(torch.randint(2**31, ()))


def down_product(x: torch.Tensor, down: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    """dropout(x) A^T, [n, rank] of x's type, for x [n, in] and A [rank, in] of one type, contiguous."""
    inner = x.new_empty(x.shape[0], down.shape[0])
    with launching_on(x.device):
        _down_kernel[(triton.cdiv(x.shape[0], DOWN[0]),)](
            x, down, inner, *x.shape, down.shape[0], *_drawing(seed, dropout), **_sizes(DOWN, down.shape[0], dropout)
        )
    return inner


def gradient_of_down(x: torch.Tensor, of_inner: torch.Tensor, dropout: float, seed: int) -> torch.Tensor:
    """Gradient of A, float32 [rank, in], from that of `down_product`, [n, rank]; sums are made in a fixed order."""
    (tokens, columns), rank = x.shape, of_inner.shape[1]
    shares = triton.cdiv(tokens, SHARE)
    found = x.new_empty(shares, rank, columns, dtype=torch.float32)
    with launching_on(x.device):
        _of_down_kernel[(triton.cdiv(columns, OF_DOWN[1]), shares)](
            x, of_inner, found, tokens, columns, rank, *_drawing(seed, dropout), SHARE=SHARE,
            **_sizes(OF_DOWN, rank, dropout),
        )  # fmt: skip
    return found.sum(0)


def gradient_of_x(
    of_x: torch.Tensor, of_inner: torch.Tensor, down: torch.Tensor, dropout: float, seed: int
) -> torch.Tensor:
    """`of_x` [n, in] and what comes through `down_product` from its gradient [n, rank], summed, as a new tensor."""
    return _summed(of_x, of_inner, down, dropout, *_drawing(seed, dropout))


def sum_with_up(y: torch.Tensor, inner: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """Y + scale inner B^T as a new tensor, for y [n, out], inner [n, rank] and B [out, rank]."""
    return _summed(y, inner, up.t().contiguous(), 0.0, 0, 0, scale)


def _summed(
    x: torch.Tensor, inner: torch.Tensor, factor: torch.Tensor, dropout: float, seed: int, least: int, gain: float
) -> torch.Tensor:
    found = torch.empty_like(x)
    with launching_on(x.device):
        _sum_kernel[triton.cdiv(x.shape[0], SUM[0]), triton.cdiv(x.shape[1], SUM[1])](
            x, inner, factor, found, *x.shape, factor.shape[0], seed, least, gain,
            **_sizes(SUM, factor.shape[0], dropout),
        )  # fmt: skip
    return found


def _drawing(seed: int, dropout: float) -> tuple[int, int, float]:
    """Seed, the least of the 16 bits that is kept, and what kept numbers are multiplied by."""
    return seed, round(DRAWN * dropout), 1 / (1 - dropout)


def _sizes(tile: tuple[int, int, int], rank: int, dropout: float) -> dict[str, int | bool]:
    rows, columns, warps = tile
    whole = max(16, triton.next_power_of_2(rank))  # the least that the matrix units multiply
    return {"DROPS": dropout > 0, "ROWS": rows, "COLUMNS": columns, "RANK": whole, "num_warps": warps}
