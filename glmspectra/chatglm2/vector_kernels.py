"""Triton kernels for the product of one token with a weight: in half precision, int4, int8 and NF4.

Decoding one sequence reads every weight once a token, so that nothing counts but the rate at which weights arrive, and
that no instruction is spent which keeps a processor from asking for more. Whole numbers are therefore put into the
mantissa of a float (1 + n / 16 is one shift and one and-or; converting an integer runs at a quarter of the rate), NF4's
codes come out of registers by byte permutations, and the token's values are loaded eight bytes at a time. A lookup of
each code in memory was tried: twice the time. On an H100, 28 layers of ChatGLM2-6B: benchmarks/quantized_matmul.py.

Under TRITON_INTERPRET=1 the same code runs on a CPU, for tests; NF4's byte permutations do not.
"""

import torch
import triton
import triton.language as tl

from glmspectra.chatglm2.early_start import early, wait_for_earlier
from glmspectra.chatglm2.kernels import INTERPRETED, launching_on

# Rows a program, numbers or packed words of a row a step, warps. Tuned for each shape of weight when it is first met;
# the interpreter has no clock to tune by.
_PLAIN = [(2, 2048, 2), (2, 1024, 4), (4, 2048, 4)]
_GATED = [(1, 2048, 2), (1, 1024, 4), (2, 2048, 4)]  # of the gate, and as many of the other half
_PACKED = [(4, 256, 2), (8, 256, 2), (8, 128, 1), (4, 128, 1), (16, 128, 2)]

NF4_CODES = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
NF4_BLOCK = 64  # consecutive numbers that share a scale


def _tuned(shapes: list[tuple[int, int, int]], key: list[str]):
    configs = [
        triton.Config({"ROWS": rows, "STEP": step}, num_warps=warps, num_stages=3)
        for rows, step, warps in (shapes[:1] if INTERPRETED else shapes)
    ]
    return triton.autotune(configs=configs, key=key)


def _nf4_assembly() -> str:
    """PTX from a word of eight codes to four words of two bfloat16 each: columns 2 j + 1 (low half) and 2 j (high).

    The sixteen codes lie in registers, high and low bytes apart. Three bits of a code select a byte among the first
    eight and among the last eight, its fourth bit the one or the other; then high and low bytes are put together.
    """
    bits = [number & 0xFFFF for number in torch.tensor(NF4_CODES).to(torch.bfloat16).view(torch.int16).tolist()]

    def words(numbers: list[int]) -> list[str]:
        return [f"0x{sum(numbers[4 * word + i] << (8 * i) for i in range(4)):08x}" for word in range(4)]

    lines = [
        "{ .reg .b32 s, m, a, b, h, l;",
        "and.b32 s, $4, 0x77777777; shr.b32 m, $4, 1; and.b32 m, m, 0x44444444; or.b32 m, m, 0x32103210;",
    ]
    for half in (0, 1):
        if half:
            lines.append("shr.b32 s, s, 16; shr.b32 m, m, 16;")
        for register, table in (("h", words([n >> 8 for n in bits])), ("l", words([n & 255 for n in bits]))):
            lines.append(f"mov.b32 a, {table[0]}; mov.b32 b, {table[1]}; prmt.b32 a, a, b, s;")
            lines.append(f"mov.b32 b, {table[2]}; mov.b32 {register}, {table[3]}; prmt.b32 b, b, {register}, s;")
            lines.append(f"prmt.b32 {register}, a, b, m;")
        lines.append(f"prmt.b32 ${2 * half}, l, h, 0x5140; prmt.b32 ${2 * half + 1}, l, h, 0x7362;")
    return "\n".join([*lines, "}"])


_NF4_ASSEMBLY = tl.constexpr(_nf4_assembly())


@triton.jit
def _low(pair, BFLOAT: tl.constexpr):
    """The lower of two half-precision numbers in a word, as float32."""
    if BFLOAT:
        return (pair << 16).to(tl.float32, bitcast=True)
    return (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high(pair, BFLOAT: tl.constexpr):
    """The higher of two half-precision numbers in a word, as float32."""
    if BFLOAT:
        return (pair & -65536).to(tl.float32, bitcast=True)
    return (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _finish(total, y, bias, r, in_rows, BIAS: tl.constexpr):
    if BIAS:
        total += tl.load(bias + r, mask=in_rows, other=0).to(tl.float32)
    tl.store(y + r, total.to(y.dtype.element_ty), mask=in_rows)


@_tuned(_PLAIN, ["rows", "columns"])
@triton.jit
def _plain_kernel(
    x, weight, bias, y, rows, columns,
    BIAS: tl.constexpr, EARLY: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Computes y = W x + b: x (columns,), weight (rows, columns), y (rows,)."""
    wait_for_earlier(EARLY)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = r < rows
    base = weight + r.to(tl.int64)[:, None] * columns
    total = tl.zeros((ROWS, STEP), dtype=tl.float32)
    for start in range(0, columns, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < columns
        w = tl.load(base + c[None, :], mask=in_rows[:, None] & inside[None, :], other=0, eviction_policy="evict_first")
        total += w.to(tl.float32) * tl.load(x + c, mask=inside, other=0).to(tl.float32)[None, :]
    _finish(tl.sum(total, axis=1), y, bias, r, in_rows, BIAS)


@_tuned(_GATED, ["rows", "columns"])
@triton.jit
def _gated_kernel(
    x, weight, bias, y, rows, columns,
    BIAS: tl.constexpr, EARLY: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Computes y = silu(G x + g) (U x + u): x (columns,), weight (2 rows, columns) of G and U, y (rows,)."""
    wait_for_earlier(EARLY)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = r < rows
    base = weight + r.to(tl.int64)[:, None] * columns
    other = tl.cast(rows, tl.int64) * columns
    gate = tl.zeros((ROWS, STEP), dtype=tl.float32)
    up = tl.zeros((ROWS, STEP), dtype=tl.float32)
    for start in range(0, columns, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < columns
        mask = in_rows[:, None] & inside[None, :]
        token = tl.load(x + c, mask=inside, other=0).to(tl.float32)[None, :]
        gate += tl.load(base + c[None, :], mask=mask, other=0, eviction_policy="evict_first").to(tl.float32) * token
        up += (
            tl.load(base + other + c[None, :], mask=mask, other=0, eviction_policy="evict_first").to(tl.float32) * token
        )
    g, u = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    if BIAS:
        g += tl.load(bias + r, mask=in_rows, other=0).to(tl.float32)
        u += tl.load(bias + rows + r, mask=in_rows, other=0).to(tl.float32)
    tl.store(y + r, (g * tl.sigmoid(g) * u).to(y.dtype.element_ty), mask=in_rows)


@triton.jit
def _mantissa(q, POSITION: tl.constexpr, BITS: tl.constexpr):
    """1 + n / 2^BITS as float32, for the unsigned n of BITS bits at POSITION of a word."""
    FIRST: tl.constexpr = 23 - BITS  # of float32's 23 bits of mantissa, those that n takes
    moved = q >> (POSITION - FIRST) if POSITION >= FIRST else q << (FIRST - POSITION)
    return ((moved & (((1 << BITS) - 1) << FIRST)) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _two_products(q, even, odd, PLACE: tl.constexpr, BITS: tl.constexpr):
    """The products of the two columns at a place of a word: both halves of a byte of int4, or two bytes of int8."""
    FIRST: tl.constexpr = 8 * PLACE + 4 if BITS == 4 else 16 * PLACE
    SECOND: tl.constexpr = 8 * PLACE if BITS == 4 else 16 * PLACE + 8
    return _mantissa(q, FIRST, BITS) * even[None, :] + _mantissa(q, SECOND, BITS) * odd[None, :]


@_tuned(_PACKED, ["rows", "words", "BITS"])
@triton.jit
def _integer_kernel(
    x, packed, scale, bias, y, rows, words,
    BITS: tl.constexpr, BFLOAT: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """y[r] = scale[r] sum_c q[r, c] x[c] + b[r] for signed q of BITS bits.

    x int64, four half-precision numbers each; packed (rows, words) int32, of four int8 or of eight int4, the even
    column of two in a byte's high half; scale, bias, y (rows,). q + 2^(BITS - 1) = n is what the words hold, once their
    sign bits are flipped, and with f = 1 + n / 2^BITS the sum is 2^BITS (sum f x - 1.5 sum x).
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = r < rows
    base = packed + r.to(tl.int64)[:, None] * words
    FOURS: tl.constexpr = 8 // BITS  # words of x for one of the weight
    FLIP: tl.constexpr = -0x77777778 if BITS == 4 else -0x7F7F7F80
    total = tl.zeros((ROWS, STEP), dtype=tl.float32)
    plain = tl.zeros((STEP,), dtype=tl.float32)
    for start in range(0, words, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < words
        q = tl.load(base + c[None, :], mask=in_rows[:, None] & inside[None, :], other=0, eviction_policy="evict_first")
        q = q ^ FLIP
        for four in tl.static_range(FOURS):
            numbers = tl.load(x + c * FOURS + four, mask=inside, other=0)
            for two in tl.static_range(2):
                pair = (numbers >> (32 * two)).to(tl.int32)
                even, odd = _low(pair, BFLOAT), _high(pair, BFLOAT)
                plain += even + odd
                total += _two_products(q, even, odd, 2 * four + two if BITS == 4 else two, BITS)
    found = (tl.sum(total, axis=1) - 1.5 * tl.sum(plain, axis=0)) * (1 << BITS)
    found *= tl.load(scale + r, mask=in_rows, other=0).to(tl.float32)
    _finish(found, y, bias, r, in_rows, BIAS)


@_tuned(_PACKED, ["rows", "words"])
@triton.jit
def _nf4_kernel(
    x, packed, absmax, bias, y, rows, words, BIAS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """y[r] = sum_c absmax[r, c // 64] code(q[r, c]) x[c] + b[r], codes rounded to bfloat16 as bitsandbytes does.

    x int64, four bfloat16 each; packed (rows, words) int32 of eight codes, absmax (rows, words / 8) float32, y (rows,).
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = r < rows
    base = packed + r.to(tl.int64)[:, None] * words
    scales = absmax + r.to(tl.int64)[:, None] * (words // 8)
    total = tl.zeros((ROWS, STEP), dtype=tl.float32)
    for start in range(0, words, STEP):
        c = start + tl.arange(0, STEP)
        inside = c < words
        mask = in_rows[:, None] & inside[None, :]
        q = tl.load(base + c[None, :], mask=mask, other=0, eviction_policy="evict_first")
        w0, w1, w2, w3 = tl.inline_asm_elementwise(
            _NF4_ASSEMBLY, "=r,=r,=r,=r,r", [q], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1
        )
        first, last = tl.load(x + c * 2, mask=inside, other=0), tl.load(x + c * 2 + 1, mask=inside, other=0)
        x0, x1, x2, x3 = first.to(tl.int32), (first >> 32).to(tl.int32), last.to(tl.int32), (last >> 32).to(tl.int32)
        part = _high(w0, True) * _low(x0, True)[None, :] + _low(w0, True) * _high(x0, True)[None, :]
        part += _high(w1, True) * _low(x1, True)[None, :] + _low(w1, True) * _high(x1, True)[None, :]
        part += _high(w2, True) * _low(x2, True)[None, :] + _low(w2, True) * _high(x2, True)[None, :]
        part += _high(w3, True) * _low(x3, True)[None, :] + _low(w3, True) * _high(x3, True)[None, :]
        total += part * tl.load(scales + (c // 8)[None, :], mask=mask, other=0)
    _finish(tl.sum(total, axis=1), y, bias, r, in_rows, BIAS)


def takes(x: torch.Tensor, columns: int) -> bool:
    """Whether `x` is one token, of a kind that the kernels read, for a weight of so many columns."""
    return x.numel() == columns and x.dtype in (torch.float16, torch.bfloat16) and columns % 8 == 0


def plain_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """W x + b, (..., columns) to (..., rows), for one token of half precision and a contiguous weight of its dtype."""
    rows, columns = weight.shape
    y = x.new_empty(*x.shape[:-1], rows)
    with launching_on(x.device):
        _plain_kernel[_grid(rows)](
            x.contiguous(), weight, y if bias is None else bias, y, rows, columns,
            BIAS=bias is not None, **early(x.device),
        )  # fmt: skip
    return y


def gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """SwiGLU of `plain_product`: silu(G x + g) * (U x + u), (..., rows / 2), of a weight with G's rows before U's."""
    rows, columns = weight.shape[0] // 2, weight.shape[1]
    y = x.new_empty(*x.shape[:-1], rows)
    with launching_on(x.device):
        _gated_kernel[_grid(rows)](
            x.contiguous(), weight, y if bias is None else bias, y, rows, columns,
            BIAS=bias is not None, **early(x.device),
        )  # fmt: skip
    return y


def integer_product(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`plain_product` with a weight of `bits`, as checkpoint/formats/chatglm_int.py packs it.

    `packed` is int8 (rows, columns * bits / 8), contiguous; `scale` is (rows,).
    """
    rows, width = packed.shape
    y = x.new_empty(*x.shape[:-1], rows)
    with launching_on(x.device):
        _integer_kernel[_grid(rows)](
            _in_fours(x), packed.view(torch.int32), scale, y if bias is None else bias, y, rows, width // 4,
            BITS=bits, BFLOAT=x.dtype == torch.bfloat16, BIAS=bias is not None,
        )  # fmt: skip
    return y


def nf4_product(
    x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, rows: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same with bitsandbytes' NF4 weight in blocks of 64: uint8 of two codes each, absmax float32; x bfloat16."""
    y = x.new_empty(*x.shape[:-1], rows)
    words = packed.view(-1).view(torch.int32)
    with launching_on(x.device):
        _nf4_kernel[_grid(rows)](
            _in_fours(x), words, absmax, y if bias is None else bias, y, rows, x.shape[-1] // 8, BIAS=bias is not None
        )
    return y


def _in_fours(x: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(-1)
    return (flat if flat.data_ptr() % 8 == 0 else flat.clone()).view(torch.int64)


def _grid(rows: int):
    return lambda meta: (triton.cdiv(rows, meta["ROWS"]),)
