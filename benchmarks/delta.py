"""Spectra of delta-W of a full-size adapter: from its factors, beside a dense SVD and mergekit's way.

An adapter of ChatGLM2-6B's shape (28 layers, the four matrices of each) with factors whose product has singular
values over several decades. Three ways to the singular values of every scale * B A:

- factors: `glmspectra.spectra.lowrank.factor_spectrum`, QR of both factors and an r x r SVD, float64, on the CPU;
- dense: the product made in float32, `torch.linalg.svdvals` of it, as PEFT's convert_to_lora and most scripts do;
- mergekit: what mergekit-extract-lora does to two checkpoints: W + delta-W and W read from storage (bf16),
  subtracted in float32, full `torch.linalg.svd` with vectors, cut to r.

The last two are measured on --dense-layers layers (one takes minutes on two cores) and multiplied up; the row says
so. Values are held against the float64 SVD of the dense product for the layers that were made dense, and for all
others ||delta-W||_F against the one that needs no dense product. Memory is the largest rise of resident memory, or
of CUDA memory, during a way.

    python benchmarks/delta.py                              # factors for all 28 layers, nothing dense: ~10 s
    python benchmarks/delta.py --dense-layers 1             # and a layer of each dense way: minutes on two cores
    python benchmarks/delta.py --dense-layers 1 --matrices query_key_value,dense
    python benchmarks/delta.py --dense-layers 2 --device cuda

Exit status 1 when a value of the factors' way is off by more than 1e-6 of itself.
"""

import argparse
import json
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from glmspectra.spectra.lowrank import factor_spectrum

SHAPES = {
    "query_key_value": (4608, 4096),
    "dense": (4096, 4096),
    "dense_h_to_4h": (27392, 4096),
    "dense_4h_to_h": (4096, 13696),
}
SCALE = 2.0
DECADES = 6.0


@dataclass
class Row:
    """One way: layers it was measured on, seconds for 28 layers, largest rise of memory, error against float64."""

    way: str
    layers: int
    seconds: float
    seconds_28: float
    memory_mib: float
    worst_relative_error: float
    device: str


def factors_of(layer: int, place: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B (rows, rank), A (rank, cols), float32, of a product whose values fall over DECADES; the same on every call."""
    rows, cols = list(SHAPES.values())[place]
    generator = torch.Generator().manual_seed(1000 * layer + place)
    decay = torch.logspace(0, -DECADES / 2, rank)
    b = torch.randn(rows, rank, generator=generator) / rows**0.5 * decay
    a = torch.randn(rank, cols, generator=generator) / cols**0.5 * decay[:, None]
    return b, a


class Memory:
    """Largest rise of memory while inside: CUDA's own count, or resident memory sampled every 5 ms."""

    def __init__(self, device: str):
        self.device, self.rise = device, 0.0

    def __enter__(self) -> "Memory":
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._before = resident()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.rise = max(self.rise, resident() - self._before)

    def __exit__(self, *_: object) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            self.rise = torch.cuda.max_memory_allocated() - self._before
        else:
            self._stop.set()
            self._thread.join()
            self.rise = max(self.rise, resident() - self._before)


def resident() -> float:
    """Resident bytes of this process."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def by_factors(b: torch.Tensor, a: torch.Tensor, device: str) -> np.ndarray:
    return factor_spectrum(b, a, SCALE).sigma


def by_dense(b: torch.Tensor, a: torch.Tensor, device: str) -> np.ndarray:
    product = SCALE * (b.to(device) @ a.to(device))
    return torch.linalg.svdvals(product)[: b.shape[1]].double().cpu().numpy()


def by_mergekit(b: torch.Tensor, a: torch.Tensor, device: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(b.shape[0], a.shape[1], generator=generator) * 0.02).to(torch.bfloat16)
    tuned = (base.float() + SCALE * b @ a).to(torch.bfloat16)
    difference = tuned.to(device, torch.float32) - base.to(device, torch.float32)
    _, sigma, _ = torch.linalg.svd(difference, full_matrices=False)
    return sigma[: b.shape[1]].double().cpu().numpy()


def truth_of(b: torch.Tensor, a: torch.Tensor, device: str) -> np.ndarray:
    """Singular values of the dense product in float64."""
    product = SCALE * (b.to(device, torch.float64) @ a.to(device, torch.float64))
    return torch.linalg.svdvals(product)[: b.shape[1]].cpu().numpy()


def measure(
    way: str, compute: Callable[..., np.ndarray], layers: int, rank: int, device: str, truth: dict, matrices: set[str]
) -> Row:
    seconds, worst = 0.0, 0.0
    with Memory(device) as memory:
        for layer in range(layers):
            for place in range(len(SHAPES)):
                if list(SHAPES)[place] not in matrices:
                    continue
                b, a = factors_of(layer, place, rank)
                start = time.perf_counter()
                sigma = compute(b, a, device)
                seconds += time.perf_counter() - start
                worst = max(worst, error_of(sigma, b, a, truth.get((layer, place)), way))
    return Row(way, layers, seconds, seconds * 28 / layers, memory.rise / 2**20, worst, device)


def error_of(sigma: np.ndarray, b: torch.Tensor, a: torch.Tensor, truth: np.ndarray | None, way: str) -> float:
    """Largest relative error: of each value where the dense product is known, of ||delta-W||_F elsewhere."""
    if truth is None:
        b, a = b.double(), a.double()
        norm = SCALE * float(((b.T @ b) * (a @ a.T)).sum()) ** 0.5
        return abs(float(np.sqrt(np.sum(sigma**2))) / norm - 1)
    held = truth > (0.0 if way == "factors" else 1e-4 * truth[0])
    return float(np.max(np.abs(sigma[held] / truth[held] - 1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", type=int, default=28, help="layers for the factors' way")
    parser.add_argument("--dense-layers", type=int, default=0, help="layers for the dense ways; 0 leaves them out")
    parser.add_argument("--matrices", default=",".join(SHAPES), help="matrix types, joined by commas")
    parser.add_argument("--device", default="cpu", help="of the dense ways; the factors' way runs on the CPU")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, r = {options.rank}", flush=True)
    matrices = set(options.matrices.split(","))
    truth: dict[tuple[int, int], np.ndarray] = {}
    for layer in range(options.dense_layers):
        for place in range(len(SHAPES)):
            if list(SHAPES)[place] in matrices:
                truth[layer, place] = truth_of(*factors_of(layer, place, options.rank), options.device)
    by_factors(*factors_of(0, 0, options.rank), "cpu")  # warm up
    rows = [measure("factors", by_factors, options.layers, options.rank, "cpu", truth, matrices)]
    if options.dense_layers:
        for way, compute in (("dense", by_dense), ("mergekit", by_mergekit)):
            compute(*factors_of(0, 1, options.rank), options.device)
            rows.append(measure(way, compute, options.dense_layers, options.rank, options.device, truth, matrices))
    print(f"{'way':10} {'layers':>6} {'s for 28':>10} {'MiB':>8} {'worst relative error':>22} device")
    for row in rows:
        print(
            f"{row.way:10} {row.layers:6} {row.seconds_28:10.2f} {row.memory_mib:8.0f} "
            f"{row.worst_relative_error:22.2e} {row.device}"
        )
    if options.json:
        facts: dict[str, Any] = {"machine": name, "python": platform.python_version(), "torch": torch.__version__}
        with open(options.json, "w") as file:
            json.dump({**facts, "rank": options.rank, "rows": [asdict(row) for row in rows]}, file, indent=1)
    return int(rows[0].worst_relative_error > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
