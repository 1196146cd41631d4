"""How the sweep scales: measured for 1, 2, 4 ... processes (GPUs, or processor cores) beside what its cost model says.

    python benchmarks/scaling.py --device cuda --processes 1,2,4                  # ChatGLM2-6B's shape, 13 GB of disk
    python benchmarks/scaling.py --device cuda --shape 70b --layers 4             # some layers of a larger one
    python benchmarks/scaling.py --device cpu --shape nano --processes 1,2        # a check of the script, two cores

A checkpoint of random float16 weights of that shape is written to --folder (once; a second run finds it). Each count of
processes measures all its spectra anew by `glmspectra svd`, under torchrun beyond one, into a folder of its own. The
model shares matrices out by `sweep/cost.py`; its prediction for n processes is the seconds of one times the largest
share of the cost. Told besides: what `inspect` says the run reads, computes and holds, the largest resident memory of
its own of any process, and, at the rate measured here, the whole models of the larger shapes on eight processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """A decoder in the Llama layout; experts: of how many the feed-forward part consists."""

    layers: int
    hidden: int
    ffn: int
    key_value: int
    experts: int = 0

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Names within a layer, and (rows, columns)."""
        attention = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.key_value, self.hidden),
            "self_attn.v_proj": (self.key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
        }
        wide, narrow = (self.ffn, self.hidden), (self.hidden, self.ffn)
        if not self.experts:
            return attention | {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": narrow}
        parts = {"w1": wide, "w3": wide, "w2": narrow}
        return attention | {
            f"block_sparse_moe.experts.{expert}.{name}": shape
            for expert in range(self.experts)
            for name, shape in parts.items()
        }


SHAPES = {
    "nano": Shape(4, 128, 352, 32),
    "6b": Shape(28, 4096, 13696, 256),
    "70b": Shape(80, 8192, 28672, 1024),
    "405b": Shape(126, 16384, 53248, 1024),
    "mixture": Shape(32, 4096, 6400, 1024, experts=16),
}
EIGHT = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="6b", choices=list(SHAPES))
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--processes", default="1", help="comma-separated")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "glmspectra-scaling")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    layers = options.layers or shape.layers
    model = options.folder / f"{options.shape}-{layers}"
    if not (model / "config.json").exists():
        write_checkpoint(model, shape, layers, options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
    print(f"{name}, torch {torch.__version__}; {options.shape}, {layers} of {shape.layers} layers", flush=True)
    results = run_command(["inspect", "--model", str(model), "--device", options.device])[0]["svd"]
    print(
        f"told by inspect: {results['matrices']} matrices, {results['nbytes'] / 1e9:.1f} GB to read, "
        f"{results['flops'] / 1e12:.0f} Tflop, {results['memory'] / 2**30:.2f} GiB at the largest"
    )
    costs = matrix_costs(shape, options.device) * layers
    rows = []
    for count in map(int, options.processes.split(",")):
        rows.append({"processes": count} | measure(model, count, options) | {"share": largest_share(costs, count)})
        row = rows[-1]
        predicted = rows[0]["seconds"] * row["share"] / rows[0]["share"]
        print(
            f"{count} processes: {row['seconds']:.1f} s of sweep (predicted {predicted:.1f}), {row['wall']:.1f} s of "
            f"command, {row['own_gib']:.2f} GiB of its own, {row['device_gib']:.2f} on the device, "
            f"speed-up {rows[0]['seconds'] / row['seconds']:.2f}",
            flush=True,
        )
    rate = rows[0]["share"] / rows[0]["seconds"]
    for larger in ("70b", "405b"):
        all_costs = matrix_costs(SHAPES[larger], options.device) * SHAPES[larger].layers
        seconds = largest_share(all_costs, EIGHT) / rate
        print(f"at this rate, {larger} on {EIGHT} processes: {seconds / 60:.1f} min")
    if options.json:
        options.json.write_text(json.dumps({"device": name, "told": results, "rows": rows}, indent=1), encoding="utf-8")


def matrix_costs(shape: Shape, device: str) -> list[float]:
    """What each matrix of one layer costs, by the sweep's own model."""
    from glmspectra.sweep.cost import spectrum_cost

    return [spectrum_cost([rows_columns], device) for rows_columns in shape.matrices().values()]


def largest_share(costs: list[float], count: int) -> float:
    from glmspectra.sweep.processes import share_out

    return max(sum(costs[index] for index in share) for share in share_out(costs, count))


def write_checkpoint(folder: Path, shape: Shape, layers: int, device: str) -> None:
    """One safetensors file a layer, of normal float16 weights of a trained model's size, and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(0)
    for layer in range(layers):
        save_file(dict(_layer(layer, shape, device, generator)), folder / f"model-{layer + 1:05d}.safetensors")
    files = {
        f"model.layers.{layer}.{name}.weight": f"model-{layer + 1:05d}.safetensors"
        for layer in range(layers)
        for name in shape.matrices()
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    config = {"model_type": "mixtral" if shape.experts else "llama", "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": shape.hidden}), encoding="utf-8")


def _layer(layer: int, shape: Shape, device: str, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    for name, (rows, columns) in shape.matrices().items():
        drawn = torch.randn(rows, columns, generator=generator, device=device, dtype=torch.float32).mul_(0.02)
        yield f"model.layers.{layer}.{name}.weight", drawn.half().cpu()


def measure(model: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the sweep and of the whole command, and the largest anonymous memory of one process in GiB."""
    with tempfile.TemporaryDirectory() as out:
        arguments = ["svd", "--layers", "all", "--model", str(model), "--out", out, "--device", options.device]
        started = time.perf_counter()
        answer, own = run_command(arguments, count)
        return {
            "seconds": answer["seconds"],
            "wall": time.perf_counter() - started,
            "own_gib": own / 2**30,
            "device_gib": (answer["device_memory"] or 0) / 2**30,
        }


def run_command(arguments: list[str], count: int = 1) -> tuple[dict[str, Any], int]:
    """What the command says with --json, and the largest anonymous memory of any process of it."""
    start = [sys.executable, "-m"]
    start += ["torch.distributed.run", "--nproc-per-node", str(count), "-m"] if count > 1 else []
    threads = str(max(1, (os.cpu_count() or 1) // count))
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [*start, "glmspectra", *arguments, "--json", "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads},
    )
    largest = [0]
    watching = threading.Thread(target=_watch, args=(process, largest), daemon=True)
    watching.start()
    printed, _ = process.communicate()
    watching.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return json.loads(printed.strip().splitlines()[-1]), largest[0]


def _watch(process: subprocess.Popen, largest: list[int]) -> None:
    while process.poll() is None:
        pids = [process.pid, *_children(process.pid)]
        largest[0] = max(largest[0], *map(anonymous_bytes, pids))
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def anonymous_bytes(pid: int) -> int:
    """Resident memory of its own, without mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
