"""A checkpoint of ChatGLM2's names and form, small enough to measure in a moment."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, FFN, HEADS, GROUPS, SIZE, VOCABULARY = 64, 96, 4, 2, 16, 128
LAYER = "transformer.encoder.layers.{layer}."
SHAPES = {
    "self_attention.query_key_value.weight": (HIDDEN + 2 * GROUPS * SIZE, HIDDEN),
    "self_attention.dense.weight": (HIDDEN, HIDDEN),
    "mlp.dense_h_to_4h.weight": (2 * FFN, HIDDEN),
    "mlp.dense_4h_to_h.weight": (HIDDEN, FFN),
}
CONFIG = {
    "model_type": "chatglm",
    "num_layers": 3,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": FFN,
    "num_attention_heads": HEADS,
    "kv_channels": SIZE,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "padded_vocab_size": VOCABULARY,
}


def write_small_checkpoint(folder: Path, layers: int = 3, seed: int = 0, spoil: dict[str, float] | None = None) -> Path:
    """Write it and return the folder. spoil: tensor name -> a value put at its last row (the v part of qkv)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"transformer.embedding.word_embeddings.weight": torch.randn(VOCABULARY, HIDDEN, generator=generator)}
    for layer in range(layers):
        for name, (rows, cols) in SHAPES.items():
            weight = torch.randn(rows, cols, generator=generator) * 0.02
            weight[: rows // 2] += torch.outer(torch.ones(rows // 2), torch.randn(cols, generator=generator)) * 0.01
            tensors[LAYER.format(layer=layer) + name] = weight
        tensors[LAYER.format(layer=layer) + "input_layernorm.weight"] = torch.ones(HIDDEN)
    tensors["transformer.output_layer.weight"] = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    for name, value in (spoil or {}).items():
        tensors[name][-1, 0] = value
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_layers": layers}))
    return folder


def matrix(layer: int, name: str) -> str:
    """The full name of a layer's matrix by its short one."""
    full = next(full for full in SHAPES if full.split(".")[-2] == name)
    return LAYER.format(layer=layer) + full
