"""Products with ChatGLM2's packed weights: are the kernels right, and how much of the memory's bandwidth do they reach?

For each of the four weights of a ChatGLM2-6B layer, 4 and 8 bits, and several numbers of tokens: the error against
float64, the time of our layer, of the torch path and of the plain product with the full weight, and the bytes of weight
read a second beside what a device-to-device copy reaches on the same card. For one token, our kernel for the full
weight, our NF4 product and bitsandbytes' own, and torch's int4 product (`_weight_int4pack_mm`, tinygemm).

    python benchmarks/quantized_matmul.py                    # CUDA, all of it, about a minute
    python benchmarks/quantized_matmul.py --device cpu       # the torch path only
    python benchmarks/quantized_matmul.py --json out.json

Exit status 1 when any error is above its limit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from glmspectra.chatglm2 import quantization
from glmspectra.chatglm2.kernels import one_token_kernels
from glmspectra.checkpoint.formats.chatglm_int import dequantize_rows, quantize_rows

SHAPES = {
    "query_key_value": (4608, 4096),
    "dense": (4096, 4096),
    "dense_h_to_4h": (27392, 4096),
    "dense_4h_to_h": (4096, 13696),
}
LIMITS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 2e-3}  # relative, Frobenius
# Written before each run: no weight stays in a cache, and the launch is hidden behind it.
FLUSH_BYTES = 1 << 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--tokens", default="1,2,16,256")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    clock = Clock(device, options.runs)
    copied = clock.bandwidth()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kernels = quantization.packed_weight_kernels(torch.empty(0, device=device))
    print(
        f"{name}, {options.dtype}; a copy moves {copied / 1e9:.0f} GB/s; Triton kernels: {'yes' if kernels else 'no'}"
    )
    print(
        f"{'matrix':17}{'bits':>5}{'tokens':>7}{'error':>10}{'us':>9}{'torch us':>10}{'full us':>9}{'GB/s':>7}"
        f"{'of copy':>9}"
    )
    rows, one_token = [], []
    for matrix, shape in SHAPES.items():
        full = torch.randn(shape, device=device, dtype=dtype) * 0.02
        one_token.append({"matrix": matrix} | _one_token(full, clock))
        for bits in (4, 8):
            packed, scale = quantize_rows(full, bits)
            exact = dequantize_rows(packed, scale, bits, torch.float64)
            _check_widening(packed, scale, bits, dtype)
            layer = quantization.QuantizedLinear(shape[1], shape[0], bits, device="meta", dtype=dtype)
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
            layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
            for tokens in map(int, options.tokens.split(",")):
                x = torch.randn(tokens, shape[1], device=device, dtype=dtype)
                rows.append(_row(matrix, bits, x, layer, full, exact, clock, copied))
                print(_line(rows[-1]), flush=True)
            del exact
    _decoding(rows, one_token)
    agreement = _cpm_agreement(device)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "device": name,
                    "dtype": options.dtype,
                    "copy_bytes_per_second": copied,
                    "rows": rows,
                    "one_token": one_token,
                    "cpm": agreement,
                },
                file,
                indent=1,
            )
    wrong = [row for row in rows if not row["error"] <= LIMITS[dtype]]
    if wrong:
        print(f"{len(wrong)} products are wrong, the first: {wrong[0]}", file=sys.stderr)
    return 1 if wrong else 0


def _row(
    matrix: str,
    bits: int,
    x: torch.Tensor,
    layer: quantization.QuantizedLinear,
    full: torch.Tensor,
    exact: torch.Tensor,
    clock: "Clock",
    copied: float,
) -> dict[str, Any]:
    with torch.no_grad():
        due = x.double() @ exact.t()
        error = float((layer(x).double() - due).norm() / due.norm())
        seconds = clock.seconds(lambda: layer(x))
        torch_path = clock.seconds(lambda: _in_torch(x, layer))
        row: dict[str, Any] = {
            "matrix": matrix,
            "bits": bits,
            "tokens": x.shape[0],
            "error": error,
            "seconds": seconds,
            "torch_seconds": torch_path,
            "full_seconds": clock.seconds(lambda: functional.linear(x, full)),
            "bytes_per_second": layer.weight.nbytes / seconds,
        }
    row["share_of_copy"] = row["bytes_per_second"] / copied
    return row


def _in_torch(x: torch.Tensor, layer: quantization.QuantizedLinear) -> torch.Tensor:
    """What a machine without Triton computes."""
    if x.shape[0] <= quantization.FUSED_TOKENS:
        return quantization.product(x, layer.weight, layer.weight_scale, layer.bits)
    return functional.linear(x, dequantize_rows(layer.weight, layer.weight_scale, layer.bits, x.dtype))


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['matrix']:17}{row['bits']:5}{row['tokens']:7}{row['error']:10.1e}{row['seconds'] * 1e6:9.1f}"
        f"{row['torch_seconds'] * 1e6:10.1f}{row['full_seconds'] * 1e6:9.1f}"
        f"{row['bytes_per_second'] / 1e9:7.0f}{row['share_of_copy']:9.0%}"
    )


def _decoding(rows: list[dict[str, Any]], one_token: list[dict[str, Any]]) -> None:
    """What the linear layers of 28 layers take for one token."""
    for way in [name for name in one_token[0] if name != "matrix"]:
        total = 28 * sum(row[way] for row in one_token)
        each = ", ".join(f"{row[way] * 1e6:.1f}" for row in one_token)
        print(f"28 layers, one token, {way}: {total * 1e3:.2f} ms ({each} us)")
    for bits in (4, 8):
        mine = [row for row in rows if row["bits"] == bits and row["tokens"] == 1]
        if len(mine) == len(SHAPES):
            total, full = (28 * sum(row[key] for row in mine) for key in ("seconds", "full_seconds"))
            print(f"28 layers, one token, {bits} bits: {total * 1e3:.2f} ms; with full weights {full * 1e3:.2f} ms")


def _check_widening(packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> None:
    ours, reference = quantization.widen(packed, scale, bits, dtype), dequantize_rows(packed, scale, bits, dtype)
    if not torch.equal(ours, reference):
        most = (ours.double() - reference.double()).abs().max()
        raise SystemExit(f"widening {bits} bits to {dtype} differs from the torch path by up to {most:.3g}")


def _one_token(full: torch.Tensor, clock: "Clock") -> dict[str, float]:
    """Seconds of one token's product with this weight, by way; those that run here."""
    x = torch.randn(1, full.shape[1], device=full.device, dtype=full.dtype)
    ways: dict[str, Callable[[], Any]] = {"full weight, torch": lambda: functional.linear(x, full)}
    kernels = one_token_kernels(x, full.shape[1])
    if kernels is not None:
        ways["full weight, ours"] = lambda: kernels.plain_product(x, full, None)
    if full.is_cuda and full.dtype == torch.bfloat16:
        codes = torch.randint(0, 255, (full.shape[0], full.shape[1] // 2), device=full.device, dtype=torch.uint8)
        tiles = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.ones(full.shape[1] // 128, full.shape[0], 2, device=full.device, dtype=full.dtype)
        ways["int4 in groups of 128, torch"] = lambda: torch.ops.aten._weight_int4pack_mm(x, tiles, 128, scales)
    try:
        from bitsandbytes import functional as bnb
        from bitsandbytes import matmul_4bit
    except ImportError:
        return {name: clock.seconds(way) for name, way in ways.items()}
    packed, state = bnb.quantize_4bit(full, quant_type="nf4", blocksize=64)
    ways["NF4, bitsandbytes"] = lambda: matmul_4bit(x, packed, quant_state=state)
    if kernels is not None and full.dtype == torch.bfloat16:
        ways["NF4, ours"] = lambda: kernels.nf4_product(x, packed, state.absmax, full.shape[0])
    return {name: clock.seconds(way) for name, way in ways.items()}


def _cpm_agreement(device: torch.device) -> dict[str, Any] | None:
    import cpm_reference

    if device.type != "cuda" or not cpm_reference.available():
        print("cpm-kernels: does not import here, nothing compared")
        return None
    weight = torch.randn(4608, 4096, device=device).half()
    values, scale = quantize_rows(weight, 8)
    reference, reference_scale = cpm_reference.quantize_rows_int8(weight)
    differing = int((values != reference).sum())
    same = bool(torch.equal(scale, reference_scale))
    print(f"cpm-kernels int8: scales equal: {same}; whole numbers that differ: {differing} of {values.numel()}")
    return {"scales_equal": same, "differing": differing, "of": values.numel()}


class Clock:
    """Median seconds of a call, with the cache emptied before each."""

    def __init__(self, device: torch.device, runs: int):
        self.device, self.runs = device, runs
        self._flush = torch.empty(FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.int8, device=device)

    def seconds(self, call: Callable[[], Any]) -> float:
        for _ in range(3):
            call()
        if self.device.type != "cuda":
            times = []
            for _ in range(max(3, self.runs // 10)):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            return statistics.median(times)
        pairs = []
        for _ in range(self.runs):
            self._flush.zero_()
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            call()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize(self.device)
        return statistics.median(start.elapsed_time(stop) for start, stop in pairs) / 1e3

    def bandwidth(self) -> float:
        """Bytes read and written a second by a copy within the device."""
        source = torch.empty(
            (1 << 30) if self.device.type == "cuda" else (1 << 26), dtype=torch.int8, device=self.device
        )
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source))


if __name__ == "__main__":
    sys.exit(main())
