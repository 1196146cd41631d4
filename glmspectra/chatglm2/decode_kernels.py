"""Triton kernels for one token of decoding with a static cache: rotary and cache, attention, and adding before a norm.

A step of decoding is some hundreds of small kernels between the products that read the weights, each a few
microseconds whatever it does. Three of these stand for some seventeen of torch's in every layer: rotary embedding with
storing keys and values; attention over the cache, in parts and joined (Dao et al., Flash-Decoding, 2023), without
copying keys and values for each query head of a group; residual sum with the norm that follows.

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.early_start import early, wait_for_earlier
from glmspectra.chatglm2.kernels import launching_on
from glmspectra.chatglm2.layer_kernels import _turn, launch_add_norm

POSITIONS = 64  # of the cache that an attention program takes at a time
PARTS = 32  # at most, into which the cache is cut


@triton.jit
def _store_kernel(
    mixed, cos, sin, query, keys, values, count, query_heads, groups, positions,
    cache_batch, cache_head, cache_token, SIZE: tl.constexpr, HEADS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Turn queries and keys of one token a row; queries go to `query` (b, H, SIZE), keys and values into the cache.

    mixed (b, H + 2 G, SIZE), cos and sin (positions: 1 or b, SIZE), keys and values (b, G, cached, SIZE) at `count`.
    """
    wait_for_earlier(EARLY)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    heads = query_heads + 2 * groups
    d = tl.arange(0, SIZE)
    mask = (head < heads)[:, None]
    x = tl.load(mixed + row * heads * SIZE + head[:, None] * SIZE + d[None, :], mask=mask, other=0)
    angle = (row % positions) * SIZE + d
    y = _turn(x.to(tl.float32), tl.load(cos + angle).to(tl.float32), tl.load(sin + angle).to(tl.float32), False)
    is_query = head < query_heads
    is_value = head >= query_heads + groups
    slot = row * cache_batch + tl.load(count) * cache_token
    to_query = query + row * query_heads * SIZE + head * SIZE
    to_key = keys + slot + (head - query_heads) * cache_head
    to_value = values + slot + (head - query_heads - groups) * cache_head
    target = tl.where(is_query, to_query, tl.where(is_value, to_value, to_key))
    tl.store(target[:, None] + d[None, :], tl.where(is_value[:, None], x, y.to(x.dtype)), mask=mask)


@triton.jit
def _attend_kernel(
    query, keys, values, seen, sums, peaks, totals, groups, cached, scaling,
    cache_batch, cache_head, cache_token, seen_batch,
    EACH: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One group's query heads over EACH cached positions: sums of exp(score - peak) v, the peak, and the total of exp.

    query (b, G, REPEATS, SIZE), keys and values (b, G, cached, SIZE), seen (b, cached) bool. Out, float32: sums
    (b G, PARTS, ROWS, SIZE), peaks and totals (b G, PARTS, ROWS); ROWS is REPEATS or 16, of which the rest is idle.
    """
    wait_for_earlier(EARLY)
    pair = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    batch, group = pair // groups, pair % groups
    r, d = tl.arange(0, ROWS), tl.arange(0, SIZE)
    q = tl.load(query + (pair * REPEATS + r[:, None]) * SIZE + d[None, :], mask=(r < REPEATS)[:, None], other=0)
    base = batch * cache_batch + group * cache_head
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sum_ = tl.zeros((ROWS, SIZE), tl.float32)
    for step in range(0, EACH, STEP):
        c = part * EACH + step + tl.arange(0, STEP)
        inside = c < cached
        k = tl.load(keys + base + c[None, :] * cache_token + d[:, None], mask=inside[None, :], other=0)
        visible = tl.load(seen + batch * seen_batch + c, mask=inside, other=0) != 0
        scores = tl.dot(q, k) * scaling
        scores = tl.where(visible[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - safe[:, None])
        old = tl.exp(peak - safe)
        v = tl.load(values + base + c[:, None] * cache_token + d[None, :], mask=inside[:, None], other=0)
        sum_ = sum_ * old[:, None] + tl.dot(weights.to(v.dtype), v)
        total = total * old + tl.sum(weights, axis=1)
        peak = higher
    row = (pair * PARTS + part) * ROWS + r
    tl.store(sums + row[:, None] * SIZE + d[None, :], sum_)
    tl.store(peaks + row, peak)
    tl.store(totals + row, total)


@triton.jit
def _join_kernel(
    sums, peaks, totals, out, count,
    REPEATS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`out` (b G REPEATS, SIZE): the parts' mixtures joined. The first program counts the token that was stored."""
    wait_for_earlier(EARLY)
    head = tl.program_id(0).to(tl.int64)
    pair, r = head // REPEATS, head % REPEATS
    p, d = tl.arange(0, PARTS), tl.arange(0, SIZE)
    row = (pair * PARTS + p) * ROWS + r
    peak = tl.load(peaks + row)
    highest = tl.max(peak, axis=0)
    weight = tl.exp(peak - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weight * tl.load(totals + row), axis=0)
    mixture = tl.sum(weight[:, None] * tl.load(sums + row[:, None] * SIZE + d[None, :]), axis=0)
    tl.store(out + head * SIZE + d, (mixture / total).to(out.dtype.element_ty))
    if head == 0:
        tl.store(count, tl.load(count) + 1)


def attend_to_cache(
    mixed: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    count: torch.Tensor,
    seen: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of one new token a row: [b, 1, H, d] from `mixed` [b, 1, H + 2 G, d].

    Its key and value are stored in the static cache `keys`, `values` [b, G, k, d] at `count` (int64, on the device),
    which is then one more. `cos`, signed `sin` [b or 1, 1, 1, d]; `seen` [b, 1, 1, k] bool, true for the positions
    that are attended to, this token's own among them. d a power of two of at least 16.
    """
    batch, _, heads, size = mixed.shape
    groups, cached = keys.shape[1], keys.shape[2]
    query_heads = heads - 2 * groups
    repeats = query_heads // groups
    rows = max(16, triton.next_power_of_2(repeats))
    parts = triton.next_power_of_2(min(PARTS, triton.cdiv(cached, POSITIONS)))
    each = triton.cdiv(triton.cdiv(cached, parts), POSITIONS) * POSITIONS
    mixed, cos, sin = mixed.contiguous(), cos.contiguous(), sin.contiguous()
    query = mixed.new_empty(batch, query_heads, size)
    sums = torch.empty(batch * groups, parts, rows, size, dtype=torch.float32, device=mixed.device)
    peaks = torch.empty(2, batch * groups, parts, rows, dtype=torch.float32, device=mixed.device)
    out = mixed.new_empty(batch, 1, query_heads, size)
    block = min(16, triton.next_power_of_2(heads))
    strides, start = keys.stride()[:3], early(mixed.device)
    seen = seen.contiguous().view(torch.uint8)
    with launching_on(mixed.device):
        _store_kernel[batch, triton.cdiv(heads, block)](
            mixed, cos, sin, query, keys, values, count, query_heads, groups, cos.numel() // size, *strides,
            SIZE=size, HEADS=block, **start,
        )  # fmt: skip
        _attend_kernel[batch * groups, parts](
            query, keys, values, seen, sums, peaks[0], peaks[1], groups, cached, scaling, *strides,
            seen.stride(0), EACH=each, REPEATS=repeats, ROWS=rows, SIZE=size, STEP=POSITIONS, PARTS=parts, **start,
        )  # fmt: skip
        _join_kernel[(batch * query_heads,)](
            sums, peaks[0], peaks[1], out, count, REPEATS=repeats, ROWS=rows, SIZE=size, PARTS=parts, **start
        )
    return out


def add_and_norm(
    x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum x + y and its RMSNorm, both [..., e] of x's dtype; no gradients."""
    return launch_add_norm(x, y, weight, eps, **early(x.device))
