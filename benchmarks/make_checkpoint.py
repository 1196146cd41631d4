"""Makes a checkpoint of ChatGLM2-6B's full shape with the real model's spectra, as far as these are known.

The weights of THUDM/chatglm2-6b are not needed: of each of its 28 x 4 matrices the 20 largest singular values and the
share of the 12 largest in the sum of all are recorded in a reference file. Each matrix here is U diag(sigma) V^T with

- sigma_1..20 as recorded,
- sigma_21.. = c mp_i + (sigma_20 - c mp_1) 20 / i: a Marchenko-Pastur bulk of the matrix's shape under a heavy tail
  that begins at sigma_20, with c such that the share of the top 12 is the recorded one,
- U and V random orthogonal: two rounds of random signs and a Hartley transform (x -> (Re - Im) FFT(x) / sqrt(n),
  orthogonal and its own inverse), at n log n a vector where a QR decomposition takes n^2.

Entries come out Gaussian to the eye and are rounded to fp16 once. Embedding, output layer, norms and biases are random,
of a size at which the model computes finite logits.

    python benchmarks/make_checkpoint.py --layers 2 --out /tmp/two                      # a minute on two cores, 1.9 GB
    python benchmarks/make_checkpoint.py --layers 28 --shards 7 --format bin --device cuda --out full   # 12.5 GB

With --format safetensors one matrix is held at a time, with bin one shard.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glmspectra.checkpoint.writing.shards import Planned, write_shard

REFERENCE = Path(__file__).resolve().parents[2] / "shared/reference/chatglm2_6b_spectra.json"
CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMForConditionalGeneration"],
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "eos_token_id": 2,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "pad_token_id": 0,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "quantization_bit": 0,
    "rmsnorm": True,
    "seq_length": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
}
SHAPES = {  # rows, columns
    "self_attention.query_key_value": (4608, 4096),
    "self_attention.dense": (4096, 4096),
    "mlp.dense_h_to_4h": (27392, 4096),
    "mlp.dense_4h_to_h": (4096, 13696),
}
QKV_ROWS = SHAPES["self_attention.query_key_value"][0]
CHUNK = 1 << 24  # numbers transformed or drawn at a time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--layers", type=int, default=2, help="1 to 28")
    parser.add_argument("--format", choices=["safetensors", "bin"], default="safetensors")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where matrices are made: cpu, cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    options = parser.parse_args()
    if not options.reference.is_file():
        parser.error(f"there is no {options.reference}: give the recorded spectra with --reference")
    recorded = json.loads(options.reference.read_text(encoding="utf-8"))
    if not 1 <= options.layers <= len(recorded["top20_singular_values"]):
        parser.error(f"--layers {options.layers}: 1 to {len(recorded['top20_singular_values'])} are recorded")
    if options.shards < 1:
        parser.error("--shards must be 1 or more")
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty")
    start = time.monotonic()
    size = make_checkpoint(
        options.out, recorded, options.layers, options.format, options.shards, options.device, options.seed, print
    )
    print(f"{options.out}: {size / 1e9:.2f} GB in {time.monotonic() - start:.1f} s")
    return 0


def make_checkpoint(
    out: Path,
    recorded: dict,
    layers: int,
    form: str = "safetensors",
    shards: int = 1,
    device: str = "cpu",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Write config.json, shards and (for several) an index into `out`; returns the bytes of weights."""
    out.mkdir(parents=True, exist_ok=True)
    planned, makers = plan(recorded, layers, device, seed)
    total = sum(tensor.nbytes for tensor in planned)
    stem, suffix = ("model", ".safetensors") if form == "safetensors" else ("pytorch_model", ".bin")
    groups = cut(planned, shards)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = f"{stem}{suffix}" if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}{suffix}"
        start = time.monotonic()
        if form == "safetensors":
            write_shard(out / name, group, lambda tensor: makers[tensor](), lambda _: None)
        else:
            torch.save({tensor.name: makers[tensor.name]() for tensor in group}, out / name)
        weight_map |= {tensor.name: name for tensor in group}
        say(f"{name}: {sum(t.nbytes for t in group) / 1e9:.2f} GB in {time.monotonic() - start:.1f} s")
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / f"{stem}{suffix}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = CONFIG | {"num_layers": layers}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return total


def plan(
    recorded: dict, layers: int, device: str, seed: int
) -> tuple[list[Planned], dict[str, Callable[[], torch.Tensor]]]:
    """All tensors of the model in depth order, and a function for each that makes it."""
    planned: list[Planned] = []
    makers: dict[str, Callable[[], torch.Tensor]] = {}

    def add(name: str, shape: tuple[int, ...], maker: Callable[[], torch.Tensor]) -> None:
        planned.append(Planned(name, shape, torch.float16, 2 * math.prod(shape)))
        makers[name] = maker

    def add_random(name: str, shape: tuple[int, ...], scale: float, centre: float = 0.0) -> None:
        own = seed * 1_000_003 + len(planned)
        add(name, shape, partial(random_tensor, shape, scale, centre, own, device))

    vocabulary, hidden = CONFIG["padded_vocab_size"], CONFIG["hidden_size"]
    add_random("transformer.embedding.word_embeddings.weight", (vocabulary, hidden), 0.02)
    half = CONFIG["kv_channels"] // 4  # pairs of the rotated half of a head
    angles = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    add("transformer.rotary_pos_emb.inv_freq", (half,), angles.half)
    for layer in range(layers):
        prefix = f"transformer.encoder.layers.{layer}."
        add_random(prefix + "input_layernorm.weight", (hidden,), 0.05, centre=1.0)
        for matrix, (rows, columns) in SHAPES.items():
            if matrix == "mlp.dense_h_to_4h":
                add_random(prefix + "post_attention_layernorm.weight", (hidden,), 0.05, centre=1.0)
            sigma = spectrum(
                recorded["top20_singular_values"][layer][matrix],
                recorded["top12_share_of_singular_value_sum"][matrix][layer],
                rows,
                columns,
            )
            own = seed * 1_000_003 + len(planned)
            name = prefix + matrix + ".weight"
            add(name, (rows, columns), partial(matrix_of, rows, columns, sigma, own, device))
            if matrix == "self_attention.query_key_value":
                add_random(prefix + matrix + ".bias", (QKV_ROWS,), 0.1)
    add_random("transformer.encoder.final_layernorm.weight", (hidden,), 0.05, centre=1.0)
    add_random("transformer.output_layer.weight", (vocabulary, hidden), 0.02)
    return planned, makers


def spectrum(top: list[float], share: float, rows: int, columns: int) -> np.ndarray:
    """All min(rows, columns) singular values, descending, float64, from the largest and the share of the first 12.

    Raises ValueError when no bulk of this form lies under the last of `top` and gives the share.
    """
    count, known = min(rows, columns), len(top)
    last = float(top[-1])
    bulk = marchenko_pastur(rows, columns, count - known)
    tail = known / np.arange(known + 1, count + 1)
    rest = sum(top[:12]) / share - sum(top)  # sum of all the others
    scale = (rest - last * tail.sum()) / (bulk.sum() - bulk[0] * tail.sum())
    sigma = np.concatenate([top, scale * bulk + (last - scale * bulk[0]) * tail])
    if scale <= 0 or sigma[known] > last or (np.diff(sigma) > 0).any():
        raise ValueError(f"no bulk under {last} makes the first 12 of {top[0]}, ... a share of {share} in the sum")
    return sigma


def marchenko_pastur(rows: int, columns: int, count: int) -> np.ndarray:
    """`count` quantiles, descending, of the singular values of a Gaussian matrix of entries' variance 1 / larger side.

    Density of s = sqrt(lambda), with lambda of Marchenko-Pastur's law of ratio g = smaller / larger side:
    sqrt((b^2 - s^2)(s^2 - a^2)) / (pi g s) on a = 1 - sqrt(g) to b = 1 + sqrt(g).
    """
    ratio = min(rows, columns) / max(rows, columns)
    low, high = 1 - math.sqrt(ratio), 1 + math.sqrt(ratio)
    # Equal steps of an angle: dense at both edges, where the density has its square roots.
    s = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 20001))
    middle = (s[1:] + s[:-1]) / 2
    density = np.sqrt(np.maximum((high**2 - middle**2) * (middle**2 - low**2), 0)) / middle
    cumulative = np.concatenate([[0.0], np.cumsum(density * np.diff(s))])
    at = 1 - (np.arange(count) + 0.5) / count
    return np.interp(at, cumulative / cumulative[-1], s)


def matrix_of(rows: int, columns: int, sigma: np.ndarray, seed: int, device: str = "cpu") -> torch.Tensor:
    """A random matrix (rows, columns) with these singular values, then rounded to fp16; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    small, large = min(rows, columns), max(rows, columns)
    # Rows of `work` are the singular triples: diag(sigma) V^T of the smaller side, then turned within the larger one.
    work = torch.diag(torch.from_numpy(sigma)).to(device, torch.float32)
    rotate(work, generator)
    wide = torch.zeros(small, large, dtype=torch.float32, device=device)
    wide[:, :small] = work.t()
    del work
    rotate(wide, generator)
    wide = wide.half()
    return (wide if rows <= columns else wide.t().contiguous()).cpu()


def rotate(matrix: torch.Tensor, generator: torch.Generator) -> None:
    """Multiply the rows of a matrix by one random orthogonal matrix, in place."""
    size = matrix.shape[1]
    signs = [
        (torch.randint(0, 2, (size,), generator=generator) * 2 - 1).to(matrix.device, matrix.dtype) for _ in range(2)
    ]
    step = max(1, CHUNK // size)
    for start in range(0, matrix.shape[0], step):
        piece = matrix[start : start + step]
        for sign in signs:
            piece.copy_(hartley(piece * sign))


def hartley(x: torch.Tensor) -> torch.Tensor:
    """The orthonormal Hartley transform of the rows: sum_j x_j (cos + sin)(2 pi j k / n) / sqrt(n)."""
    size = x.shape[-1]
    half = torch.fft.rfft(x, norm="ortho")
    result = torch.empty_like(x)
    result[..., : half.shape[-1]] = half.real - half.imag
    # The other frequencies are the conjugates of these, in reverse.
    mirrored = half[..., 1 : size - half.shape[-1] + 1]
    result[..., half.shape[-1] :] = (mirrored.real + mirrored.imag).flip(-1)
    return result


def random_tensor(shape: tuple[int, ...], scale: float, centre: float, seed: int, device: str) -> torch.Tensor:
    """Gaussian numbers in fp16, drawn in pieces; the same on every run on one device type."""
    generator = torch.Generator(device=device).manual_seed(seed)
    result = torch.empty(math.prod(shape), dtype=torch.float16)
    for start in range(0, result.numel(), CHUNK):
        piece = result[start : start + CHUNK]
        piece.copy_(torch.randn(piece.shape, generator=generator, device=device) * scale + centre)
    return result.reshape(shape)


def cut(planned: list[Planned], shards: int) -> list[list[Planned]]:
    """Cut tensors, in order, into so many groups of about equal bytes; fewer when there are fewer tensors."""
    total = sum(tensor.nbytes for tensor in planned)
    groups: list[list[Planned]] = [[] for _ in range(shards)]
    done = 0
    for tensor in planned:
        # The group in which the tensor's middle falls.
        groups[min(shards - 1, int((done + tensor.nbytes / 2) * shards / total))].append(tensor)
        done += tensor.nbytes
    return [group for group in groups if group]


if __name__ == "__main__":
    sys.exit(main())
