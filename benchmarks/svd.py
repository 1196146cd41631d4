"""Our exact singular values against the ways others take, on the same matrices, each in a process of its own.

    python benchmarks/svd.py                          # one ChatGLM2 `dense` and one `query_key_value` on the CPU
    python benchmarks/svd.py --kinds all --divide 4   # all four matrix types at a quarter of the size: minutes
    python benchmarks/svd.py --device cuda --layers 28 --sample 4
    python benchmarks/svd.py --folder CHECKPOINT --sample 1

Without --folder the matrices are Gaussian with twenty planted values, fp16, written to a temporary file and
memory-mapped
by every child (the page cache is warm for all alike). With --layers N ours does N layers, reading the same N times from
the cache; the alternatives do --sample matrices of each type and are scaled to the same number. Reported for each
method:
seconds a matrix and in all, peak anonymous memory above the interpreter's (CUDA: peak device memory), and the largest
relative error of a singular value against LAPACK's float64 SVD.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Rows and columns of ChatGLM2-6B's four layer matrices.
SHAPES = {
    "query_key_value": (4608, 4096),
    "dense": (4096, 4096),
    "dense_h_to_4h": (27392, 4096),
    "dense_4h_to_h": (4096, 13696),
}
POLL_SECONDS = 0.01
TOGETHER = 28  # matrices that ours solves at once on a CUDA device


@dataclass(frozen=True)
class Method:
    """A way to singular values. stable: from a factorisation of W in float64, so at least as accurate as ours."""

    label: str
    run: Callable
    devices: tuple[str, ...]
    stable: bool = False
    vectors: bool = False
    whole_in_memory: bool = False
    together: Callable | None = None  # on a CUDA device: several weights at once, a list of spectra


def ours(weight, device):
    from glmspectra.spectra import spectra_of

    return spectra_of(weight, device=device)["whole"].sigma


def ours_together(weights, device):
    from glmspectra.spectra import SpectraBatch, to_device

    batch = SpectraBatch()
    for weight in weights:
        batch.add(to_device(weight, torch_device(device)))
    return [found["whole"].sigma for found in batch.spectra()]


def torch_device(name):
    import torch

    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def three_lines(weight, device):
    wide = weight.double().numpy()
    wide = wide if wide.shape[0] >= wide.shape[1] else wide.T
    return np.sqrt(np.maximum(np.linalg.eigvalsh(wide.T @ wide)[::-1], 0))


def three_lines_torch(weight, device):
    import torch

    wide = weight.to(device).double()
    wide = wide if wide.shape[0] >= wide.shape[1] else wide.T
    return torch.linalg.eigvalsh(wide.T @ wide).flip(0).clamp(min=0).sqrt().cpu().numpy()


def numpy_with_vectors(weight, device):
    """What the original study called: float32, U and V as well, both complete."""
    _, sigma, _ = np.linalg.svd(weight.float().numpy())
    return sigma


def numpy_values(weight, device):
    return np.linalg.svd(weight.double().numpy(), compute_uv=False)


def numpy_values_float32(weight, device):
    return np.linalg.svd(weight.float().numpy(), compute_uv=False)


def scipy_values(weight, device):
    import scipy.linalg

    return scipy.linalg.svdvals(weight.double().numpy(), overwrite_a=True, check_finite=False)


def torch_values(weight, device, dtype="float64", driver=None):
    import torch

    wide = weight.to(device).to(getattr(torch, dtype))
    driver = driver if wide.is_cuda else None
    return torch.linalg.svdvals(wide, driver=driver).double().cpu().numpy()


def weightwatcher_call(weight, device):
    """analyze() of one layer, its spectrum taken from what it keeps; the fits it makes besides are part of the call."""
    import logging

    import torch
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.float()
    watcher = weightwatcher.WeightWatcher(model=torch.nn.Sequential(layer))
    kept = {}
    apply = watcher.apply_esd

    def keeping(ww_layer, params=None):
        result = apply(ww_layer, params)
        kept["evals"] = np.sort(np.asarray(ww_layer.evals, dtype=np.float64))[::-1]
        return result

    watcher.apply_esd = keeping
    watcher.analyze(plot=False)
    return np.sqrt(np.maximum(kept["evals"], 0))


BOTH, CPU, CUDA = ("cpu", "cuda"), ("cpu",), ("cuda",)
METHODS = {
    "ours": Method("glmspectra, exact", ours, BOTH, together=ours_together),
    "ours_alone": Method("glmspectra, exact, one at a time", ours, CUDA),
    "three_lines": Method("eigvalsh(W64.T @ W64), numpy", three_lines, CPU),
    "three_lines_torch": Method("eigvalsh(W64.T @ W64), torch", three_lines_torch, BOTH),
    "numpy64": Method("numpy svd, float64, values", numpy_values, CPU, stable=True),
    "scipy64": Method("scipy svdvals, float64", scipy_values, CPU, stable=True),
    "torch64": Method("torch svdvals, float64", lambda w, d: torch_values(w, d, driver="gesvd"), BOTH, stable=True),
    "numpy32": Method("numpy svd, float32, values", numpy_values_float32, CPU),
    "torch32": Method("torch svdvals, float32, default", lambda w, d: torch_values(w, d, "float32"), BOTH),
    "torch32_gesvd": Method("torch svdvals, float32, gesvd", lambda w, d: torch_values(w, d, "float32", "gesvd"), CUDA),
    "weightwatcher": Method("weightwatcher analyze()", weightwatcher_call, BOTH),
    "study": Method(
        "numpy svd, float32, U and V (original study)", numpy_with_vectors, CPU, vectors=True, whole_in_memory=True
    ),
}
REFERENCE = {"cpu": "numpy64", "cuda": "torch64"}


@dataclass
class Result:
    seconds: list[float]
    peak_bytes: int
    sigma: list[np.ndarray]


# The child: one method over the matrices it is given.


def child(request: dict) -> None:
    import torch
    from safetensors import safe_open

    device = request["device"]
    method = METHODS[request["method"]]
    warm = torch.randn(128, 128)
    method.run(warm, device)
    if device.startswith("cuda"):
        torch.linalg.eigvalsh(torch.eye(2048, dtype=torch.float64, device=device))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    opened = {file: safe_open(file, framework="pt") for file in {file for file, _ in request["matrices"]}}
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()

    held = {}
    if method.whole_in_memory:
        held = {(f, n): opened[f].get_tensor(n).clone() for f, n in map(tuple, request["matrices"])}
    matrices = [tuple(matrix) for matrix in request["matrices"]]
    at_once = TOGETHER if method.together and device.startswith("cuda") else 1
    for first in range(0, len(matrices), at_once):
        group = matrices[first : first + at_once]
        start = time.perf_counter()
        weights = [held[file, name] if held else opened[file].get_tensor(name) for file, name in group]
        found = method.together(weights, device) if at_once > 1 else [method.run(weights[0], device)]
        seconds = (time.perf_counter() - start) / len(group)
        for position, sigma in enumerate(found, start=first):
            if position < request["keep"]:
                kept = Path(request["folder"]) / f"{request['method']}-{position}.npy"
                np.save(kept, np.asarray(sigma, dtype=np.float64))
            print(json.dumps({"seconds": seconds}), flush=True)
    if device.startswith("cuda"):
        print(json.dumps({"device_bytes": torch.cuda.max_memory_reserved()}), flush=True)


# The parent: starts children, watches their memory, compares.


def anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def run_method(name: str, matrices: list[tuple[str, str]], device: str, folder: str, keep: int, limit: float) -> Result:
    """Run one method in a child; seconds for each matrix it finished within `limit` seconds."""
    request = {"method": name, "matrices": matrices, "device": device, "folder": folder, "keep": keep}
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", json.dumps(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if name == "weightwatcher" else None,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert process.stdin is not None
    assert process.stdout is not None
    result = Result([], 0, [])
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    base, pending, started, ended = 0, b"", time.perf_counter(), False
    while not ended:
        ended = process.poll() is not None  # one more reading after the end
        if base:
            result.peak_bytes = max(result.peak_bytes, anonymous_bytes(process.pid) - base)
        with contextlib.suppress(BlockingIOError):
            while received := os.read(output, 1 << 16):
                pending += received
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            message = json.loads(line) if line.startswith(b"{") else {}
            if "ready" in message:
                base, started = anonymous_bytes(process.pid), time.perf_counter()
                process.stdin.write(b"go\n")
                process.stdin.flush()
            elif "seconds" in message:
                result.seconds.append(message["seconds"])
            elif "device_bytes" in message:
                result.peak_bytes = message["device_bytes"]
        if base and time.perf_counter() - started > limit:
            process.kill()
            process.wait()
            break
        time.sleep(POLL_SECONDS)
    for position in range(keep):
        kept = Path(folder) / f"{name}-{position}.npy"
        if kept.exists():
            result.sigma.append(np.load(kept))
    return result


def write_matrices(folder: str, types: list[str], divide: int) -> list[tuple[str, str]]:
    """One fp16 matrix of each type in one safetensors file: a Gaussian bulk and twenty larger values."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for seed, name in enumerate(types):
        rows, cols = (side // divide for side in SHAPES[name])
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(rows, cols, generator=generator) * 0.02
        left = torch.linalg.qr(torch.randn(rows, 20, generator=generator)).Q
        right = torch.linalg.qr(torch.randn(cols, 20, generator=generator)).Q
        edge = 0.02 * (rows**0.5 + cols**0.5)
        tensors[name] = (noise + (left * (edge * torch.linspace(8, 1.2, 20))) @ right.T).half()
    file = str(Path(folder) / "matrices.safetensors")
    save_file(tensors, file)
    return [(file, name) for name in types]


def matrices_of_checkpoint(folder: str, types: list[str]) -> list[tuple[str, str]]:
    """(file, tensor name) of the layer matrices of a safetensors checkpoint, of the types asked for."""
    from glmspectra.checkpoint import open_checkpoint

    with open_checkpoint(folder) as checkpoint:
        found = [
            (str(Path(folder) / record.file), record.name)
            for record in checkpoint.tensors.values()
            if record.is_layer_matrix and record.matrix in types
        ]
    if not found or not all(file.endswith(".safetensors") for file, _ in found):
        sys.exit(f"{folder} holds no layer matrices of the types {', '.join(types)} in safetensors files.")
    return found


def relative_error(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Largest |sigma - truth| / truth over all matrices both have; NaN where there is nothing to compare."""
    pairs = [(f, t) for f, t in zip(found, truth, strict=False) if f.size == t.size]
    return max((float(np.max(np.abs(f - t) / t)) for f, t in pairs), default=float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", default="query_key_value,dense", help="comma-separated matrix types, or 'all'")
    parser.add_argument("--divide", type=int, default=1, help="divide all sides by this")
    parser.add_argument("--layers", type=int, default=1, help="layers that ours measures")
    parser.add_argument("--sample", type=int, default=1, help="matrices of each type that the alternatives measure")
    parser.add_argument("--folder", help="a safetensors checkpoint to take the matrices from")
    parser.add_argument("--methods", default="all", help=f"comma-separated, of: {', '.join(METHODS)}")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a method is stopped")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return

    device_type = options.device.split(":")[0]
    types = list(SHAPES) if options.kinds == "all" else options.kinds.split(",")
    names = list(METHODS) if options.methods == "all" else options.methods.split(",")
    names = [name for name in names if device_type in METHODS[name].devices]
    with tempfile.TemporaryDirectory() as folder:
        if options.folder:
            matrices = matrices_of_checkpoint(options.folder, types)
            sample = matrices[: options.sample * len(types)]
        else:
            sample = write_matrices(folder, types, options.divide)
            matrices = sample * options.layers
            sample = sample * options.sample
        # What a method's sample stands for: as many matrices as ours measures.
        results: dict[str, Result] = {}
        print(
            f"{len(matrices)} matrices by ours, {len(sample)} by the others; load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
        )
        for name in names:
            todo = matrices if name == "ours" else sample
            results[name] = run_method(name, todo, options.device, folder, len(types), options.limit)
            print(f"  {METHODS[name].label}: {sum(results[name].seconds):.1f} s", file=sys.stderr)
    report(results, len(matrices), len(sample), REFERENCE[device_type], options.json)


def report(results: dict[str, Result], count: int, sample: int, reference: str, as_json: bool) -> None:
    rows = {}
    truth = results[reference].sigma if reference in results else []
    for name, result in results.items():
        finished = len(result.seconds)
        complete = finished == (count if name == "ours" else sample)
        each = sum(result.seconds) / finished if complete else float("nan")
        rows[name] = {
            "method": METHODS[name].label,
            "seconds_each": each,
            "seconds_all": each * count,
            "peak_mib": result.peak_bytes / 2**20,
            "max_relative_error": relative_error(result.sigma, truth),
        }
    if "ours" in rows:
        for row in rows.values():
            row["times_ours"] = row["seconds_each"] / rows["ours"]["seconds_each"]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"\n{'method':46} {'s each':>9} {f's for {count}':>11} {'x ours':>8} {'peak MiB':>9} {'max rel err':>12}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["seconds_each"]):
        error = "reference" if name == reference else f"{row['max_relative_error']:.1e}"
        print(
            f"{row['method']:46} {row['seconds_each']:9.3f} {row['seconds_all']:11.1f} "
            f"{row.get('times_ours', float('nan')):8.2f} {row['peak_mib']:9.0f} {error:>12}"
        )
    print("\nA method that did not finish in time shows nan.")


if __name__ == "__main__":
    main()
