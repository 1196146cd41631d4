"""A small ChatGLM2-shaped base, adapters on it in PEFT's file form, and merged checkpoints, all with known answers."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HIDDEN, FFN = 48, 80
SHAPES = {
    "self_attention.query_key_value": (64, HIDDEN),
    "self_attention.dense": (HIDDEN, HIDDEN),
    "mlp.dense_h_to_4h": (2 * FFN, HIDDEN),
    "mlp.dense_4h_to_h": (HIDDEN, FFN),
}
PREFIX = "transformer.encoder.layers."


def modules(layers: int) -> dict[str, tuple[int, int]]:
    return {f"{PREFIX}{layer}.{name}": shape for layer in range(layers) for name, shape in SHAPES.items()}


def write_base(folder: Path, layers: int = 3, dtype: torch.dtype = torch.float16) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{m}.weight": (torch.randn(*s, generator=generator) * 0.02).to(dtype) for m, s in modules(layers).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "chatglm",
        "num_layers": layers,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": FFN,
        "num_attention_heads": 4,
        "kv_channels": 12,
        "multi_query_attention": True,
        "multi_query_group_num": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_factors(layers: int, rank: int, seed: int, size: float = 0.02, true_rank: int | None = None):
    """module -> (B (rows, rank), A (rank, cols)), of a lower true rank where told."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for module, (rows, cols) in modules(layers).items():
        b = torch.randn(rows, rank, generator=generator) * size
        if true_rank is not None:
            mixing = torch.randn(true_rank, rank, generator=generator)
            b = torch.randn(rows, true_rank, generator=generator) * size @ mixing
        factors[module] = (b, torch.randn(rank, cols, generator=generator))
    return factors


def write_adapter(folder: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], **config) -> Path:
    rank = next(iter(factors.values()))[1].shape[0]
    tensors = {}
    for module, (b, a) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    whole = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(SHAPES), **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    return folder


def write_merged(base: Path, folder: Path, factors, scale: float = 2.0, dtype: torch.dtype | None = None) -> Path:
    tensors = load_file(base / "model.safetensors")
    for module, (b, a) in factors.items():
        name = f"{module}.weight"
        target = dtype or tensors[name].dtype
        tensors[name] = (tensors[name].float() + scale * b @ a).to(target)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


def base_weights(base: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
