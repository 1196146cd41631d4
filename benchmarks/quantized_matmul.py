"""Products with ChatGLM2's packed weights: are the kernels right, and how much of the memory's bandwidth do they reach?

For each of the four weights of a ChatGLM2-6B layer, 4 and 8 bits, and several numbers of tokens: the error against
float64, the time of the Triton kernels, of the torch path and of the plain product with the full weight, and the bytes
of packed weight read a second beside what a device-to-device copy reaches on the same card. With bitsandbytes, its NF4
product stands beside them.

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
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--tokens", default="1,2,8,16,64,256")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    torch.manual_seed(0)
    clock = Clock(device, options.runs)
    copied = clock.bandwidth()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kernels = quantization.kernels_for(torch.empty(0, device=device))
    print(
        f"{name}, {options.dtype}; a copy moves {copied / 1e9:.0f} GB/s; Triton kernels: {'yes' if kernels else 'no'}"
    )
    print(
        f"{'matrix':17}{'bits':>5}{'tokens':>7}{'error':>10}{'us':>9}{'torch us':>10}{'full us':>9}"
        f"{'nf4 us':>9}{'GB/s':>7}{'of copy':>9}"
    )
    rows = []
    for matrix, shape in SHAPES.items():
        full = torch.randn(shape, device=device, dtype=dtype) * 0.02
        nf4 = _nf4_product(full)
        for bits in (4, 8):
            packed, scale = quantize_rows(full, bits)
            exact = dequantize_rows(packed, scale, bits, torch.float64)
            _check_widening(packed, scale, bits, dtype)
            layer = quantization.QuantizedLinear(shape[1], shape[0], bits, device="meta", dtype=dtype)
            layer.weight = torch.nn.Parameter(packed, requires_grad=False)
            layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
            for tokens in map(int, options.tokens.split(",")):
                x = torch.randn(tokens, shape[1], device=device, dtype=dtype)
                rows.append(_row(matrix, bits, x, layer, full, exact, nf4 if bits == 4 else None, clock, copied))
                print(_line(rows[-1]), flush=True)
            del exact
    _decoding(rows)
    agreement = _cpm_agreement(device)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "device": name,
                    "dtype": options.dtype,
                    "copy_bytes_per_second": copied,
                    "rows": rows,
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
    nf4: Callable[[torch.Tensor], torch.Tensor] | None,
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
            "nf4_seconds": clock.seconds(lambda: nf4(x)) if nf4 else None,
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
    nf4 = f"{row['nf4_seconds'] * 1e6:9.1f}" if row["nf4_seconds"] else f"{'-':>9}"
    return (
        f"{row['matrix']:17}{row['bits']:5}{row['tokens']:7}{row['error']:10.1e}{row['seconds'] * 1e6:9.1f}"
        f"{row['torch_seconds'] * 1e6:10.1f}{row['full_seconds'] * 1e6:9.1f}{nf4}"
        f"{row['bytes_per_second'] / 1e9:7.0f}{row['share_of_copy']:9.0%}"
    )


def _decoding(rows: list[dict[str, Any]]) -> None:
    """What the linear layers of 28 layers take for one token."""
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


def _nf4_product(full: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return None
    layer = Linear4bit(full.shape[1], full.shape[0], bias=False, compute_dtype=full.dtype, quant_type="nf4")
    layer.load_state_dict({"weight": full.cpu()})
    return layer.to(full.device)


def _cpm_agreement(device: torch.device) -> dict[str, Any] | None:
    from glmspectra.chatglm2 import cpm_reference

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
